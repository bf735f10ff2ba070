//! Replies: the bytes around a payload, and which parts of a payload need not be sent.
//!
//! A [`Reply`] is written as slices, the payload straight from the buffer that the layers filled.
//! In structured replies, runs of a buffer that were not written or that a layer declared zero are
//! sent as holes: a few bytes for any length.

use rbdkit_plugin_api::{Buffer, Errno, Error, Extent, Extents, Fill, Span};

use super::strings::cut;
use super::transmission::ReplyFormat;
use super::wire::{self, reply_type, state};

/// The longest extent that a reply with 32-bit lengths tells, in bytes: the largest number of 32
/// bits that is a multiple of 64 KiB, the largest minimum block size.
const LONGEST_EXTENT: u32 = 0xffff_0000;

/// The kinds of requests whose replies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// No special kind.
    Plain,
    /// A zero request with the flag for fast zero.
    FastZero,
    /// A read whose reply may have only one chunk of data.
    DontFragment,
    /// A request that was refused before a layer saw it. Its error was chosen for the client.
    Refused,
}

/// The error number that the client gets.
///
/// The protocol has eight numbers. ENOTSUP only has a meaning in reply to a fast zero, EOVERFLOW in
/// reply to a read that is unfragmented or too long; in other replies they become EINVAL. An error
/// without a number in the protocol becomes EIO.
pub fn errno(errno: Errno, kind: RequestKind) -> u32 {
    match errno {
        Errno::Eperm | Errno::Erofs => 1,
        Errno::Enomem => 12,
        Errno::Einval => 22,
        Errno::Enospc => 28,
        Errno::Eoverflow if matches!(kind, RequestKind::DontFragment | RequestKind::Refused) => 75,
        Errno::Enotsup if kind == RequestKind::FastZero => 95,
        Errno::Eoverflow | Errno::Enotsup => 22,
        Errno::Eshutdown => 108,
        Errno::Eio | Errno::Enoent | Errno::Etimedout | Errno::Edeadlk | Errno::Enxio => 5,
    }
}

/// What a reply repeats of its request, and how it is encoded.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    /// As the session says.
    pub format: ReplyFormat,
    /// The client's number for the request.
    pub cookie: u64,
    /// The first byte of the request.
    pub offset: u64,
}

/// Room for every reply without a payload and for the head of every reply with one. The longest is
/// a hole (32 + 12 bytes).
const HEAD: usize = 44;

/// The first bytes of a reply or of a chunk.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: [u8; HEAD],
    len: u8,
}

impl Head {
    const EMPTY: Head = Head { bytes: [0; HEAD], len: 0 };

    /// Adds a field. All fields together fit.
    #[inline]
    fn put<const N: usize>(&mut self, field: [u8; N]) {
        let at = usize::from(self.len);
        self.bytes[at..at + N].copy_from_slice(&field);
        self.len += N as u8;
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One reply, ready to be written.
#[derive(Debug)]
pub struct Reply {
    head: Head,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Nothing.
    None,
    /// Bytes that belong to the head: an error's message, block status.
    Bytes(Vec<u8>),
    /// The whole buffer, which is data.
    Whole(Buffer),
    /// The whole buffer, which lends its bytes.
    Lent(Buffer),
    /// Chunks: for each part, where its header ends in `bytes`, and the data of the buffer that
    /// follows the header.
    Chunks { bytes: Vec<u8>, parts: Vec<(u32, Span)>, buffer: Buffer },
}

impl Body {
    fn whole(mut buffer: Buffer) -> Body {
        if buffer.spliced() > 0 {
            return Body::Lent(buffer);
        }
        buffer.materialize(buffer.span());
        Body::Whole(buffer)
    }
}

/// Holes shorter than this are sent as zeroes. A hole costs two chunk headers (its own, and that of
/// the data after it) and some work in the client.
const MIN_HOLE: u32 = 4096;

/// The most chunks in one reply. If there are more, the minimum length of a hole is raised.
const MAX_CHUNKS: usize = 64;

/// A run of a read's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Data(Span),
    Hole(Span),
}

impl Reply {
    /// Success of a command without data. Without extended headers this is a simple reply, which is
    /// shorter and also allowed if structured replies were negotiated.
    #[inline]
    pub fn done(to: ReplyTo) -> Reply {
        let head = match to.format {
            ReplyFormat::Extended => chunk(to, reply_type::NONE, Place::Last, 0),
            _ => simple(to, 0),
        };
        Reply { head, body: Body::None }
    }

