//! Fuzzing of the nbd plugin with mutated replies of its server.
//!
//! Every request has to be answered, whatever the server sends, and what the plugin passes on has
//! to be right: the client of the tests checks the form of each reply. The program keeps nothing of
//! a connection that broke.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rbdkit_tests::raw::{Client, EXTENDED_REPLY, IHAVEOPT, NBDMAGIC, OPTION_REPLY, SIMPLE_REPLY, STRUCTURED_REPLY};
use rbdkit_tests::raw::{cmd, flag, opt, rep};
use rbdkit_tests::{Launch, Rng, TempDir, seed};

use super::{Budget, put_edge};

/// The size of the export, in bytes.
const SIZE: u64 = 1 << 40;

/// The number of `base:allocation`.
const CONTEXT: u32 = 3;

/// How the replies look.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Simple,
    Structured,
    Extended,
}

/// The plugin's server on one connection.
struct Upstream {
    stream: UnixStream,
    rng: Rng,
    format: Format,
}

impl Upstream {
    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.read()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.read()?))
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&self.stream).take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let length = data.len() as u32;
        let header =
            [&OPTION_REPLY.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data];
        let message = header.concat();
        let message = if self.rng.chance(1) { mutated(&mut self.rng, message) } else { message };
        self.stream.write_all(&message)
    }

    fn negotiate(&mut self) -> io::Result<()> {
        let greeting = [&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &3_u16.to_be_bytes()].concat();
        self.stream.write_all(&greeting)?;
        self.u32()?;
        loop {
            self.u64()?;
            let (option, length) = (self.u32()?, self.u32()?);
            self.skip(length.into())?;
            match (option, self.format) {
                (opt::EXTENDED_HEADERS, Format::Extended) | (opt::STRUCTURED_REPLY, Format::Structured) => {
                    self.option_reply(option, rep::ACK, &[])?;
                }
                (opt::SET_META_CONTEXT, _) => {
                    let context = [&CONTEXT.to_be_bytes()[..], b"base:allocation"].concat();
                    self.option_reply(option, rep::META_CONTEXT, &context)?;
                    self.option_reply(option, rep::ACK, &[])?;
                }
                (opt::GO, _) => {
                    let export = [&[0; 2][..], &SIZE.to_be_bytes(), &0xfd_u16.to_be_bytes()].concat();
                    self.option_reply(option, rep::INFO, &export)?;
                    return self.option_reply(option, rep::ACK, &[]);
                }
                _ => self.option_reply(option, rep::ERR_UNSUP, &[])?,
            }
        }
    }

    /// Answers requests until the client leaves.
    fn serve(&mut self) -> io::Result<()> {
        self.negotiate()?;
        loop {
            self.u32()?;
            let [flags_high, flags_low, kind_high, kind_low]: [u8; 4] = self.read()?;
            let flags = u16::from_be_bytes([flags_high, flags_low]);
            let kind = u16::from_be_bytes([kind_high, kind_low]);
            let (cookie, offset) = (self.u64()?, self.u64()?);
            let length = if self.format == Format::Extended { self.u64()? } else { self.u32()?.into() };
            if kind == cmd::WRITE {
                self.skip(length)?;
            }
            let mut message = self.reply(kind, flags, cookie, offset, length);
            if self.rng.chance(30) {
                message = mutated(&mut self.rng, message);
            }
            self.stream.write_all(&message)?;
        }
    }

    fn reply(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        if self.format == Format::Simple {
            let mut message = [&SIMPLE_REPLY.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
            if kind == cmd::READ {
                message.resize(message.len() + length as usize, 7);
            }
            return message;
        }
        let extended = self.format == Format::Extended;
        let chunk = |done: u16, kind: u16, payload: &[u8]| {
            let magic = if extended { EXTENDED_REPLY } else { STRUCTURED_REPLY };
            let mut message = [&magic.to_be_bytes()[..], &done.to_be_bytes(), &kind.to_be_bytes()].concat();
            message.extend_from_slice(&cookie.to_be_bytes());
            if extended {
                message.extend_from_slice(&offset.to_be_bytes());
                message.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            } else {
                message.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            }
            message.extend_from_slice(payload);
            message
        };
        if self.rng.chance(10) {
            let text = [&[0, 0, 0, 5, 0, 2][..], b"no", &offset.to_be_bytes()].concat();
            return if self.rng.chance(50) { chunk(1, 0x8001, &text[..8]) } else { chunk(1, 0x8002, &text) };
        }
        match kind {
            cmd::READ => {
                let half = length / 2;
                let data = [&(offset + half).to_be_bytes()[..], &vec![7; (length - half) as usize]].concat();
                let hole = [&offset.to_be_bytes()[..], &(half as u32).to_be_bytes()].concat();
                [chunk(0, 1, &data), chunk(1, 2, &hole)].concat()
            }
            cmd::BLOCK_STATUS => {
                let lengths = if flags & flag::REQ_ONE != 0 { vec![length] } else { vec![length / 2, length] };
                let mut payload = CONTEXT.to_be_bytes().to_vec();
                if extended {
                    payload.extend_from_slice(&(lengths.len() as u32).to_be_bytes());
                }
                for (nth, length) in lengths.into_iter().enumerate() {
                    if extended {
                        payload.extend_from_slice(&length.to_be_bytes());
                        payload.extend_from_slice(&(3 * nth as u64).to_be_bytes());
                    } else {
                        payload.extend_from_slice(&(length as u32).to_be_bytes());
                        payload.extend_from_slice(&(3 * nth as u32).to_be_bytes());
                    }
                }
                chunk(1, if extended { 6 } else { 5 }, &payload)
            }
            _ => chunk(1, 0, &[]),
        }
    }
}

