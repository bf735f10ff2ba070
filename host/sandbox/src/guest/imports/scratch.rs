//! `rbdkit:filter/scratch`.

use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Done, Errno, Op, Span};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

use super::lend::{BufferPart, ImportFuture, bound_by_hand, lend};
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::scratch::Host;
use crate::connection::bindings::host::types::Scope;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::Access;
use crate::guest::context::Context;
use crate::state::Scratch;

/// Binds the reads and writes ([`lend`](super::lend)).
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    let mut scratch = linker.instance("rbdkit:filter/scratch@0.1.0")?;
    scratch.func_wrap_async("pread", pread)?;
    scratch.func_wrap_async("pwrite", pwrite)
}

/// Lends a part of a guest's buffer to an operation of a scope's scratch file. `function` is the
/// function's name, for messages.
fn lend_to_scratch<'a>(
    store: StoreContextMut<'a, Context>,
    part: BufferPart,
    scope: Scope,
    function: &str,
    operation: impl FnOnce(&Arc<Scratch>, Buffer, Span) -> Op<Done>,
) -> ImportFuture<'a> {
    lend(
        store,
        part,
        |context| {
            context.allow(OPEN_DATA)?;
            context.scope(scope, function)?;
            Ok(())
        },
        |context, buffer, span| match context.scope(scope, function) {
            Ok(scope) => operation(scope.scratch(), buffer, span),
            Err(_) => Op::Ready((buffer, Err(Errno::Enxio.into()))),
        },
    )
}

#[inline(always)]
pub(super) fn pread(
    store: StoreContextMut<'_, Context>,
    (scope, offset, length, buf, at): (Scope, u64, u32, u32, u32),
) -> ImportFuture<'_> {
    let part = BufferPart { buf, at, length, access: Access::Write };
    lend_to_scratch(store, part, scope, "scratch.pread", move |scratch, buffer, span| {
        scratch.pread(buffer, span, offset)
    })
}

#[inline(always)]
pub(super) fn pwrite(
    store: StoreContextMut<'_, Context>,
    (scope, offset, length, buf, at): (Scope, u64, u32, u32, u32),
) -> ImportFuture<'_> {
    let part = BufferPart { buf, at, length, access: Access::Read };
    lend_to_scratch(store, part, scope, "scratch.pwrite", move |scratch, buffer, span| {
        scratch.pwrite(buffer, span, offset)
    })
}

impl Host for Context {
    async fn pread(&mut self, _: Scope, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn pwrite(&mut self, _: Scope, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn punch(&mut self, scope: Scope, offset: u64, length: u64) -> Result<(), ImportError> {
        self.allow(OPEN_DATA)?;
        let scratch = Arc::clone(self.scope(scope, "scratch.punch")?.scratch());
        let result = self.wait_for(0, || scratch.punch(offset, length)).await?;
        Ok(self.answer(result)?)
    }

    fn allocated(&mut self, scope: Scope) -> Result<u64> {
        Ok(self.scope(scope, "scratch.allocated")?.scratch().allocated())
    }

    fn quota(&mut self, scope: Scope) -> Result<u64> {
        Ok(self.scope(scope, "scratch.quota")?.scratch().quota())
    }
}