    /// An error, with its message if the format has a place for it.
    pub fn error(to: ReplyTo, errno: u32, error: &Error) -> Reply {
        if to.format == ReplyFormat::Simple {
            return Reply { head: simple(to, errno), body: Body::None };
        }
        let message = cut(error.context().unwrap_or(""));
        let length = 6 + message.len() as u32;
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend_from_slice(&errno.to_be_bytes());
        bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
        bytes.extend_from_slice(message.as_bytes());
        Reply { head: chunk(to, reply_type::ERROR, Place::Last, length), body: Body::Bytes(bytes) }
    }

    /// The data of a read: the whole buffer, which must not be empty.
    pub fn data(to: ReplyTo, kind: RequestKind, buffer: Buffer) -> Reply {
        let all = buffer.span();
        if to.format == ReplyFormat::Simple {
            return Reply { head: simple(to, 0), body: Body::whole(buffer) };
        }
        let whole = |buffer| Reply { head: data(to, all, Place::Last), body: Body::whole(buffer) };
        match uniform(&buffer) {
            Some(Fill::Data) => return whole(buffer),
            Some(_) => return Reply { head: hole(to, all, Place::Last), body: Body::None },
            None => {}
        }
        let runs = if kind == RequestKind::DontFragment { Vec::new() } else { runs(&buffer, to.offset) };
        if runs.len() > 1 {
            return Reply::chunks(to, buffer, &runs);
        }
        whole(buffer)
    }

    fn chunks(to: ReplyTo, mut buffer: Buffer, runs: &[Run]) -> Reply {
        let mut bytes = Vec::with_capacity(runs.len() * HEAD);
        let mut parts = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let place = if index + 1 == runs.len() { Place::Last } else { Place::Before };
            match *run {
                Run::Hole(span) => {
                    bytes.extend_from_slice(hole(to, span, place).as_slice());
                    parts.push((bytes.len() as u32, Span::new(0, 0)));
                }
                Run::Data(span) => {
                    buffer.materialize(span);
                    bytes.extend_from_slice(data(to, span, place).as_slice());
                    parts.push((bytes.len() as u32, span));
                }
            }
        }
        Reply { head: Head::EMPTY, body: Body::Chunks { bytes, parts, buffer } }
    }

    /// The reply to a block status request: `base:allocation` of at most `limit` extents, and at
    /// least one.
    pub fn block_status(to: ReplyTo, extents: &Extents, limit: usize) -> Reply {
        let extents = extents.as_slice();
        let extents = &extents[..extents.len().min(limit.max(1))];
        let flags =
            |extent: &Extent| if extent.hole { state::HOLE } else { 0 } | if extent.zero { state::ZERO } else { 0 };
        let mut bytes = Vec::new();
        // There are at most 2^20 extents, so the lengths fit.
        let kind = if to.format == ReplyFormat::Extended {
            bytes.reserve_exact(8 + 16 * extents.len());
            bytes.extend_from_slice(&wire::BASE_ALLOCATION_ID.to_be_bytes());
            bytes.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for extent in extents {
                bytes.extend_from_slice(&extent.length.to_be_bytes());
                bytes.extend_from_slice(&u64::from(flags(extent)).to_be_bytes());
            }
            reply_type::BLOCK_STATUS_EXT
        } else {
            bytes.reserve_exact(4 + 8 * extents.len());
            bytes.extend_from_slice(&wire::BASE_ALLOCATION_ID.to_be_bytes());
            for extent in extents {
                // Only the last extent can be longer than the request and than 32 bits can say.
                let length = u32::try_from(extent.length).unwrap_or(LONGEST_EXTENT);
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(&flags(extent).to_be_bytes());
            }
            reply_type::BLOCK_STATUS
        };
        Reply { head: chunk(to, kind, Place::Last, bytes.len() as u32), body: Body::Bytes(bytes) }
    }

