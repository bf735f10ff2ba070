//! `rbdkit:filter/next`.

use std::sync::Arc;

use rbdkit_chain::{Hop, STEP};
use rbdkit_plugin_api::{Buffer, Done, Errno, Extents, Flags, Op, Span};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

use super::lend::{BufferPart, ImportFuture, bound_by_hand, lend};
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::next::Host;
use crate::connection::bindings::host::types as wit;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::Access;
use crate::guest::context::Context;
use crate::guest::extents::EXTENT_BYTES;
use crate::guest::fault::mistake;

/// The most bytes about which a guest asks for extents if the filter's `buffers-total` has no room
/// for more: the list about them is the shortest that a request may need, and no block is larger.
const SHORT_ANSWER: u64 = 64 << 10;

impl Context {
    /// About how many of `length` bytes next, or a disk, is asked for extents, and the most bytes
    /// of its answer. An answer may end early, so a filter that is at its limit asks about fewer
    /// bytes.
    pub(super) fn extents_to_ask(&self, length: u64) -> (u64, u64) {
        let bytes = |length| EXTENT_BYTES * Extents::limit(length) as u64;
        let buffers = &self.shared.buffers;
        let free = buffers.limit().saturating_sub(buffers.used());
        // Half of what is free, because the answer is kept beside the list of next.
        let asked = if bytes(length) <= free / 2 { length } else { length.min(SHORT_ANSWER) };
        (asked, bytes(asked))
    }
}

/// Binds the reads and writes ([`lend`](super::lend)).
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    let mut next = linker.instance("rbdkit:filter/next@0.1.0")?;
    next.func_wrap_async("pread", pread)?;
    next.func_wrap_async("pwrite", pwrite)
}

/// Lends a part of a guest's buffer to an operation of the layer below.
fn lend_to_next(
    store: StoreContextMut<'_, Context>,
    part: BufferPart,
    operation: impl FnOnce(&Arc<Hop>, Buffer, Span) -> Op<Done>,
) -> ImportFuture<'_> {
    lend(
        store,
        part,
        |context| Ok(context.next().map(|_| ())?),
        |context, buffer, span| match context.next() {
            Ok(next) => operation(&next.hop, buffer, span),
            Err(_) => Op::Ready((buffer, Err(Errno::Enxio.into()))),
        },
    )
}

#[inline(always)]
pub(super) fn pread(
    store: StoreContextMut<'_, Context>,
    (offset, length, buf, at): (u64, u32, u32, u32),
) -> ImportFuture<'_> {
    let part = BufferPart { buf, at, length, access: Access::Write };
    lend_to_next(store, part, move |hop, buffer, span| hop.pread(buffer, span, offset))
}

#[inline(always)]
pub(super) fn pwrite(
    store: StoreContextMut<'_, Context>,
    (offset, length, buf, at, flags): (u64, u32, u32, u32, wit::CommandFlags),
) -> ImportFuture<'_> {
    let part = BufferPart { buf, at, length, access: Access::Read };
    lend_to_next(store, part, move |hop, buffer, span| hop.pwrite(buffer, span, offset, flags.into()))
}

impl Context {
    /// Next's extents of a range. The last one runs on up to `limit`, or to the end of the range if
    /// the limit lies before that.
    async fn extents_of_next(
        &mut self,
        offset: u64,
        length: u64,
        limit: u64,
        flags: wit::CommandFlags,
    ) -> Result<Extents, ImportError> {
        let next = Arc::clone(self.next()?);
        let flags = Flags { req_one: Flags::from(flags).req_one, ..Flags::NONE };
        let (asked, bytes) = self.extents_to_ask(length);
        let result = self.wait_for(bytes, || next.hop.extents(offset, asked, flags)).await?;
        let mut list = self.answer(result)?;
        // The gate has checked that the range does not overflow.
        list.cut(limit.max(offset + length));
        Ok(list)
    }
}

impl Host for Context {
    fn get_size(&mut self) -> Result<u64, ImportError> {
        Ok(self.next()?.hop.size())
    }

    fn can(&mut self) -> Result<wit::Capabilities, ImportError> {
        Ok(self.next()?.hop.can().into())
    }

