//! A negotiated connection that checks every reply.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use super::numbers::{EXTENDED_REPLY, SIMPLE_REPLY, STRUCTURED_REPLY, cmd, flag, opt, rep};
use super::stream::{Stream, contexts, extended_request, go, request};
use crate::wait::Deadline;

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes, at least 1.
    pub length: u64,
    /// [`super::STATE_HOLE`] and [`super::STATE_ZERO`].
    pub flags: u32,
}

/// How the messages of a connection look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended headers, which the server has to have.
    Extended,
}

/// A complete reply.
#[derive(Debug)]
pub struct Reply {
    /// The cookie of the request.
    pub cookie: u64,
    /// The bytes that were read, or the error's number.
    pub result: Result<Vec<u8>, u32>,
    /// The extents of a block status.
    pub extents: Vec<Extent>,
    /// How many chunks of a read were holes.
    pub holes: u32,
}

struct Pending {
    kind: u16,
    flags: u16,
    offset: u64,
    length: u64,
    data: Vec<u8>,
    covered: u64,
    chunks: Vec<(u64, u64)>,
    error: Option<u32>,
    extents: Vec<Extent>,
    holes: u32,
}

/// A negotiated connection with any number of requests in flight.
pub struct Client {
    stream: Stream,
    /// The export's size in bytes.
    pub size: u64,
    /// The export's transmission flags ([`super::can`]).
    pub flags: u16,
    replies: Replies,
    context: Option<u32>,
    next: u64,
    pending: HashMap<u64, Pending>,
}

impl Client {
    /// Connects to the default export with structured replies and, if the server has it,
    /// `base:allocation`.
    pub fn connect(socket: &Path) -> Client {
        Client::negotiate(socket, "", true)
    }

    /// Connects to the default export with extended headers and, if the server has it,
    /// `base:allocation`.
    pub fn extended(socket: &Path) -> Client {
        Client::negotiate_with(socket, "", Replies::Extended)
    }

    /// Connects to this export.
    pub fn negotiate(socket: &Path, name: &str, structured: bool) -> Client {
        Client::negotiate_with(socket, name, if structured { Replies::Structured } else { Replies::Simple })
    }

    /// Connects with extended headers to an export that the server may refuse to open.
    pub fn try_extended(socket: &Path) -> Option<Client> {
        Client::negotiate_if_open(socket, "", Replies::Extended)
    }

    /// Connects to this export, with these messages.
    pub fn negotiate_with(socket: &Path, name: &str, replies: Replies) -> Client {
        Client::negotiate_if_open(socket, name, replies).expect("GO was refused")
    }

