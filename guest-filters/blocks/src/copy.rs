//! Moving data between next and scratch. The data never enters the guest.

use crate::block_size::TouchedBlocks;
use crate::host::{Host, HostError, PAYLOAD, TempBuffer};
use crate::states::{ABSENT, BlockStates};

/// The longest step in which blocks are moved, in bytes. It is long enough to hide the latency of
/// next, and short enough that other requests do not wait long for the lock on the blocks.
pub const CHUNK: u64 = 1 << 20;

/// Reads `offset..end` of next into a buffer, in requests that are no longer than next accepts.
///
/// # Errors
/// Those of next.
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

/// Writes a buffer to `offset..end` of next, in requests that are no longer than next accepts.
///
/// # Errors
/// Those of next. Part of the range may have been written then.
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

/// The part of the copied blocks that the request wants in its payload.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Where the part starts.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// Where the byte at `offset` goes in the payload.
    pub at: u32,
}

/// The result of [`copy_up`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// How many blocks were copied into scratch.
    pub kept: u64,
    /// Whether scratch was full.
    pub full: bool,
}

/// Copies `count` blocks, which are absent, from next into scratch, and sets their state to `to`.
/// The caller holds an exclusive lock on the blocks. If scratch is full, the function still reads
/// what is wanted, and does not fail.
///
/// # Errors
/// Those of next.
pub fn copy_up<H: Host>(
    states: &BlockStates<'_, H>,
    (first, count): (u64, u64),
    to: u8,
    wanted: Option<Wanted>,
) -> Result<Copied, H::Error> {
    let host = states.host;
    let size = host.size()?;
    let step = (CHUNK / states.block_size.bytes()).max(1);
    let mut copied = Copied::default();
    let (mut block, last) = (first, first + count);
    while block < last {
        let n = step.min(last - block);
        let (start, end) = states.block_size.span(block, n, size);
        let length = (end - start) as u32;
        let part = wanted.map(|wanted| Wanted {
            offset: wanted.offset.max(start),
            end: wanted.end.min(end),
            at: wanted.at + (wanted.offset.max(start) - wanted.offset) as u32,
        });
        let stored = match part {
            // All of the step is wanted: the payload serves as the buffer.
            Some(part) if part.offset == start && part.end == end => {
                read_next(host, start, end, PAYLOAD, part.at)?;
                host.scratch_pwrite(start, length, PAYLOAD, part.at)
            }
            _ => match TempBuffer::new(host, length) {
                Ok(temp) => {
                    read_next(host, start, end, temp.id(), 0)?;
                    if let Some(part) = part {
                        let from = (part.offset - start) as u32;
                        host.copy(PAYLOAD, part.at, temp.id(), from, (part.end - part.offset) as u32);
                    }
                    host.scratch_pwrite(start, length, temp.id(), 0)
                }
                // There is no memory for a buffer: read what is wanted, and keep nothing.
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
            Ok(()) => copied.kept += states.set(block, n, 1 << ABSENT, to),
            Err(error) => copied.full |= error.is_full(),
        }
        if stored.is_err() && wanted.is_none() {
            return Ok(copied);
        }
        block += n;
    }
    Ok(copied)
}

/// Stores a whole block in scratch: its present content, to which `change` was applied in a buffer.
/// The block is absent or reads as zero, and the caller holds an exclusive lock on it. Afterwards a
/// block that was in one of the states `from` is in state `to`.
///
/// # Errors
/// Those of next and scratch. The block is unchanged then.
pub fn merge_block<H: Host>(
    states: &BlockStates<'_, H>,
    block: u64,
    size: u64,
    (from, to): (u8, u8),
    change: impl FnOnce(u32),
) -> Result<(), H::Error> {
    let (start, end) = states.block_size.span(block, 1, size);
    let length = (end - start) as u32;
    let temp = TempBuffer::new(states.host, length)?;
    if states.state(block) == ABSENT {
        read_next(states.host, start, end, temp.id(), 0)?;
    }
    change(temp.id());
    states.host.scratch_pwrite(start, length, temp.id(), 0)?;
    states.set(block, 1, from, to);
    Ok(())
}

/// Merges a write of `buf` to `offset..end` into those blocks that it touches in part and that are
/// in one of the states `from`; they are in state `to` afterwards. Returns the rest of the range,
/// which may be empty. The caller holds an exclusive lock on the merged blocks.
///
/// # Errors
/// Those of [`merge_block`].
pub fn merge_edges<H: Host>(
    states: &BlockStates<'_, H>,
    (offset, end): (u64, u64),
    touched: TouchedBlocks,
    buf: u32,
    size: u64,
    (from, to): (u8, u8),
) -> Result<(u64, u64), H::Error> {
    let (mut rest_start, mut rest_end) = (offset, end);
    for block in touched.partial().filter(|block| states.is_in(*block, from)) {
        let (start, stop) = states.block_size.span(block, 1, size);
        let (lo, hi) = (offset.max(start), end.min(stop));
        merge_block(states, block, size, (from, to), |temp| {
            states.host.copy(temp, (lo - start) as u32, buf, (lo - offset) as u32, (hi - lo) as u32);
        })?;
        if lo == rest_start { rest_start = hi } else { rest_end = lo }
    }
    Ok((rest_start, rest_end))
}
