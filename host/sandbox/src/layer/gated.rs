//! The handle of a filter that imports `gate`: data requests enter the layer through its gate. All
//! other filters have the plain handle, so the gate costs them nothing.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Disk, Done, Errno, Extents, Flags, Handle, Op, RangeCommand, Result,
    Span,
};

use super::handle::FilterHandle;

/// The handle of one connection.
pub(super) struct GatedHandle(pub(super) Arc<FilterHandle>);

impl GatedHandle {
    /// Begins an operation as soon as the gate is open. `refused` is its answer if the client has
    /// gone before, or the server stops.
    fn enter<P: Send + 'static, T: Send + 'static>(
        &self,
        payload: P,
        begin: impl FnOnce(&FilterHandle, P) -> Op<T> + Send + 'static,
        refused: fn(P) -> T,
    ) -> Op<T> {
        let conn = self.0.0.connection();
        if let Some(passage) = conn.shared.gate.try_enter() {
            return match begin(&self.0, payload) {
                Op::Later(operation) => Op::later(async move {
                    let answer = operation.await;
                    drop(passage);
                    answer
                }),
                done => done,
            };
        }
        let (handle, conn) = (Arc::clone(&self.0), Arc::clone(conn));
        Op::later(async move {
            let Some(passage) = conn.shared.gate.enter(conn.client(), &conn.shared.stopping).await else {
                return refused(payload);
            };
            // A match, because awaiting an `Op` needs `T: Unpin`.
            let answer = match begin(&handle, payload) {
                Op::Later(operation) => operation.await,
                Op::Ready(answer) => answer,
                Op::Taken => std::future::pending().await,
            };
            drop(passage);
            answer
        })
    }

    fn enter_without_payload<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&FilterHandle) -> Op<Result<T>> + Send + 'static,
    ) -> Op<Result<T>> {
        self.enter((), |handle, ()| begin(handle), |()| Err(Errno::Eshutdown.into()))
    }
}

/// The answer of a read or a write that did not enter.
fn refused(buffer: Buffer) -> Done {
    (buffer, Err(Errno::Eshutdown.into()))
}

impl Handle for GatedHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        self.0.get_size()
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        self.0.block_size()
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.0.export_description()
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        self.0.disk()
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        self.0.can()
    }

    fn is_prompt(&self) -> bool {
        self.0.is_prompt()
    }

    fn drops_reads(&self) -> bool {
        self.0.drops_reads()
    }

    fn takes_long(&self, command: RangeCommand) -> bool {
        self.0.takes_long(command)
    }

    fn zero_step(&self) -> u32 {
        self.0.zero_step()
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.enter(buffer, move |handle, buffer| handle.pread(buffer, span, offset), refused)
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.enter(buffer, move |handle, buffer| handle.pwrite(buffer, span, offset, flags), refused)
    }

    fn flush(&self) -> Op<Result<()>> {
        self.enter_without_payload(Handle::flush)
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.enter_without_payload(move |handle| handle.trim(offset, length, flags))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.enter_without_payload(move |handle| handle.zero(offset, length, flags))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.enter_without_payload(move |handle| handle.cache(offset, length))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.enter_without_payload(move |handle| handle.extents(offset, length, flags))
    }

    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        self.0.finalize()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
