//! The handle that the chain calls: each operation goes to the guest if it exports the operation,
//! and to the layer below otherwise.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Disk, Done, Errno, Extents, Flags, Handle, Op, RangeCommand, Result,
    Span,
};

use super::calls::CallServer;
use crate::connection::bindings::host::types as wit;
use crate::guest::export_calls::{CacheCall, ExportCall, FlushCall, TrimCall, ZeroCall};
use crate::guest::exported::Exported;
use crate::guest::instance::{Transfer, TransferKind};

/// The handle of one connection.
pub(super) struct FilterHandle(pub(crate) Arc<CallServer>);

impl FilterHandle {
    fn server(&self) -> Arc<CallServer> {
        Arc::clone(&self.0)
    }

    fn exported(&self) -> &Exported {
        self.0.exported()
    }

    /// An operation that only the guest can do.
    fn guest(&self, call: impl ExportCall<Answer = ()> + 'static) -> Op<Result<()>> {
        Op::later(self.server().data(call))
    }
}

impl Handle for FilterHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        match self.exported().info {
            true => Op::later(self.server().size()),
            false => self.0.pass(|hop| Op::Ready(Ok(hop.size()))),
        }
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        match self.exported().info {
            true => Op::later(self.server().block_size()),
            false => self.0.pass(|hop| hop.block_sizes().map(Ok)),
        }
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        match self.exported().info {
            true => Op::later(self.server().description()),
            false => self.0.pass(|hop| hop.description().map(Ok)),
        }
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(self.0.disk())
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::later(self.server().offers())
    }

    fn is_prompt(&self) -> bool {
        // An opaque filter usually serves its own data, so the layer below does not decide.
        let below = || self.0.pass(|hop| Op::Ready(Ok(hop.is_prompt())));
        self.exported().transparent && matches!(below(), Op::Ready(Ok(true)))
    }

    fn takes_long(&self, command: RangeCommand) -> bool {
        // What passes by goes to the hop of the layer below, which knows its own layer. A guest
        // gets pieces: it can only be stopped between two calls.
        let exported = self.exported();
        let (export, passes) = match command {
            RangeCommand::Trim => (exported.trims, exported.transparent),
            RangeCommand::Zero => (exported.zeroes, exported.transparent),
            RangeCommand::Cache => (exported.caching, exported.transparent),
            // Without the export an opaque filter is all data.
            RangeCommand::Extents => (exported.mapping, true),
        };
        passes && !export
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if self.exported().reads {
            let transfer =
                Transfer { kind: TransferKind::Read, offset, length: span.len, flags: wit::CommandFlags::empty() };
            return Op::later_from(|| self.server().transfer(transfer, buffer, span));
        }
        self.0.pass_with(buffer, |hop, buffer| hop.pread(buffer, span, offset))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        if self.exported().writes {
            let transfer = Transfer { kind: TransferKind::Write, offset, length: span.len, flags: flags.into() };
            return Op::later_from(|| self.server().transfer(transfer, buffer, span));
        }
        if !self.exported().transparent {
            return Op::Ready((buffer, Err(Errno::Erofs.into())));
        }
        self.0.pass_with(buffer, |hop, buffer| hop.pwrite(buffer, span, offset, flags))
    }

    fn flush(&self) -> Op<Result<()>> {
        match self.exported().flushes {
            true => self.guest(FlushCall),
            false => self.0.pass(|hop| hop.flush()),
        }
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        match (self.exported().trims, self.exported().transparent) {
            (true, _) => self.guest(TrimCall { offset, length, flags: flags.into() }),
            (false, true) => self.0.pass(|hop| hop.trim(offset, length, flags)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("trim"))),
        }
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        match (self.exported().zeroes, self.exported().transparent) {
            (true, _) => self.guest(ZeroCall { offset, length, flags: flags.into() }),
            (false, true) => self.0.pass(|hop| hop.zero(offset, length, flags)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("zero"))),
        }
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        match (self.exported().caching, self.exported().transparent) {
            (true, _) => self.guest(CacheCall { offset, length }),
            (false, true) => self.0.pass(|hop| hop.cache(offset, length)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("cache"))),
        }
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        match (self.exported().mapping, self.exported().transparent) {
            (true, _) => Op::later(self.server().extents(offset, length, flags)),
            (false, true) => self.0.pass(|hop| hop.extents(offset, length, flags)),
            (false, false) => Op::Ready(Ok(Extents::all_data(offset, length))),
        }
    }

    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.server().finalize())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.server().close())
    }
}
