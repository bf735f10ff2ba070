//! The reader's task: reads the server's replies, which come in any order, and answers the
//! requests.
//!
//! The task checks every length, cookie, chunk and extent before it uses it. After an invalid reply
//! the start of the next one cannot be found, so the first violation ends the connection.

use std::io;
use std::sync::Arc;

use rbdkit_plugin_api::{Errno, Error, Extents, Fill, MAX_REQUEST, Span};

use crate::handshake::{Format, quoted};
use crate::table::{Pending, Read, Status, Table};
use crate::wire::{
    EXTENDED_REPLY_MAGIC, REPLY_FLAG_DONE, Reader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, reply_type, state,
};
use rbdkit_stream::{ConnectionError, Input};

type Result<T> = std::result::Result<T, ConnectionError>;

/// The longest list of extents, in bytes: 2^20 extents, the most that nbdkit sends.
const MAX_STATUS: u32 = 4 + 8 * (1 << 20);

/// The same with extended headers.
const MAX_STATUS_EXT: u32 = 8 + 16 * (1 << 20);

/// The longest error chunk, in bytes: the numbers, and a message of 65535 bytes, which is the
/// largest value of its length field.
const MAX_ERROR: u32 = 6 + 65535 + 8;

/// The shortest hole, in bytes, that is marked as zero in the buffer. Shorter holes are written as
/// zeroes, so that a server that sends a million holes of one byte costs a million bytes, and not a
/// list of a million runs.
const SHORTEST_HOLE: u32 = 4096;

/// What the reader needs to know of the session.
#[derive(Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) format: Format,
    pub(crate) context: Option<u32>,
}

/// A chunk of a structured or extended reply.
struct Chunk {
    done: bool,
    kind: u16,
    length: u32,
}

/// Reads replies until the connection cannot be used any more, and returns why.
pub(crate) async fn read(mut input: Input, table: Arc<Table>, agreed: Agreed) -> ConnectionError {
    loop {
        if let Err(broken) = next(&mut input, &table, agreed).await {
            return broken;
        }
    }
}

async fn next(input: &mut Input, table: &Table, agreed: Agreed) -> Result<()> {
    match u32::from_be_bytes(input.array().await?) {
        SIMPLE_REPLY_MAGIC if agreed.format != Format::Extended => {
            let error = u32::from_be_bytes(input.array().await?);
            let cookie = u64::from_be_bytes(input.array().await?);
            let mut pending = table.take(cookie)?;
            let outcome = simple(input, &mut pending, error, agreed).await;
            conclude(table, cookie, pending, outcome.map(|()| true))
        }
        STRUCTURED_REPLY_MAGIC if agreed.format == Format::Structured => {
            let flags = u16::from_be_bytes(input.array().await?);
            let kind = u16::from_be_bytes(input.array().await?);
            let cookie = u64::from_be_bytes(input.array().await?);
            let length = u32::from_be_bytes(input.array().await?);
            let chunk = Chunk { done: flags & REPLY_FLAG_DONE != 0, kind, length };
            let mut pending = table.take(cookie)?;
            let outcome = structured(input, &mut pending, &chunk, agreed).await;
            conclude(table, cookie, pending, outcome.map(|()| chunk.done))
        }
        EXTENDED_REPLY_MAGIC if agreed.format == Format::Extended => {
            let flags = u16::from_be_bytes(input.array().await?);
            let kind = u16::from_be_bytes(input.array().await?);
            let cookie = u64::from_be_bytes(input.array().await?);
            let offset = u64::from_be_bytes(input.array().await?);
            let length = u64::from_be_bytes(input.array().await?);
            let mut pending = table.take(cookie)?;
            let outcome = extended(input, &mut pending, (flags, kind), (offset, length), agreed).await;
            conclude(table, cookie, pending, outcome)
        }
        magic => Err(ConnectionError::new(format!("the server sent something that is not a reply ({magic:#010x})"))),
    }
}

/// Answers the request if its reply is complete, or puts it back. After an error it is put back
/// too, and fails with the connection.
fn conclude(table: &Table, cookie: u64, pending: Pending, outcome: Result<bool>) -> Result<()> {
    match outcome {
        Ok(true) => pending.finish().map_err(|pending| {
            table.put_back(cookie, pending);
            ConnectionError::new("the server ended a reply before it had sent all of it")
        }),
        Ok(false) => {
            table.put_back(cookie, pending);
            Ok(())
        }
        Err(broken) => {
            table.put_back(cookie, pending);
            Err(broken)
        }
    }
}