    /// The length of the whole reply, in bytes.
    #[inline]
    pub fn length(&self) -> usize {
        let spliced = match &self.body {
            Body::Lent(buffer) => buffer.len() as usize,
            _ => 0,
        };
        self.slices().map(<[u8]>::len).sum::<usize>() + spliced
    }

    /// The buffer that lends its bytes, if there is one. They follow those of [`Reply::slices`] and
    /// are sent by [`Buffer::splice_out`].
    #[inline]
    pub fn spliced(&mut self) -> Option<&mut Buffer> {
        match &mut self.body {
            Body::Lent(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Whether there is a buffer that lends its bytes.
    #[inline]
    pub fn has_spliced(&self) -> bool {
        matches!(self.body, Body::Lent(_))
    }

    /// Whether only spliced bytes are left after `written` bytes of the reply.
    #[inline]
    pub fn head_is_out(&self, written: usize) -> bool {
        written >= usize::from(self.head.len)
    }

    /// Copies the spliced bytes into memory, for a client to which they cannot be spliced. Call it
    /// only before any of them was sent.
    pub fn copy_spliced(&mut self) {
        self.body = match std::mem::replace(&mut self.body, Body::None) {
            Body::Lent(mut buffer) => {
                buffer.materialize(buffer.span());
                Body::Whole(buffer)
            }
            other => other,
        };
    }

    /// The bytes of the reply in order, without the spliced ones. No slice is empty.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let head = self.head.as_slice();
        let (bytes, whole, parts): (&[u8], &[u8], _) = match &self.body {
            Body::None | Body::Lent(_) => (&[], &[], None),
            Body::Bytes(bytes) => (bytes, &[], None),
            Body::Whole(buffer) => (&[], buffer.data(buffer.span()), None),
            Body::Chunks { bytes, parts, buffer } => (&[], &[], Some((bytes, parts, buffer))),
        };
        let chunks = parts.into_iter().flat_map(|(bytes, parts, buffer)| {
            let mut from = 0;
            parts.iter().flat_map(move |(to, span)| {
                let header = &bytes[from..*to as usize];
                from = *to as usize;
                let data: &[u8] = if span.len == 0 { &[] } else { buffer.data(*span) };
                [header, data]
            })
        });
        [head, bytes, whole].into_iter().chain(chunks).filter(|slice| !slice.is_empty())
    }

    /// Like [`Reply::slices`], to encrypt the bytes where they are.
    pub fn slices_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let head = &mut self.head.bytes[..usize::from(self.head.len)];
        let (bytes, whole, parts): (&mut [u8], _, _) = match &mut self.body {
            Body::None | Body::Lent(_) => (&mut [], None, None),
            Body::Bytes(bytes) => (bytes, None, None),
            Body::Whole(buffer) => {
                let all = buffer.span();
                (&mut [], Some(buffer.data_parts_mut(std::iter::once(all))), None)
            }
            Body::Chunks { bytes, parts, buffer } => (&mut [], None, Some(chunks_mut(bytes, parts, buffer))),
        };
        let slices = [head, bytes].into_iter().chain(whole.into_iter().flatten());
        slices.chain(parts.into_iter().flatten()).filter(|slice| !slice.is_empty())
    }
}

/// Each chunk's header and data.
fn chunks_mut<'a>(
    bytes: &'a mut [u8],
    parts: &'a [(u32, Span)],
    buffer: &'a mut Buffer,
) -> impl Iterator<Item = &'a mut [u8]> {
    let mut data = buffer.data_parts_mut(parts.iter().map(|(_, span)| *span).filter(|span| span.len > 0));
    let (mut headers, mut from) = (bytes, 0);
    parts.iter().flat_map(move |(to, span)| {
        let (header, rest) = std::mem::take(&mut headers).split_at_mut((to - from) as usize);
        (headers, from) = (rest, *to);
        let data = if span.len == 0 { None } else { data.next() };
        [header, data.unwrap_or_default()]
    })
}

/// What the buffer holds, if it holds only data or only zeroes. Unfilled bytes count as zeroes.
fn uniform(buffer: &Buffer) -> Option<Fill> {
    let mut kinds = buffer.fills().map(|(_, fill)| if fill == Fill::Data { Fill::Data } else { Fill::Zero });
    let first = kinds.next().unwrap_or(Fill::Data);
    kinds.all(|kind| kind == first).then_some(first)
}