fn mutated(rng: &mut Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=rng.below(3) {
        // Mostly within the headers.
        let most = if rng.chance(80) { bytes.len().min(56) } else { bytes.len() };
        let at = rng.below(most as u64 + 1) as usize;
        match rng.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 => {
                let end = (at + rng.below(9) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            2 => {
                let count = rng.below(9) as usize;
                let inserted = rng.bytes(count);
                bytes.splice(at..at, inserted);
            }
            3 => bytes.truncate(at),
            _ => put_edge(rng, &mut bytes, at),
        }
    }
    bytes
}

/// Serves every connection in turn. A connection that the plugin does not close any more is shut
/// when the next one comes, so a reply that was cut short cannot hold a request for ever.
fn upstream(socket: &Path, mut rng: Rng) {
    let listener = UnixListener::bind(socket).expect("the upstream's socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            // What is missing of a reply that was cut short never comes.
            stream.set_read_timeout(Some(std::time::Duration::from_millis(20))).expect("a timeout");
            let format = [Format::Extended, Format::Extended, Format::Structured, Format::Simple];
            let format = format[rng.below(4) as usize];
            let mut upstream = Upstream { stream, rng: rng.fork(), format };
            let _ = upstream.serve();
            let _ = upstream.stream.shutdown(std::net::Shutdown::Both);
        }
    });
}

/// The client's side: some requests, whose replies it checks. The server may refuse the connection.
fn converse(socket: &Path, rng: &mut Rng) {
    let Some(mut client) = Client::try_extended(socket) else { return };
    for _ in 0..1 + rng.below(6) {
        let (offset, length) = (rng.below(1 << 30), 1 + rng.below(9000));
        let (kind, flags, length) = match rng.below(6) {
            0 | 1 => (cmd::READ, 0, length),
            2 => (cmd::WRITE, 0, length),
            3 => (cmd::WRITE_ZEROES, 0, 1 << rng.below(36)),
            4 if client.can_extents() => (cmd::BLOCK_STATUS, flag::REQ_ONE, 1 + rng.below(1 << 38)),
            5 if client.can_extents() => (cmd::BLOCK_STATUS, 0, 2 + rng.below(1 << 38)),
            _ => (cmd::READ, flag::DF, length),
        };
        let data = if kind == cmd::WRITE { vec![9; length as usize] } else { Vec::new() };
        // The client panics over a reply of the wrong form. Any error of the protocol will do.
        let _ = client.call_long(kind, flags, offset, length, &data);
    }
    client.disconnect();
}

#[test]
fn fuzz_the_nbd_plugin() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed ^ 0x0dd);
    let dir = TempDir::new();
    let socket = dir.join("upstream");
    upstream(&socket, rng.fork());
    let server = Launch::new(["nbd"]).path("socket", &socket).start();
    let budget = Budget::new(300);
    let files = server.open_files();
    let mut round = 0;
    while budget.goes_on(round) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| converse(server.socket(), &mut rng)));
        assert!(outcome.is_ok(), "seed {seed} round {round}");
        round += 1;
    }
    println!("{round} connections");
    // Fewer is right as well: what the start needed may still have been open when they were
    // counted.
    server.wait_until("all connections are closed", |server| server.open_files() <= files);
    let outcome = server.stop();
    assert!(!outcome.stderr.contains("panicked"), "seed {seed}: {}", outcome.stderr);
}