/// The error numbers of the specification. A client must treat any other as EINVAL.
fn errno(number: u32) -> Errno {
    match number {
        1 => Errno::Eperm,
        5 => Errno::Eio,
        12 => Errno::Enomem,
        28 => Errno::Enospc,
        75 => Errno::Eoverflow,
        95 => Errno::Enotsup,
        108 => Errno::Eshutdown,
        _ => Errno::Einval,
    }
}

async fn simple(input: &mut Input, pending: &mut Pending, error: u32, agreed: Agreed) -> Result<()> {
    if error != 0 {
        return note(pending, Error::from(errno(error)));
    }
    match pending {
        Pending::Plain(_) => Ok(()),
        Pending::Read(read) if agreed.format == Format::Simple => {
            let length = read.span.len;
            data(input, read, read.offset, length).await
        }
        Pending::Dropped(dropped) if agreed.format == Format::Simple => Ok(input.skip(dropped.length as usize).await?),
        _ => Err(ConnectionError::new("the server sent a simple reply where only a structured one can be")),
    }
}

fn note(pending: &mut Pending, error: Error) -> Result<()> {
    match pending.note(error) {
        true => Ok(()),
        false => Err(endless()),
    }
}

/// The end of a connection whose server sends ever more for one request.
fn endless() -> ConnectionError {
    ConnectionError::new("the server does not come to an end with a reply")
}

/// A chunk with an extended header. Returns whether it is the last.
async fn extended(
    input: &mut Input,
    pending: &mut Pending,
    (flags, kind): (u16, u16),
    (offset, length): (u64, u64),
    agreed: Agreed,
) -> Result<bool> {
    if offset != pending.offset() {
        return Err(ConnectionError::new(format!(
            "the server answered a request at {} as if it were one at {offset}",
            pending.offset()
        )));
    }
    let length = u32::try_from(length)
        .map_err(|_| ConnectionError::new(format!("the server announced a chunk of {length} bytes")))?;
    let chunk = Chunk { done: flags & REPLY_FLAG_DONE != 0, kind, length };
    structured(input, pending, &chunk, agreed).await.map(|()| chunk.done)
}

async fn structured(input: &mut Input, pending: &mut Pending, chunk: &Chunk, agreed: Agreed) -> Result<()> {
    let wrong =
        || ConnectionError::new(format!("the server sent a chunk that does not fit its request (type {})", chunk.kind));
    match (chunk.kind, pending) {
        (reply_type::NONE, _) if chunk.done && chunk.length == 0 => Ok(()),
        (reply_type::OFFSET_DATA, Pending::Read(read)) if chunk.length > 8 => {
            let offset = u64::from_be_bytes(input.array().await?);
            data(input, read, offset, chunk.length - 8).await
        }
        (reply_type::OFFSET_HOLE, Pending::Read(read)) if chunk.length == 12 => {
            let offset = u64::from_be_bytes(input.array().await?);
            let length = u32::from_be_bytes(input.array().await?);
            hole(read, offset, length)
        }
        (kind, Pending::Status(status)) if is_status(kind, chunk.length, agreed.format) => {
            let (None, Some(context)) = (&status.extents, agreed.context) else {
                return Err(wrong());
            };
            status.extents = Some(extents(input, status, chunk.length, context, agreed.format).await?);
            Ok(())
        }
        (kind, pending) if kind & reply_type::ERROR != 0 && (6..=MAX_ERROR).contains(&chunk.length) => {
            let error = reported(kind, &input.vec(chunk.length as usize).await?, pending)?;
            note(pending, error)
        }
        (
            reply_type::OFFSET_DATA | reply_type::OFFSET_HOLE | reply_type::BLOCK_STATUS | reply_type::BLOCK_STATUS_EXT,
            Pending::Dropped(dropped),
        ) => {
            let chunks_left = dropped.chunks_left.checked_sub(1).ok_or_else(endless)?;
            dropped.chunks_left = chunks_left;
            if chunk.length > MAX_STATUS_EXT.max(8 + MAX_REQUEST) {
                return Err(wrong());
            }
            Ok(input.skip(chunk.length as usize).await?)
        }
        _ => Err(wrong()),
    }
}

/// Whether a chunk has extents, in the only form that was agreed upon, and a possible length.
fn is_status(kind: u16, length: u32, format: Format) -> bool {
    match (kind, format) {
        (reply_type::BLOCK_STATUS, Format::Structured) => (12..=MAX_STATUS).contains(&length),
        (reply_type::BLOCK_STATUS_EXT, Format::Extended) => (24..=MAX_STATUS_EXT).contains(&length),
        _ => false,
    }
}

