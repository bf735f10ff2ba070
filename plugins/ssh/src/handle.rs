//! A client's view of the file.

use std::sync::Arc;

use rbdkit_plugin_api::{BoxFuture, Buffer, Capabilities, Done, Flags, Handle, Op, Result, Span, Support};

use crate::open::Opened;
use crate::session::Session;

pub(crate) struct SshHandle {
    session: Arc<Session>,
    /// The server's handle for the file.
    handle: Arc<[u8]>,
    size: u64,
    writable: bool,
}

impl SshHandle {
    pub(crate) fn new(opened: Opened) -> SshHandle {
        let Opened { session, handle, size, writable } = opened;
        SshHandle { session, handle: handle.into(), size, writable }
    }
}

impl Handle for SshHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        // The fsync extension marks OpenSSH's server. It writes straight to the file, so its fsync
        // covers the writes of other connections too. Other servers may buffer writes, so they are
        // offered neither flush nor several connections.
        let fsync = self.session.has_fsync();
        Op::Ready(Ok(Capabilities {
            write: self.writable,
            flush: fsync,
            multi_conn: fsync,
            zero: Support::Emulate,
            fua: Support::Emulate,
            ..Capabilities::READ_ONLY
        }))
    }

    /// A dropped read frees its buffer. Its answers are read and ignored.
    fn drops_reads(&self) -> bool {
        true
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let (session, handle) = (Arc::clone(&self.session), Arc::clone(&self.handle));
        Op::later(async move { session.read(&handle, buffer, span, offset).await })
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _flags: Flags) -> Op<Done> {
        let (session, handle) = (Arc::clone(&self.session), Arc::clone(&self.handle));
        Op::later(async move {
            let result = session.write(&handle, &buffer, span, offset).await;
            (buffer, result)
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        let (session, handle) = (Arc::clone(&self.session), Arc::clone(&self.handle));
        Op::later(async move { session.fsync(&handle).await })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.session.close(Some(&self.handle)).await })
    }
}
