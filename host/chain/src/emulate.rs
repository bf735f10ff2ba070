//! What the gate does in place of a layer that cannot: zero by pwrite, FUA by flush, cache by pread.
//!
//! Each step is an ordinary request to the same hop, so it is queued and checked like any other and holds nothing in between.

use std::sync::Arc;

use rbdkit_plugin_api::{Done, Errno, Flags, Op, Result, Span, Support};

use super::Hop;

/// The most bytes that one step reads or writes: long enough that its cost disappears behind the I/O, short enough to be taken from the
/// pool's shelves.
pub const STEP: u32 = 1 << 20;

fn step(hop: &Hop) -> u32 {
    hop.block_sizes().map_or(STEP, |sizes| STEP.min(sizes.maximum).max(sizes.minimum))
}

pub(super) fn flush_after_write(hop: &Arc<Hop>, op: Op<Done>) -> Op<Done> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        let (buffer, result) = op.await;
        let result = match result {
            Ok(()) => hop.flush().await,
            failed => failed,
        };
        (buffer, result)
    })
}

pub(super) fn flush_after(hop: &Arc<Hop>, op: Op<Result<()>>) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        op.await?;
        hop.flush().await
    })
}

/// Writes zeroes. Durable at the end if `flags.fua`.
pub(super) fn zero_by_pwrite(hop: &Arc<Hop>, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        let native_fua = flags.fua && hop.can().fua == Support::Native;
        let each = Flags { fua: native_fua, ..Flags::NONE };
        let longest = u64::from(step(&hop));
        let (mut at, end) = (offset, offset + length);
        let mut buffer = hop.pool().take(length.min(longest) as u32);
        buffer.set_zero(buffer.span());
        while at < end {
            let len = (end - at).min(longest);
            let (returned, result) = hop.pwrite(buffer, Span::new(0, len as u32), at, each).await;
            result?;
            buffer = returned;
            at += len;
        }
        if flags.fua && !native_fua { hop.flush().await } else { Ok(()) }
    })
}

/// nbdkit's rule: a layer that zeroes natively may refuse a range with ENOTSUP, and it is written instead.
pub(super) fn zero_if_refused(
    hop: &Arc<Hop>,
    op: Op<Result<()>>,
    offset: u64,
    length: u64,
    flags: Flags,
) -> Op<Result<()>> {
    if let Op::Ready(Ok(())) = op {
        return op;
    }
    let hop = Arc::clone(hop);
    Op::later(async move {
        match op.await {
            Err(error) if error.errno() == Errno::Enotsup => zero_by_pwrite(&hop, offset, length, flags).await,
            answer => answer,
        }
    })
}

/// Reads into nowhere: the layers below warm up on the way.
pub(super) fn cache_by_pread(hop: &Arc<Hop>, offset: u64, length: u64) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        let longest = u64::from(step(&hop));
        let (mut at, end) = (offset, offset + length);
        let mut buffer = hop.pool().take(length.min(longest) as u32);
        while at < end {
            let len = (end - at).min(longest);
            let (returned, result) = hop.pread(buffer, Span::new(0, len as u32), at).await;
            result?;
            buffer = returned;
            at += len;
        }
        Ok(())
    })
}
