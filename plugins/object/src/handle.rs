//! What a client sees.

use std::future::Future;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt, stream};
use rbdkit_plugin_api::{BlockSizes, BoxFuture, Errno, Error};
use rbdkit_plugin_api::{
    Buffer, Capabilities, Disk, DiskId, Done, Extents, Flags, Handle, Op, Result, Span, Support, lock,
};

use crate::blocks::{AT_A_TIME, Blocks};
use crate::pieces::pieces;
use crate::single::{PIECE, Single};
use crate::store::Purpose;

/// One connection to a disk that is one object.
pub(crate) struct SingleHandle(pub(crate) Arc<Single>);

/// One connection to a disk of many objects.
pub(crate) struct BlocksHandle {
    pub(crate) blocks: Arc<Blocks>,
    pub(crate) readonly: bool,
}

/// Reads into a buffer, and returns it.
async fn read_into<F>(buffer: Buffer, read: impl FnOnce(Arc<Mutex<Buffer>>) -> F) -> Done
where
    F: Future<Output = Result<()>>,
{
    let shared = Arc::new(Mutex::new(buffer));
    let result = read(Arc::clone(&shared)).await;
    // The pieces have ended, so nobody else has it.
    match Arc::into_inner(shared) {
        Some(buffer) => (buffer.into_inner().unwrap_or_else(|lost| lost.into_inner()), result),
        None => (Buffer::new(0), Err(Error::new(Errno::Eio, "object: a read did not return its buffer"))),
    }
}

impl Handle for SingleHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.size()))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async { Ok(Disk::Is(DiskId::DEFAULT)) })
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities { multi_conn: true, ..Capabilities::READ_ONLY }))
    }

    fn is_prompt(&self) -> bool {
        true
    }

    fn drops_reads(&self) -> bool {
        true
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let single = Arc::clone(&self.0);
        Op::later(read_into(buffer, move |buffer| async move {
            let parts = stream::iter(pieces(offset, span.len.into(), PIECE)).map(|piece| {
                let (single, buffer) = (&single, &buffer);
                async move {
                    let at = span.at + piece.at as u32;
                    let take = |within: u64, part: &[u8]| lock(buffer).put(at + within as u32, part);
                    let from = offset + piece.at;
                    single.read(from..from + piece.length(), &take).await
                }
            });
            parts.buffer_unordered(AT_A_TIME).try_collect().await
        }))
    }
}

impl Handle for BlocksHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.blocks.size))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        let block = self.blocks.block_size;
        let preferred = u32::try_from(block).ok().filter(|block| block.is_power_of_two());
        Op::Ready(Ok(preferred.map(|preferred| BlockSizes {
            minimum: 1,
            preferred: preferred.min(32 << 20),
            maximum: u32::MAX,
        })))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async { Ok(Disk::Is(DiskId::DEFAULT)) })
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(match self.readonly {
            true => Capabilities { extents: true, multi_conn: true, ..Capabilities::READ_ONLY },
            false => Capabilities {
                write: true,
                flush: true,
                trim: true,
                fast_zero: true,
                extents: true,
                multi_conn: true,
                zero: Support::Native,
                fua: Support::Native,
                ..Capabilities::READ_ONLY
            },
        }))
    }

    fn is_prompt(&self) -> bool {
        true
    }

    fn drops_reads(&self) -> bool {
        true
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let blocks = Arc::clone(&self.blocks);
        Op::later(read_into(buffer, move |buffer| async move {
            let parts = stream::iter(pieces(offset, span.len.into(), blocks.block_size)).map(|piece| {
                let (blocks, buffer) = (&blocks, &buffer);
                async move {
                    let at = span.at + piece.at as u32;
                    let take = |within: u64, part: &[u8]| lock(buffer).put(at + within as u32, part);
                    if blocks.read_block(Purpose::Read, piece.block, piece.within.clone(), &take).await?.is_none() {
                        lock(buffer).set_zero(Span::new(at, piece.length() as u32));
                    }
                    Ok(())
                }
            });
            parts.buffer_unordered(AT_A_TIME).try_collect().await
        }))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _flags: Flags) -> Op<Done> {
        let blocks = Arc::clone(&self.blocks);
        Op::later(async move {
            let result = blocks.write(offset, buffer.data(span)).await;
            (buffer, result)
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        let blocks = Arc::clone(&self.blocks);
        Op::later(async move { blocks.flush().await })
    }

    fn trim(&self, offset: u64, length: u64, _flags: Flags) -> Op<Result<()>> {
        let blocks = Arc::clone(&self.blocks);
        Op::later(async move { blocks.trim(offset, length).await })
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let block = self.blocks.block_size;
        // A part of a block is read and written.
        if flags.fast_zero && (!offset.is_multiple_of(block) || !length.is_multiple_of(block)) {
            return Op::Ready(Err(Errno::Enotsup.into()));
        }
        let blocks = Arc::clone(&self.blocks);
        Op::later(async move { blocks.zero(offset, length).await })
    }

    fn extents(&self, offset: u64, length: u64, _flags: Flags) -> Op<Result<Extents>> {
        let blocks = Arc::clone(&self.blocks);
        Op::later(async move { blocks.extents(offset, length).await })
    }
}
