//! `rbdkit:filter/storage`.

use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Done, Op, Span};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

use super::lend::{BufferPart, ImportFuture, bound_by_hand, lend};
use super::phases::{NOT_CONFIGURE, OPEN_DATA};
use crate::connection::bindings::host::storage::Host;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::Access;
use crate::guest::context::Context;
use crate::state::Storage;

/// The parameter, its occurrence, the offset, the length, the buffer and the position in it.
pub(super) type StoragePart = (String, u32, u64, u32, u32, u32);

/// Binds the reads and writes ([`lend`](super::lend)).
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    let mut storage = linker.instance("rbdkit:filter/storage@0.1.0")?;
    storage.func_wrap_async("pread", pread)?;
    storage.func_wrap_async("pwrite", pwrite)
}

/// Lends a part of a guest's buffer to an operation of a file.
fn lend_to_storage<'a>(
    store: StoreContextMut<'a, Context>,
    (param, nth, _, length, buf, at): StoragePart,
    access: Access,
    operation: impl FnOnce(&Arc<Storage>, Buffer, Span) -> Op<Done>,
) -> ImportFuture<'a> {
    lend(
        store,
        BufferPart { buf, at, length, access },
        |context| {
            context.allow(OPEN_DATA)?;
            context.shared.files.storage(&param, nth)?;
            Ok(())
        },
        |context, buffer, span| match context.shared.files.storage(&param, nth) {
            Ok(storage) => operation(storage, buffer, span),
            Err(errno) => Op::Ready((buffer, Err(errno.into()))),
        },
    )
}

pub(super) fn pread(store: StoreContextMut<'_, Context>, part: StoragePart) -> ImportFuture<'_> {
    let offset = part.2;
    lend_to_storage(store, part, Access::Write, move |storage, buffer, span| storage.pread(buffer, span, offset))
}

pub(super) fn pwrite(store: StoreContextMut<'_, Context>, part: StoragePart) -> ImportFuture<'_> {
    let offset = part.2;
    lend_to_storage(store, part, Access::Read, move |storage, buffer, span| storage.pwrite(buffer, span, offset))
}

impl Context {
    /// The file of a parameter.
    fn storage(&self, param: &str, nth: u32) -> Result<Arc<Storage>, ImportError> {
        self.allow(NOT_CONFIGURE)?;
        Ok(Arc::clone(self.shared.files.storage(param, nth)?))
    }
}

impl Host for Context {
    fn size(&mut self, param: String, nth: u32) -> Result<u64, ImportError> {
        let size = self.storage(&param, nth)?.size();
        Ok(self.answer(size)?)
    }

    async fn resize(&mut self, param: String, nth: u32, size: u64) -> Result<(), ImportError> {
        let storage = self.storage(&param, nth)?;
        let result = self.wait_for(0, || storage.resize(size)).await?;
        Ok(self.answer(result)?)
    }

    fn allocated(&mut self, param: String, nth: u32) -> Result<u64, ImportError> {
        let allocated = self.storage(&param, nth)?.allocated();
        Ok(self.answer(allocated)?)
    }

    async fn pread(&mut self, _: String, _: u32, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn pwrite(&mut self, _: String, _: u32, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn read(&mut self, param: String, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, ImportError> {
        let storage = self.storage(&param, nth)?;
        let bytes = self.wait_for(u64::from(length), || storage.read(offset, length)).await?;
        Ok(self.answer(bytes)?)
    }

    async fn write(&mut self, param: String, nth: u32, offset: u64, data: Vec<u8>) -> Result<(), ImportError> {
        let storage = self.storage(&param, nth)?;
        let result = self.wait_for(data.len() as u64, || storage.write(offset, data)).await?;
        Ok(self.answer(result)?)
    }

    async fn punch(&mut self, param: String, nth: u32, offset: u64, length: u64) -> Result<(), ImportError> {
        let storage = self.storage(&param, nth)?;
        let result = self.wait_for(0, || storage.punch(offset, length)).await?;
        Ok(self.answer(result)?)
    }

    async fn flush(&mut self, param: String, nth: u32) -> Result<(), ImportError> {
        let storage = self.storage(&param, nth)?;
        let result = self.wait_for(0, || storage.flush()).await?;
        Ok(self.answer(result)?)
    }
}
