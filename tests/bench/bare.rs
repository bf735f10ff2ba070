//! `rbdkit-bare`: the least that an NBD server can do. With it `make bench` shows how far a real
//! server is from what the socket and the client allow on this machine.
//!
//!     rbdkit-bare -f -U SOCKET -P PIDFILE SIZE
//!
//! Each connection has a blocking thread. It takes all requests that one `recv` brings and answers
//! them with one vectored write. Every read gets the beginning of the same static bytes, whatever
//! its offset, and writes are dropped. There is no storage, no check of ranges, and no limit but
//! what keeps the program from crashing. Clients that ask for structured replies get them, as from
//! any server; they are twice the work for the client, so a comparison with simple replies would
//! not be fair. It is **not** a server to use. It is a limit for short requests only: with long
//! ones a server that sends with several threads a connection, or without copying, may be faster.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;

/// The longest read that it answers, which is the longest that the protocol allows clients to send
/// without asking.
const LARGEST: usize = 32 << 20;
/// More than one `recv` brings from a Unix socket with the default buffers of 208 KiB.
const INPUT: usize = 256 << 10;
/// Replies in one vectored write. Each takes two of the 1024 parts that the kernel allows.
const BATCH: usize = 512;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
/// The head of a chunk: magic number, the flag of the last chunk, and the type for data with an
/// offset.
const DATA_CHUNK: [u8; 8] = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1];
/// The export has flags, can flush, and may be used by several connections.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 8;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rbdkit-bare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ["-f", "-U", socket, "-P", pid_file, size] = &*arguments.iter().map(String::as_str).collect::<Vec<_>>() else {
        return Err(io::Error::other("usage: rbdkit-bare -f -U SOCKET -P PIDFILE SIZE"));
    };
    let size: u64 = size.parse().map_err(|_| io::Error::other("SIZE is a number of bytes"))?;
    let listener = UnixListener::bind(socket)?;
    std::fs::write(pid_file, format!("{}\n", std::process::id()))?;
    // Not zeroes, for which the kernel would use one page.
    let bytes: Arc<[u8]> = vec![0x5a; LARGEST].into();
    for stream in listener.incoming() {
        let (stream, bytes) = (stream?, Arc::clone(&bytes));
        std::thread::spawn(move || {
            // A client that goes away ends only its own connection.
            let _ = serve(stream, size, &bytes);
        });
    }
    Ok(())
}

fn exact<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Grants structured replies, and GO and EXPORT_NAME for any name, and nothing else. The result
/// says whether replies are structured; it is `None` if the client left.
fn handshake(stream: &mut UnixStream, size: u64) -> io::Result<Option<bool>> {
    let mut structured = false;
    // Fixed newstyle, without zeroes after EXPORT_NAME.
    stream.write_all(&[&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &3u16.to_be_bytes()].concat())?;
    let client_flags = u32::from_be_bytes(exact(stream)?);
    loop {
        if u64::from_be_bytes(exact(stream)?) != IHAVEOPT {
            return Ok(None);
        }
        let option = exact::<4>(stream)?;
        let length = u32::from_be_bytes(exact(stream)?);
        io::copy(&mut stream.take(u64::from(length)), &mut io::sink())?;
        let export = [&size.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat();
        let reply = |kind: u32, data: &[u8]| {
            let length = (data.len() as u32).to_be_bytes();
            [&OPTION_REPLY.to_be_bytes()[..], &option, &kind.to_be_bytes(), &length, data].concat()
        };
        let (bytes, done) = match u32::from_be_bytes(option) {
            1 if client_flags & 2 == 0 => ([&export[..], &[0; 124]].concat(), Some(true)),
            1 => (export, Some(true)),
            2 => (reply(1, &[]), Some(false)),
            8 => {
                structured = true;
                (reply(1, &[]), None)
            }
            // GO: information of type 0 about the export, then success.
            7 => ([reply(3, &[&[0; 2], &export[..]].concat()), reply(1, &[])].concat(), Some(true)),
            _ => (reply(0x8000_0001, &[]), None),
        };
        stream.write_all(&bytes)?;
        if let Some(done) = done {
            return Ok(done.then_some(structured));
        }
    }
}

/// A reply: its head, the used length of the head, and the number of data bytes behind it.
type Reply = ([u8; 28], usize, usize);

fn reply(request: &Request, structured: bool) -> Reply {
    let mut head = [0; 28];
    let data = if request.kind == 0 { request.length.min(LARGEST) } else { 0 };
    if !structured || data == 0 {
        head[..4].copy_from_slice(&SIMPLE_REPLY);
        head[8..16].copy_from_slice(&request.cookie);
        return (head, 16, data);
    }
    head[..8].copy_from_slice(&DATA_CHUNK);
    head[8..16].copy_from_slice(&request.cookie);
    head[16..20].copy_from_slice(&(data as u32 + 8).to_be_bytes());
    head[20..].copy_from_slice(&request.offset);
    (head, 28, data)
}

fn serve(mut stream: UnixStream, size: u64, bytes: &[u8]) -> io::Result<()> {
    let Some(structured) = handshake(&mut stream, size)? else { return Ok(()) };
    let mut input = vec![0; INPUT];
    let mut filled = 0;
    // The rest of a write's payload, and its answer. Clients expect the answer only after they have
    // sent all of the payload.
    let (mut payload, mut written) = (0usize, None);
    let mut replies: Vec<Reply> = Vec::new();
    loop {
        let received = stream.read(&mut input[filled..])?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let mut at = 0;
        loop {
            let dropped = payload.min(filled - at);
            payload -= dropped;
            at += dropped;
            if payload == 0 {
                replies.extend(written.take());
            }
            let Some(header) = input[at..filled].first_chunk::<28>() else { break };
            let Some(request) = Request::parse(header) else { return Ok(()) };
            at += header.len();
            match request.kind {
                2 => return Ok(()),
                1 => (payload, written) = (request.length, Some(reply(&request, structured))),
                _ => replies.push(reply(&request, structured)),
            }
        }
        input.copy_within(at..filled, 0);
        filled -= at;
        for batch in replies.chunks(BATCH) {
            answer(&mut stream, batch, bytes)?;
        }
        replies.clear();
    }
}

/// The parts of a request that matter here.
struct Request {
    kind: u16,
    cookie: [u8; 8],
    offset: [u8; 8],
    length: usize,
}

impl Request {
    fn parse(header: &[u8; 28]) -> Option<Request> {
        let magic = header.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        let length = header.last_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        let (cookie, offset) = (*header[8..].first_chunk()?, *header[16..].first_chunk()?);
        let kind = u16::from_be_bytes([header[6], header[7]]);
        (magic == REQUEST).then_some(Request { kind, cookie, offset, length: length as usize })
    }
}

fn answer(stream: &mut UnixStream, batch: &[Reply], bytes: &[u8]) -> io::Result<()> {
    let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(2 * batch.len());
    for (head, counts, length) in batch {
        parts.push(IoSlice::new(&head[..*counts]));
        if *length > 0 {
            parts.push(IoSlice::new(&bytes[..*length]));
        }
    }
    let mut parts = &mut parts[..];
    while !parts.is_empty() {
        let written = stream.write_vectored(parts)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut parts, written);
    }
    Ok(())
}