/// The part of the request's buffer that a chunk fills. Each byte may come only once.
fn place(read: &mut Read, offset: u64, length: u32) -> Result<Span> {
    let wrong = || {
        ConnectionError::new(format!(
            "the server sent {length} bytes at {offset} that were not asked for, or sent before"
        ))
    };
    read.chunks_left = read.chunks_left.checked_sub(1).ok_or_else(endless)?;
    let from = offset.checked_sub(read.offset).and_then(|from| u32::try_from(from).ok()).ok_or_else(wrong)?;
    let to = from.checked_add(length).filter(|to| *to <= read.span.len).ok_or_else(wrong)?;
    match read.received.add(from, to) {
        true => Ok(Span::new(read.span.at + from, length)),
        false => Err(wrong()),
    }
}

async fn data(input: &mut Input, read: &mut Read, offset: u64, length: u32) -> Result<()> {
    let span = place(read, offset, length)?;
    Ok(input.fill(&mut read.buffer, span).await?)
}

fn hole(read: &mut Read, offset: u64, length: u32) -> Result<()> {
    let span = place(read, offset, length)?;
    if length >= SHORTEST_HOLE {
        read.buffer.mark(span, Fill::Zero);
        return Ok(());
    }
    Ok(read.buffer.fill_with(span, |bytes| -> io::Result<()> {
        bytes.fill(0);
        Ok(())
    })?)
}

/// Reads a chunk of extents. They go straight into the answer, which has room for a limited number.
/// What comes after them is read and dropped: an answer may cover less than was asked for.
async fn extents(input: &mut Input, status: &Status, bytes: u32, context: u32, format: Format) -> Result<Extents> {
    let wrong = |what: &str| ConnectionError::new(format!("the server sent extents that make no sense: {what}"));
    if u32::from_be_bytes(input.array().await?) != context {
        return Err(wrong("of a context that was not agreed upon"));
    }
    let (head, each) = if format == Format::Extended { (8, 16) } else { (4, 8) };
    let bytes = bytes - head;
    if !bytes.is_multiple_of(each) {
        return Err(wrong("half of one"));
    }
    let count = bytes / each;
    if format == Format::Extended && u32::from_be_bytes(input.array().await?) != count {
        return Err(wrong("another number of them than was announced"));
    }
    let mut extents = Extents::new(status.offset, status.length);
    let mut left = status.length;
    let mut has_room = true;
    for _ in 0..count {
        let (length, flags) = match format {
            Format::Extended => (u64::from_be_bytes(input.array().await?), u64::from_be_bytes(input.array().await?)),
            _ => (u32::from_be_bytes(input.array().await?).into(), u32::from_be_bytes(input.array().await?).into()),
        };
        if length == 0 {
            return Err(wrong("an empty one"));
        }
        if left == 0 {
            return Err(wrong("more than was asked for"));
        }
        // Extents that follow each other within the request cannot overflow, but the last one can.
        if length > i64::MAX as u64 - extents.next_offset().min(i64::MAX as u64) {
            return Err(wrong("one beyond 2^63"));
        }
        // Only the last extent may go beyond the request, or, with servers that round up, beyond
        // the end of the export, where the gate cuts it.
        has_room =
            has_room && extents.push(length, flags & u64::from(state::HOLE) != 0, flags & u64::from(state::ZERO) != 0);
        left = left.saturating_sub(length);
    }
    Ok(extents)
}

/// The error of an error chunk. One with an offset has to lie within its request.
fn reported(kind: u16, bytes: &[u8], pending: &Pending) -> Result<Error> {
    let mut reader = Reader(bytes);
    let wrong = || ConnectionError::new("the server sent a malformed error");
    let number = reader.u32().filter(|number| *number != 0).ok_or_else(wrong)?;
    let length = reader.u16().ok_or_else(wrong)?;
    let message = reader.bytes(usize::from(length)).ok_or_else(wrong)?;
    if kind == reply_type::ERROR_OFFSET {
        let offset = reader.u64().ok_or_else(wrong)?;
        if let Pending::Read(read) = pending
            && offset.checked_sub(read.offset).is_none_or(|at| at >= u64::from(read.span.len))
        {
            return Err(wrong());
        }
    }
    Ok(match message.is_empty() {
        true => Error::from(errno(number)),
        false => Error::new(errno(number), format!("nbd: the server says \"{}\"", quoted(message))),
    })
}
