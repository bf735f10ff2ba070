//! Emulates operations that a layer does not have: zero by pwrite, FUA by flush, cache by pread.
//!
//! Each step is an ordinary request to the same hop. So it is queued and checked like any other
//! request, and holds no permit between steps. A long request ([`super::long`]) ends between two
//! steps when its client has gone.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BlockSizes, Buffer, Capabilities, Client, Done, Errno, Flags, MAX_REQUEST, Op, Pool, Result, Span, Support,
};

use super::long::{between_pieces, is_long};

/// The most bytes that one step reads, or writes to a layer that asks for nothing else
/// ([`Steps::zero_step`]). At this size the cost of a step is small compared with its I/O, and the
/// pool keeps buffers of this size.
pub const STEP: u32 = 1 << 20;

/// The requests that emulation consists of. A hop implements this trait, so that this file does not
/// import the hop's.
pub(super) trait Steps: Send + Sync + 'static {
    fn can(&self) -> Capabilities;
    fn client(&self) -> &Arc<Client>;
    fn block_sizes(self: &Arc<Self>) -> Op<Option<BlockSizes>>;
    fn pool(&self) -> &Pool;
    /// See [`rbdkit_plugin_api::Handle::zero_step`].
    fn zero_step(&self) -> u32;
    fn pread(self: &Arc<Self>, buffer: Buffer, span: Span, offset: u64) -> Op<Done>;
    fn pwrite(self: &Arc<Self>, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done>;
    fn flush(self: &Arc<Self>) -> Op<Result<()>>;
}

/// `step` within the layer's block sizes.
async fn within_block_sizes(hop: &Arc<impl Steps>, step: u32) -> u32 {
    hop.block_sizes().await.map_or(step, |sizes| step.min(sizes.maximum).max(sizes.minimum))
}

/// A buffer of zeroes. One that is longer than [`STEP`] takes no memory: the kernel gives fresh
/// memory its pages when it is written, and nobody writes these.
fn zeroes(pool: &Pool, length: u32) -> Buffer {
    if length > STEP {
        return Buffer::from_vec(vec![0; length as usize]);
    }
    let mut buffer = pool.take(length);
    buffer.set_zero(buffer.span());
    buffer
}

/// FUA of a write.
pub(super) fn flush_after_write<H: Steps>(hop: &Arc<H>, op: Op<Done>) -> Op<Done> {
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

/// FUA of a request without data.
pub(super) fn flush_after<H: Steps>(hop: &Arc<H>, op: Op<Result<()>>) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        op.await?;
        hop.flush().await
    })
}

/// Writes zeroes. They are durable at the end if `flags.fua`.
pub(super) fn zero_by_pwrite<H: Steps>(hop: &Arc<H>, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        let native_fua = flags.fua && hop.can().fua == Support::Native;
        let each = Flags { fua: native_fua, ..Flags::NONE };
        let longest = u64::from(within_block_sizes(&hop, hop.zero_step().clamp(1, MAX_REQUEST)).await);
        let (mut at, end) = (offset, offset + length);
        let mut buffer = zeroes(hop.pool(), length.min(longest) as u32);
        while at < end {
            let len = (end - at).min(longest);
            let (returned, result) = hop.pwrite(buffer, Span::new(0, len as u32), at, each).await;
            result?;
            buffer = returned;
            at += len;
            if is_long(length) && at < end {
                between_pieces(hop.client()).await?;
            }
        }
        if flags.fua && !native_fua { hop.flush().await } else { Ok(()) }
    })
}

/// Zeroes natively. As in nbdkit, the layer may refuse a range with ENOTSUP; then the range is
/// written.
pub(super) fn zero_if_refused<H: Steps>(
    hop: &Arc<H>,
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

/// Reads the range and drops the data: the layers below cache it on the way.
pub(super) fn cache_by_pread<H: Steps>(hop: &Arc<H>, offset: u64, length: u64) -> Op<Result<()>> {
    let hop = Arc::clone(hop);
    Op::later(async move {
        let longest = u64::from(within_block_sizes(&hop, STEP).await);
        let (mut at, end) = (offset, offset + length);
        let mut buffer = hop.pool().take(length.min(longest) as u32);
        while at < end {
            let len = (end - at).min(longest);
            let (returned, result) = hop.pread(buffer, Span::new(0, len as u32), at).await;
            result?;
            buffer = returned;
            at += len;
            if is_long(length) && at < end {
                between_pieces(hop.client()).await?;
            }
        }
        Ok(())
    })
}
