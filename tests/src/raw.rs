//! An NBD client written by hand from the protocol's text, for what well-behaved clients never do.
//!
//! [`Stream`] sends and receives single messages, in any order and of any kind. [`Client`] is negotiated and keeps many requests in flight;
//! it checks every reply against its request: chunks lie within the range, cover it once, holes have a length, a reply ends once.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::{Deadline, PATIENCE};

/// "NBDMAGIC".
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT".
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Begins an option's reply.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Options.
pub mod opt {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of an option's reply.
pub mod rep {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_PLATFORM: u32 = 0x8000_0004;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Requests.
pub mod cmd {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
    pub const DF: u16 = 4;
    pub const REQ_ONE: u16 = 8;
    pub const FAST_ZERO: u16 = 16;
}

/// Transmission flags of an export.
pub mod can {
    #![allow(missing_docs)]
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const TRIM: u16 = 1 << 5;
    pub const WRITE_ZEROES: u16 = 1 << 6;
    pub const DF: u16 = 1 << 7;
    pub const MULTI_CONN: u16 = 1 << 8;
    pub const CACHE: u16 = 1 << 10;
    pub const FAST_ZERO: u16 = 1 << 11;
}

/// Errors as the protocol numbers them.
pub mod error {
    #![allow(missing_docs)]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// A range known to read as zero, in the flags of a block status.
pub const STATE_ZERO: u32 = 2;
/// A range that is not allocated.
pub const STATE_HOLE: u32 = 1;

/// A reply to an option: its type and its data.
pub type OptionReply = (u32, Vec<u8>);

/// Single messages.
pub struct Stream(pub UnixStream);

impl Stream {
    /// Connects; nothing is sent or read.
    pub fn connect(socket: &Path) -> Stream {
        let stream = UnixStream::connect(socket).expect("the server's socket");
        // So that a server that hangs is a failure and not a test that never ends.
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Stream(stream)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn exact<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.exact()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.exact()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.exact()?))
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the server's greeting and answers with these client flags (1: fixed newstyle, 2: no zeroes).
    pub fn greet(&mut self, client_flags: u32) -> io::Result<u16> {
        assert_eq!(self.u64()?, NBDMAGIC);
        assert_eq!(self.u64()?, IHAVEOPT);
        let flags = self.u16()?;
        self.send(&client_flags.to_be_bytes())?;
        Ok(flags)
    }

    /// Sends an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.option_header(option, data.len() as u32)?;
        self.send(data)
    }

    /// Sends the head of an option alone.
    pub fn option_header(&mut self, option: u32, length: u32) -> io::Result<()> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        self.send(&message)
    }

    /// One reply to `option`: its type and its data.
    pub fn option_reply(&mut self, option: u32) -> io::Result<OptionReply> {
        assert_eq!(self.u64()?, OPTION_REPLY);
        assert_eq!(self.u32()?, option, "a reply to another option");
        let kind = self.u32()?;
        let length = self.u32()?;
        assert!(length < 1 << 20, "a reply of {length} bytes");
        Ok((kind, self.bytes(length as usize)?))
    }

    /// The replies to `option` up to the last one, whose type is answered.
    pub fn option_replies(&mut self, option: u32) -> io::Result<(u32, Vec<OptionReply>)> {
        let mut before = Vec::new();
        let deadline = Deadline::new();
        loop {
            deadline.check("the last reply to an option");
            let (kind, data) = self.option_reply(option)?;
            if kind == rep::ACK || kind & 0x8000_0000 != 0 {
                return Ok((kind, before));
            }
            before.push((kind, data));
        }
    }

    /// Sends a request's head.
    pub fn request(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> io::Result<()> {
        self.send(&request(flags, kind, cookie, offset, length))
    }

    /// Whether the server closes, having sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads until the server closes; how many bytes came.
    pub fn drain(&mut self) -> usize {
        let mut sum = 0;
        let mut bytes = vec![0; 65536];
        let deadline = Deadline::new();
        loop {
            deadline.check("the server closes the connection");
            match self.0.read(&mut bytes) {
                Ok(0) => return sum,
                Ok(n) => sum += n,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return sum,
                Err(error) => panic!("the server does not close: {error}"),
            }
        }
    }
}

/// A request's head.
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = REQUEST.to_be_bytes().to_vec();
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&offset.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message
}

/// The data of GO and INFO.
pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    for info in infos {
        data.extend_from_slice(&info.to_be_bytes());
    }
    data
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// A run of a block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least 1.
    pub length: u32,
    /// [`STATE_HOLE`] and [`STATE_ZERO`].
    pub flags: u32,
}

/// A reply that is complete.
#[derive(Debug)]
pub struct Reply {
    /// The request's.
    pub cookie: u64,
    /// What was read, or the error.
    pub result: Result<Vec<u8>, u32>,
    /// Of a block status.
    pub extents: Vec<Extent>,
    /// Chunks of a read that were holes.
    pub holes: u32,
}

struct Pending {
    kind: u16,
    flags: u16,
    offset: u64,
    length: u32,
    data: Vec<u8>,
    covered: u64,
    chunks: Vec<(u64, u64)>,
    error: Option<u32>,
    extents: Vec<Extent>,
    holes: u32,
}

