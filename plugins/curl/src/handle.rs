//! One client's connection.

use std::sync::Arc;

use rbdkit_plugin_api::{BoxFuture, Buffer, Capabilities, Done, Flags, Handle, Op, Result, Span, Support};

use crate::disk::Disk;
use crate::remote::Remote;

pub(crate) struct CurlHandle {
    remote: Arc<Remote>,
    disk: Arc<Disk>,
    readonly: bool,
}

impl CurlHandle {
    pub(crate) fn new(remote: Arc<Remote>, disk: Disk, readonly: bool) -> CurlHandle {
        CurlHandle { remote, disk: Arc::new(disk), readonly }
    }
}

impl Handle for CurlHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.disk.size))
    }

    /// HTTP has no flush: a write has reached the server when it is answered.
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(match self.readonly {
            true => Capabilities { multi_conn: true, ..Capabilities::READ_ONLY },
            false => Capabilities { write: true, zero: Support::Emulate, ..Capabilities::READ_ONLY },
        }))
    }

    /// The driver's thread does the work.
    fn is_prompt(&self) -> bool {
        true
    }

    /// The driver drops the buffer of a request that nobody waits for.
    fn drops_reads(&self) -> bool {
        true
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        Op::later(Arc::clone(&self.remote).read(Arc::clone(&self.disk), buffer, span, offset))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _flags: Flags) -> Op<Done> {
        Op::later(Arc::clone(&self.remote).write(Arc::clone(&self.disk), buffer, span, offset))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.remote.closed())
    }
}
