//! Waits for an operation of the layers below that uses no buffer of the guest.

use rbdkit_plugin_api::{Errno, Op};

use crate::connection::charge::Charge;
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
    /// Waits for an operation that keeps at most `bytes` bytes of its own, which are charged.
    ///
    /// # Errors
    /// ENOMEM if the bytes cannot be charged. A trap if the client leaves in the meantime.
    pub(super) async fn wait_for<T: Send + 'static>(
        &mut self,
        bytes: u64,
        begin: impl FnOnce() -> Op<T>,
    ) -> Result<T, ImportError> {
        let charge = match bytes {
            0 => None,
            bytes => Some(Charge::new(&self.shared.buffers, bytes).ok_or(Errno::Enomem)?),
        };
        let wait = self.clock.wait();
        match begin() {
            Op::Ready(answer) => {
                self.clock.end(&wait);
                Ok(answer)
            }
            Op::Later(operation) => {
                let mut operation = Awaited::new(operation, Bytes::Request(bytes), wait);
                let answer = std::future::poll_fn(|cx| operation.poll(self, cx)).await?;
                drop(charge);
                Ok(answer)
            }
            Op::Taken => Err(wasmtime::format_err!("an operation that was polled to its end").into()),
        }
    }
}