/// A negotiated connection.
pub struct Client {
    stream: Stream,
    /// The export's.
    pub size: u64,
    /// [`can`].
    pub flags: u16,
    structured: bool,
    context: Option<u32>,
    next: u64,
    pending: HashMap<u64, Pending>,
}

impl Client {
    /// With structured replies and, where the server has it, `base:allocation`, to the default export.
    pub fn connect(socket: &Path) -> Client {
        Client::negotiate(socket, "", true)
    }

    /// To this export.
    pub fn negotiate(socket: &Path, name: &str, structured: bool) -> Client {
        let mut stream = Stream::connect(socket);
        stream.greet(3).expect("a greeting");
        let mut context = None;
        if structured {
            stream.option(opt::STRUCTURED_REPLY, &[]).expect("STRUCTURED_REPLY");
            assert_eq!(stream.option_reply(opt::STRUCTURED_REPLY).expect("a reply").0, rep::ACK);
            stream.option(opt::SET_META_CONTEXT, &contexts(name, &["base:allocation"])).expect("SET_META_CONTEXT");
            let (last, replies) = stream.option_replies(opt::SET_META_CONTEXT).expect("replies");
            assert_eq!(last, rep::ACK);
            for (kind, data) in replies {
                assert_eq!((kind, &data[4..]), (rep::META_CONTEXT, &b"base:allocation"[..]));
                context = Some(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
            }
        }
        stream.option(opt::GO, &go(name, &[])).expect("GO");
        let (last, replies) = stream.option_replies(opt::GO).expect("replies");
        assert_eq!(last, rep::ACK, "GO was refused: {last:#x}");
        let mut export = None;
        for (kind, data) in replies {
            assert_eq!(kind, rep::INFO);
            if data[..2] == [0, 0] {
                assert_eq!(data.len(), 12);
                let size = u64::from_be_bytes(data[2..10].try_into().expect("eight"));
                export = Some((size, u16::from_be_bytes([data[10], data[11]])));
            }
        }
        let (size, flags) = export.expect("GO tells the size");
        assert!(flags & 1 != 0, "HAS_FLAGS is always set");
        Client { stream, size, flags, structured, context, next: 1, pending: HashMap::new() }
    }

    /// Whether the export has this flag.
    pub fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether block status works.
    pub fn can_extents(&self) -> bool {
        self.context.is_some()
    }

    /// How many requests wait for their reply.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The bare connection, with whatever is still to come.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Sends a request without waiting for its reply.
    pub fn submit(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.next += 1;
        let mut message = request(flags, kind, cookie, offset, length);
        message.extend_from_slice(data);
        self.stream.send(&message)?;
        let data = if kind == cmd::READ { vec![0xee; length as usize] } else { Vec::new() };
        let pending = Pending {
            kind,
            flags,
            offset,
            length,
            data,
            covered: 0,
            chunks: Vec::new(),
            error: None,
            extents: Vec::new(),
            holes: 0,
        };
        self.pending.insert(cookie, pending);
        Ok(cookie)
    }

    /// The next reply that is complete, to whichever request.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let deadline = Deadline::new();
        loop {
            deadline.check("the last chunk of a reply");
            let done = match self.stream.u32()? {
                SIMPLE_REPLY => Some(self.simple()?),
                STRUCTURED_REPLY => self.chunk()?,
                magic => panic!("neither kind of reply: {magic:#x}"),
            };
            if let Some(cookie) = done {
                return Ok(self.finish(cookie));
            }
        }
    }

    fn simple(&mut self) -> io::Result<u64> {
        let error = self.stream.u32()?;
        let cookie = self.stream.u64()?;
        let pending = self.pending.get_mut(&cookie).expect("a reply without a request");
        let reads = pending.kind == cmd::READ;
        assert!(!(self.structured && (reads || pending.kind == cmd::BLOCK_STATUS)), "this needs a structured reply");
        assert!(pending.chunks.is_empty() && pending.error.is_none(), "a simple reply amid a structured one");
        if error != 0 {
            pending.error = Some(error);
        } else if reads {
            pending.data = self.stream.bytes(pending.length as usize)?;
            pending.covered = u64::from(pending.length);
        }
        Ok(cookie)
    }

