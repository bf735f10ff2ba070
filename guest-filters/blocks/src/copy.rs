//! Moving data between next and scratch without ever bringing it into the guest.

use crate::{Fault, Grid, Host, PAYLOAD, Temp};

/// The longest step in which blocks are moved, in bytes: long enough that the latency of next disappears behind it, short enough that nobody
/// waits long for a lock on what is being moved.
pub const CHUNK: u64 = 1 << 20;

/// Reads from next, in as many requests as it wants.
pub fn read_next<H: Host>(host: &H, offset: u64, end: u64, buf: u32, mut at: u32) -> Result<(), H::Error> {
    let mut offset = offset;
    while offset < end {
        let length = (end - offset).min(host.next_max().into()) as u32;
        host.next_pread(offset, length, buf, at)?;
        offset += u64::from(length);
        at += length;
    }
    Ok(())
}

/// Writes to next, in as many requests as it wants.
pub fn write_next<H: Host>(host: &H, offset: u64, end: u64, buf: u32, mut at: u32, fua: bool) -> Result<(), H::Error> {
    let mut offset = offset;
    while offset < end {
        let length = (end - offset).min(host.next_max().into()) as u32;
        host.next_pwrite(offset, length, buf, at, fua)?;
        offset += u64::from(length);
        at += length;
    }
    Ok(())
}

/// The part of the blocks that are copied up that goes into the payload: `offset` to `end`, to position `at`.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The first byte.
    pub offset: u64,
    /// Behind the last byte.
    pub end: u64,
    /// Where the byte at `offset` goes.
    pub at: u32,
}

/// What [`copy_up`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Blocks that are in scratch now.
    pub kept: u64,
    /// Scratch is full.
    pub full: bool,
}

/// Copies blocks that are in state 0 from next into scratch and says in `map` that they are in state `to`. The caller holds an exclusive lock
/// on them. Scratch that is full is no error: then they are only read, where they are wanted.
pub fn copy_up<H: Host>(
    host: &H,
    grid: Grid,
    map: u32,
    to: u8,
    (first, count): (u64, u64),
    want: Option<Want>,
) -> Result<Copied, H::Error> {
    let size = host.size()?;
    let step = (CHUNK / grid.block()).max(1);
    let mut copied = Copied::default();
    let (mut block, last) = (first, first + count);
    while block < last {
        let n = step.min(last - block);
        let (start, end) = grid.span(block, n, size);
        let length = (end - start) as u32;
        let part = want.map(|want| Want {
            offset: want.offset.max(start),
            end: want.end.min(end),
            at: want.at + (want.offset.max(start) - want.offset) as u32,
        });
        let stored = match part {
            // All of it is wanted: it goes by way of the payload.
            Some(part) if part.offset == start && part.end == end => {
                read_next(host, start, end, PAYLOAD, part.at)?;
                host.scratch_pwrite(start, length, PAYLOAD, part.at)
            }
            _ => match Temp::new(host, length) {
                Ok(temp) => {
                    read_next(host, start, end, temp.id(), 0)?;
                    if let Some(part) = part {
                        let from = (part.offset - start) as u32;
                        host.copy(PAYLOAD, part.at, temp.id(), from, (part.end - part.offset) as u32);
                    }
                    host.scratch_pwrite(start, length, temp.id(), 0)
                }
                // No room for a detour: what is wanted is read, nothing is kept.
                Err(error) => match part {
                    Some(part) => {
                        read_next(host, part.offset, part.end, PAYLOAD, part.at)?;
                        Err(error)
                    }
                    None => return Ok(copied),
                },
            },
        };
        match stored {
            Ok(()) => copied.kept += host.set(map, block, n, 1 << 0, to),
            Err(error) => copied.full |= error.is_full(),
        }
        if stored.is_err() && want.is_none() {
            return Ok(copied);
        }
        block += n;
    }
    Ok(copied)
}