    fn negotiate_if_open(socket: &Path, name: &str, replies: Replies) -> Option<Client> {
        let mut stream = Stream::connect(socket);
        stream.greet(3).expect("a greeting");
        let mut context = None;
        let better = match replies {
            Replies::Simple => None,
            Replies::Structured => Some(opt::STRUCTURED_REPLY),
            Replies::Extended => Some(opt::EXTENDED_HEADERS),
        };
        if let Some(option) = better {
            stream.option(option, &[]).expect("the option");
            assert_eq!(stream.option_reply(option).expect("a reply").0, rep::ACK);
            stream.option(opt::SET_META_CONTEXT, &contexts(name, &["base:allocation"])).expect("SET_META_CONTEXT");
            let (last, replies) = stream.option_replies(opt::SET_META_CONTEXT).expect("replies");
            assert_eq!(last, rep::ACK);
            for (kind, data) in replies {
                assert_eq!((kind, &data[4..]), (rep::META_CONTEXT, &b"base:allocation"[..]));
                context = Some(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
            }
        }
        stream.option(opt::GO, &go(name, &[])).expect("GO");
        let (last, information) = stream.option_replies(opt::GO).expect("replies");
        if last != rep::ACK {
            return None;
        }
        let mut export = None;
        for (kind, data) in information {
            assert_eq!(kind, rep::INFO);
            if data[..2] == [0, 0] {
                assert_eq!(data.len(), 12);
                let size = u64::from_be_bytes(data[2..10].try_into().expect("eight"));
                export = Some((size, u16::from_be_bytes([data[10], data[11]])));
            }
        }
        let (size, flags) = export.expect("GO tells the size");
        assert!(flags & 1 != 0, "HAS_FLAGS is always set");
        Some(Client { stream, size, flags, replies, context, next: 1, pending: HashMap::new() })
    }

    /// Whether the export has this transmission flag.
    pub fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether block status can be asked for.
    pub fn can_extents(&self) -> bool {
        self.context.is_some()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The bare connection. Replies may still arrive on it.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Sends a request without waiting for its reply.
    pub fn submit(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        self.submit_long(kind, flags, offset, length.into(), data)
    }

    /// Sends a request of any length, which only extended headers can carry, without waiting for
    /// its reply. The data of a BLOCK_STATUS is the list of contexts.
    pub fn submit_long(&mut self, kind: u16, flags: u16, offset: u64, length: u64, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.next += 1;
        let mut message = match self.replies {
            Replies::Extended if data.is_empty() => extended_request(flags, kind, cookie, offset, length),
            Replies::Extended => extended_request(flags | flag::PAYLOAD_LEN, kind, cookie, offset, data.len() as u64),
            _ => request(flags, kind, cookie, offset, u32::try_from(length).expect("a compact header")),
        };
        message.extend_from_slice(data);
        self.stream.send(&message)?;
        // A longer read is refused.
        let data = if kind == cmd::READ && length <= 64 << 20 { vec![0xee; length as usize] } else { Vec::new() };
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

    /// Waits for the next complete reply, to any of the requests.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let deadline = Deadline::new();
        loop {
            deadline.check("the last chunk of a reply");
            let done = match self.stream.u32()? {
                SIMPLE_REPLY if self.replies != Replies::Extended => Some(self.simple()?),
                STRUCTURED_REPLY if self.replies == Replies::Structured => self.chunk()?,
                EXTENDED_REPLY if self.replies == Replies::Extended => self.chunk()?,
                magic => panic!("no kind of reply that was negotiated: {magic:#x}"),
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
        assert!(
            !(self.replies == Replies::Structured && (reads || pending.kind == cmd::BLOCK_STATUS)),
            "this needs a structured reply"
        );
        assert!(pending.chunks.is_empty() && pending.error.is_none(), "a simple reply amid a structured one");
        if error != 0 {
            pending.error = Some(error);
        } else if reads {
            pending.data = self.stream.bytes(pending.length as usize)?;
            pending.covered = pending.length;
        }
        Ok(cookie)
    }

    fn chunk(&mut self) -> io::Result<Option<u64>> {
        let is_extended = self.replies == Replies::Extended;
        let flags = self.stream.u16()?;
        let kind = self.stream.u16()?;
        let cookie = self.stream.u64()?;
        let offset = if is_extended { Some(self.stream.u64()?) } else { None };
        let length = if is_extended { self.stream.u64()? } else { self.stream.u32()?.into() };
        assert!(length <= (64 << 20) + 8, "a chunk of {length} bytes");
        let length = length as usize;
        let pending = self.pending.get_mut(&cookie).expect("a chunk without a request");
        assert!(offset.is_none_or(|offset| offset == pending.offset), "the offset of another request");
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
            5 if !is_extended => {
                assert_eq!(pending.kind, cmd::BLOCK_STATUS);
                assert!(pending.extents.is_empty(), "one chunk for each context");
                assert_eq!(Some(self.stream.u32()?), self.context, "another context");
                assert!(length > 4 && (length - 4).is_multiple_of(8), "whole descriptors");
                for _ in 0..(length - 4) / 8 {
                    let length = self.stream.u32()?.into();
                    let flags = self.stream.u32()?;
                    pending.extents.push(Extent { length, flags });
                }
            }
            6 if is_extended => {
                assert_eq!(pending.kind, cmd::BLOCK_STATUS);
                assert!(pending.extents.is_empty(), "one chunk for each context");
                assert_eq!(Some(self.stream.u32()?), self.context, "another context");
                let count = self.stream.u32()? as usize;
                assert!(count > 0 && length == 8 + 16 * count, "{count} descriptors in {length} bytes");
                for _ in 0..count {
                    let length = self.stream.u64()?;
                    let flags = u32::try_from(self.stream.u64()?).expect("the upper half is zero");
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
                assert_eq!(pending.covered, pending.length, "a read was answered in part");
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

    /// Sends a request and waits for its reply. No other request may be in flight.
    pub fn call(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Reply {
        self.call_long(kind, flags, offset, length.into(), data)
    }

    /// The same with a request of any length (see [`Client::submit_long`]).
    pub fn call_long(&mut self, kind: u16, flags: u16, offset: u64, length: u64, data: &[u8]) -> Reply {
        assert!(self.pending.is_empty());
        let cookie = self.submit_long(kind, flags, offset, length, data).expect("a request");
        let reply = self.receive().expect("a reply");
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// Reads from the disk; the error is the protocol's number.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.call(cmd::READ, 0, offset, length, &[]).result
    }

    /// Writes to the disk.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.call(cmd::WRITE, 0, offset, data.len() as u32, data).result.map(drop)
    }

    /// Sends FLUSH.
    pub fn flush(&mut self) -> Result<(), u32> {
        self.call(cmd::FLUSH, 0, 0, 0, &[]).result.map(drop)
    }

    /// Sends TRIM.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        self.call(cmd::TRIM, 0, offset, length, &[]).result.map(drop)
    }

    /// Sends WRITE_ZEROES.
    pub fn zero(&mut self, offset: u64, length: u32, flags: u16) -> Result<(), u32> {
        self.call(cmd::WRITE_ZEROES, flags, offset, length, &[]).result.map(drop)
    }

    /// Sends CACHE.
    pub fn cache(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        self.call(cmd::CACHE, 0, offset, length, &[]).result.map(drop)
    }

    /// Sends BLOCK_STATUS.
    pub fn extents(&mut self, offset: u64, length: u32, flags: u16) -> Result<Vec<Extent>, u32> {
        let reply = self.call(cmd::BLOCK_STATUS, flags, offset, length, &[]);
        reply.result.map(|_| reply.extents)
    }

    /// Sends BLOCK_STATUS with a list of contexts.
    pub fn filtered_extents(&mut self, offset: u64, length: u64, contexts: &[u32]) -> Result<Vec<Extent>, u32> {
        let mut payload = length.to_be_bytes().to_vec();
        contexts.iter().for_each(|context| payload.extend_from_slice(&context.to_be_bytes()));
        let reply = self.call_long(cmd::BLOCK_STATUS, 0, offset, length, &payload);
        reply.result.map(|_| reply.extents)
    }

    /// The number of `base:allocation`, if it was negotiated.
    pub fn context(&self) -> Option<u32> {
        self.context
    }

    /// Sends DISC and waits until the server has closed the connection.
    pub fn disconnect(mut self) {
        let disconnect = match self.replies {
            Replies::Extended => extended_request(0, cmd::DISC, 0, 0, 0),
            _ => request(0, cmd::DISC, 0, 0, 0),
        };
        self.stream.send(&disconnect).expect("DISC");
        assert_eq!(self.stream.drain(), 0, "nothing comes after a good-bye");
    }
}

/// Marks a chunk's range as answered. The answer is its place in the reply's data.
fn cover(pending: &mut Pending, at: u64, length: u64) -> (usize, usize) {
    assert_eq!(pending.kind, cmd::READ);
    assert!(length > 0, "an empty chunk");
    let from = at.checked_sub(pending.offset).expect("a chunk before the range");
    let to = from + length;
    assert!(to <= pending.length, "a chunk past the range");
    let overlap = pending.chunks.iter().any(|&(a, b)| from < b && a < to);
    assert!(!overlap, "chunks overlap");
    pending.chunks.push((from, to));
    pending.covered += length;
    (from as usize, to as usize)
}

/// Checks what the protocol promises of a block status reply: there is at least one extent, none is
/// empty, only the last one reaches past the range, and with REQ_ONE not even that.
fn check_extents(extents: &[Extent], length: u64, one: bool) {
    let (last, before) = extents.split_last().expect("at least one extent");
    let sum: u64 = before.iter().map(|extent| extent.length).sum();
    assert!(extents.iter().all(|extent| extent.length > 0), "an empty extent in {extents:?}");
    assert!(sum < length, "extents that nobody asked for: {extents:?} for {length}");
    assert!(extents.iter().all(|extent| extent.flags & !3 == 0), "unknown flags in {extents:?}");
    if one {
        assert!(before.is_empty() && last.length <= length, "REQ_ONE: {extents:?} for {length}");
    }
}