    fn chunk(&mut self) -> io::Result<Option<u64>> {
        assert!(self.structured, "a structured reply that was not negotiated");
        let flags = self.stream.u16()?;
        let kind = self.stream.u16()?;
        let cookie = self.stream.u64()?;
        let length = self.stream.u32()? as usize;
        assert!(length <= (64 << 20) + 8, "a chunk of {length} bytes");
        let pending = self.pending.get_mut(&cookie).expect("a chunk without a request");
        match kind {
            0 => assert_eq!((length, flags & 1), (0, 1), "a chunk of type none is empty and the last"),
            1 => {
                let at = self.stream.u64()?;
                let (from, to) = cover(pending, at, length as u64 - 8);
                self.stream.0.read_exact(&mut pending.data[from..to])?;
            }
            2 => {
                assert_eq!(length, 12);
                let at = self.stream.u64()?;
                let hole = self.stream.u32()?;
                let (from, to) = cover(pending, at, u64::from(hole));
                pending.data[from..to].fill(0);
                pending.holes += 1;
            }
            5 => {
                assert_eq!(pending.kind, cmd::BLOCK_STATUS);
                assert!(pending.extents.is_empty(), "one chunk for each context");
                assert_eq!(Some(self.stream.u32()?), self.context, "another context");
                assert!(length > 4 && (length - 4).is_multiple_of(8), "whole descriptors");
                for _ in 0..(length - 4) / 8 {
                    let length = self.stream.u32()?;
                    let flags = self.stream.u32()?;
                    pending.extents.push(Extent { length, flags });
                }
            }
            kind if kind & 0x8000 != 0 => {
                let error = self.stream.u32()?;
                let text = self.stream.u16()?;
                let rest = self.stream.bytes(length - 6)?;
                assert!(rest.len() >= text as usize, "the message lies within the chunk");
                assert_ne!(error, 0, "an error carries a number");
                pending.error = Some(error);
            }
            kind => panic!("a chunk of unknown type {kind}"),
        }
        Ok((flags & 1 != 0).then_some(cookie))
    }

    fn finish(&mut self, cookie: u64) -> Reply {
        let pending = self.pending.remove(&cookie).expect("it was there");
        let result = match pending.error {
            Some(error) => Err(error),
            None if pending.kind == cmd::READ => {
                assert_eq!(pending.covered, u64::from(pending.length), "a read was answered in part");
                if pending.flags & flag::DF != 0 {
                    assert!(pending.chunks.len() <= 1, "one chunk with DF");
                }
                Ok(pending.data)
            }
            None => Ok(Vec::new()),
        };
        if result.is_ok() && pending.kind == cmd::BLOCK_STATUS {
            check_extents(&pending.extents, pending.length, pending.flags & flag::REQ_ONE != 0);
        }
        Reply { cookie, result, extents: pending.extents, holes: pending.holes }
    }

    /// Sends a request and waits for its reply; none other may be in flight.
    pub fn call(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Reply {
        assert!(self.pending.is_empty());
        let cookie = self.submit(kind, flags, offset, length, data).expect("a request");
        let reply = self.receive().expect("a reply");
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.call(cmd::READ, 0, offset, length, &[]).result
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.call(cmd::WRITE, 0, offset, data.len() as u32, data).result.map(drop)
    }

    /// Flushes.
    pub fn flush(&mut self) -> Result<(), u32> {
        self.call(cmd::FLUSH, 0, 0, 0, &[]).result.map(drop)
    }

    /// Trims.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        self.call(cmd::TRIM, 0, offset, length, &[]).result.map(drop)
    }

    /// Writes zeroes.
    pub fn zero(&mut self, offset: u64, length: u32, flags: u16) -> Result<(), u32> {
        self.call(cmd::WRITE_ZEROES, flags, offset, length, &[]).result.map(drop)
    }

    /// Asks for the range to be brought nearer.
    pub fn cache(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        self.call(cmd::CACHE, 0, offset, length, &[]).result.map(drop)
    }

    /// The block status of a range.
    pub fn extents(&mut self, offset: u64, length: u32, flags: u16) -> Result<Vec<Extent>, u32> {
        let reply = self.call(cmd::BLOCK_STATUS, flags, offset, length, &[]);
        reply.result.map(|_| reply.extents)
    }

    /// Says good-bye and waits until the server has closed.
    pub fn disconnect(mut self) {
        self.stream.request(0, cmd::DISC, 0, 0, 0).expect("DISC");
        assert_eq!(self.stream.drain(), 0, "nothing comes after a good-bye");
    }
}

/// Marks a chunk's range as answered and says where it lies in the reply's data.
fn cover(pending: &mut Pending, at: u64, length: u64) -> (usize, usize) {
    assert_eq!(pending.kind, cmd::READ);
    assert!(length > 0, "an empty chunk");
    let from = at.checked_sub(pending.offset).expect("a chunk before the range");
    let to = from + length;
    assert!(to <= u64::from(pending.length), "a chunk past the range");
    let overlap = pending.chunks.iter().any(|&(a, b)| from < b && a < to);
    assert!(!overlap, "chunks overlap");
    pending.chunks.push((from, to));
    pending.covered += length;
    (from as usize, to as usize)
}

/// What the protocol promises of a block status: at least one, none empty, only the last reaches past the range, with REQ_ONE one that does not.
fn check_extents(extents: &[Extent], length: u32, one: bool) {
    let (last, before) = extents.split_last().expect("at least one extent");
    let sum: u64 = before.iter().map(|extent| u64::from(extent.length)).sum();
    assert!(extents.iter().all(|extent| extent.length > 0), "an empty extent in {extents:?}");
    assert!(sum < u64::from(length), "extents that nobody asked for: {extents:?} for {length}");
    assert!(extents.iter().all(|extent| extent.flags & !3 == 0), "unknown flags in {extents:?}");
    if one {
        assert!(before.is_empty() && last.length <= length, "REQ_ONE: {extents:?} for {length}");
    }
}