/// How a buffer with data is cut into chunks: at least one run; all runs together are the whole
/// buffer, in order. A single run is data.
fn runs(buffer: &Buffer, offset: u64) -> Vec<Run> {
    let mut shortest = MIN_HOLE;
    loop {
        let runs = runs_with(buffer, offset, shortest);
        if runs.len() <= MAX_CHUNKS {
            return runs;
        }
        shortest *= 4;
    }
}

fn runs_with(buffer: &Buffer, offset: u64, shortest: u32) -> Vec<Run> {
    let len = buffer.len();
    let mut runs = Vec::new();
    let mut data_from = 0;
    let mut hole_from = None;
    let mut end_hole = |from: u32, to: u32, runs: &mut Vec<Run>| {
        let (from, to) = (align_up(from, offset), align_down(to, offset, len));
        if to.saturating_sub(from) < shortest {
            return;
        }
        if data_from < from {
            runs.push(Run::Data(Span::new(data_from, from - data_from)));
        }
        runs.push(Run::Hole(Span::new(from, to - from)));
        data_from = to;
    };
    for (span, fill) in buffer.fills() {
        match (fill, hole_from) {
            (Fill::Data, Some(from)) => {
                end_hole(from, span.at, &mut runs);
                hole_from = None;
            }
            (Fill::Unfilled | Fill::Zero, None) => hole_from = Some(span.at),
            _ => {}
        }
    }
    if let Some(from) = hole_from {
        end_hole(from, len, &mut runs);
    }
    if data_from < len {
        runs.push(Run::Data(Span::new(data_from, len - data_from)));
    }
    runs
}

/// Chunks begin and end at multiples of 512 bytes of the export, except at the ends of the request.
const GRAIN: u64 = 512;

fn align_up(at: u32, offset: u64) -> u32 {
    if at == 0 {
        return 0;
    }
    let over = (offset + u64::from(at)) % GRAIN;
    if over == 0 { at } else { at + (GRAIN - over) as u32 }
}

fn align_down(at: u32, offset: u64, len: u32) -> u32 {
    if at == len {
        return len;
    }
    let over = (offset + u64::from(at)) % GRAIN;
    at.saturating_sub(over as u32)
}

/// Where a chunk is in its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Another chunk follows.
    Before,
    /// It is the last.
    Last,
}

#[inline]
fn simple(to: ReplyTo, errno: u32) -> Head {
    let mut head = Head::EMPTY;
    head.put(wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    head.put(errno.to_be_bytes());
    head.put(to.cookie.to_be_bytes());
    head
}

/// The header of a chunk with `length` bytes of payload. The format is not that of simple replies.
#[inline]
fn chunk(to: ReplyTo, kind: u16, place: Place, length: u32) -> Head {
    let mut head = Head::EMPTY;
    let is_extended = to.format == ReplyFormat::Extended;
    let magic = if is_extended { wire::EXTENDED_REPLY_MAGIC } else { wire::STRUCTURED_REPLY_MAGIC };
    let flags = if place == Place::Last { wire::REPLY_FLAG_DONE } else { 0 };
    head.put(magic.to_be_bytes());
    head.put(flags.to_be_bytes());
    head.put(kind.to_be_bytes());
    head.put(to.cookie.to_be_bytes());
    if is_extended {
        head.put(to.offset.to_be_bytes());
        head.put(u64::from(length).to_be_bytes());
    } else {
        head.put(length.to_be_bytes());
    }
    head
}

/// The head of a chunk with the data of `part` of a read.
fn data(to: ReplyTo, part: Span, place: Place) -> Head {
    // The length is at most MAX_REQUEST, so the sum fits.
    let mut head = chunk(to, reply_type::OFFSET_DATA, place, 8 + part.len);
    head.put((to.offset + u64::from(part.at)).to_be_bytes());
    head
}

/// A chunk for a `part` of a read that is zero.
fn hole(to: ReplyTo, part: Span, place: Place) -> Head {
    let mut head = chunk(to, reply_type::OFFSET_HOLE, place, 12);
    head.put((to.offset + u64::from(part.at)).to_be_bytes());
    head.put(part.len.to_be_bytes());
    head
}