    async fn block_size(&mut self) -> Result<wit::BlockSizes, ImportError> {
        let next = Arc::clone(self.next()?);
        let sizes = self.wait_for(0, || next.hop.block_sizes()).await?;
        Ok(sizes.ok_or(Errno::Enotsup)?.into())
    }

    async fn export_description(&mut self) -> Result<Option<String>> {
        self.require(OPEN_DATA, "next.export-description")?;
        let Ok(next) = self.next().map(Arc::clone) else { return Ok(None) };
        match self.wait_for(0, || next.hop.description()).await {
            Ok(description) => Ok(description),
            // Only a charge fails so.
            Err(ImportError::Errno(_)) => Ok(None),
            Err(ImportError::Trap(error)) => Err(error),
        }
    }

    async fn pread(&mut self, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn pwrite(&mut self, _: u64, _: u32, _: u32, _: u32, _: wit::CommandFlags) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn flush(&mut self) -> Result<(), ImportError> {
        let next = Arc::clone(self.next()?);
        let result = self.wait_for(0, || next.hop.flush()).await?;
        Ok(self.answer(result)?)
    }

    async fn flush_all(&mut self, scope: wit::Scope) -> Result<(), ImportError> {
        let next = Arc::clone(self.next()?);
        let conn = self.call.conn.clone().ok_or(Errno::Enxio)?;
        let (bytes, others) = conn.flush_others(scope).map_err(|error| error.errno())?;
        let flush = async move {
            let own = async { next.hop.flush().await };
            let (own, others) = tokio::join!(own, others);
            own.and(others)
        };
        let result = self.wait_for(bytes, || Op::later(flush)).await?;
        Ok(self.answer(result)?)
    }

    async fn trim(&mut self, offset: u64, length: u64, flags: wit::CommandFlags) -> Result<(), ImportError> {
        let next = Arc::clone(self.next()?);
        let result = self.wait_for(0, || next.hop.trim(offset, length, flags.into())).await?;
        Ok(self.answer(result)?)
    }

    async fn zero(&mut self, offset: u64, length: u64, flags: wit::CommandFlags) -> Result<(), ImportError> {
        let next = Arc::clone(self.next()?);
        let result = self.wait_for(length.min(STEP.into()), || next.hop.zero(offset, length, flags.into())).await?;
        Ok(self.answer(result)?)
    }

    async fn cache(&mut self, offset: u64, length: u64) -> Result<(), ImportError> {
        let next = Arc::clone(self.next()?);
        let result = self.wait_for(length.min(STEP.into()), || next.hop.cache(offset, length)).await?;
        Ok(self.answer(result)?)
    }

    async fn extents(
        &mut self,
        offset: u64,
        length: u64,
        flags: wit::CommandFlags,
    ) -> Result<Vec<wit::Extent>, ImportError> {
        self.extents_until(offset, length, 0, flags).await
    }

    async fn extents_forward(
        &mut self,
        offset: u64,
        length: u64,
        to: u64,
        flags: wit::CommandFlags,
    ) -> Result<(), ImportError> {
        self.extents_forward_until(offset, length, 0, to, flags).await
    }

    async fn extents_until(
        &mut self,
        offset: u64,
        length: u64,
        limit: u64,
        flags: wit::CommandFlags,
    ) -> Result<Vec<wit::Extent>, ImportError> {
        let list = self.extents_of_next(offset, length, limit, flags).await?;
        Ok(list.as_slice().iter().map(|extent| (*extent).into()).collect())
    }

    async fn extents_forward_until(
        &mut self,
        offset: u64,
        length: u64,
        limit: u64,
        to: u64,
        flags: wit::CommandFlags,
    ) -> Result<(), ImportError> {
        self.next()?;
        let expected = self.call.extents.as_ref().ok_or(Errno::Enxio)?.expected();
        if to != expected {
            return Err(mistake(format!("next.extents-forward to {to}, where {expected} had to follow")).into());
        }
        let list = self.extents_of_next(offset, length, limit, flags).await?;
        if let Some(answer) = &mut self.call.extents {
            answer.append(&list, length)?;
        }
        Ok(())
    }

    fn prefetch(&mut self, offset: u64, length: u64) -> Result<bool> {
        self.require(OPEN_DATA, "next.prefetch")?;
        let (Some(conn), Some(next)) = (&self.call.conn, self.call.next()) else { return Ok(false) };
        Ok(conn.prefetcher.ask(next, offset, length))
    }
}
