//! Waits for an operation of the layers below that uses no buffer of the guest.

use rbdkit_plugin_api::Op;
use wasmtime::Result;

use crate::connection::import_error::ImportError;
use crate::guest::awaited::Awaited;
use crate::guest::buffers::Bytes;
use crate::guest::clock::Overrun;
use crate::guest::context::Context;

impl From<Overrun> for ImportError {
    fn from(overrun: Overrun) -> ImportError {
        ImportError::Trap(overrun.into())
    }
}

impl Context {
    /// Waits for an operation that keeps at most `bytes` bytes of its own.
    ///
    /// # Errors
    /// A trap if the client leaves in the meantime.
    pub(super) async fn wait_for<T: Send + 'static>(&mut self, bytes: u64, begin: impl FnOnce() -> Op<T>) -> Result<T> {
        let wait = self.clock.wait();
        match begin() {
            Op::Ready(answer) => {
                self.clock.end(&wait);
                Ok(answer)
            }
            Op::Later(operation) => {
                let mut operation = Awaited::new(operation, Bytes::Request(bytes), wait);
                Ok(std::future::poll_fn(|cx| operation.poll(self, cx)).await?)
            }
            Op::Taken => Err(wasmtime::format_err!("an operation that was polled to its end")),
        }
    }
}
