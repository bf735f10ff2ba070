//! `rbdkit:filter/gate`.

use std::sync::Arc;

use rbdkit_plugin_api::Errno;
use wasmtime::Result;

use crate::connection::bindings::host::gate::Host;
use crate::connection::import_error::ImportError;
use crate::guest::call::Phase;
use crate::guest::context::Context;

/// R and E: calls that are not within the layer as a request is.
const OUTSIDE: Phase = Phase::READY.or(Phase::EVENT);

impl Host for Context {
    async fn close(&mut self) -> Result<(), ImportError> {
        if self.call.phase.is_in(Phase::DATA) {
            return Err(Errno::Edeadlk.into());
        }
        self.allow(OUTSIDE)?;
        let shared = Arc::clone(&self.shared);
        shared.gate.close();
        let wait = async {
            tokio::select! {
                biased;
                () = shared.gate.until_empty() => Ok(()),
                () = shared.stopping.wait() => Err(Errno::Eshutdown),
                () = tokio::time::sleep(shared.limits.setup) => Err(Errno::Etimedout),
            }
        };
        Ok(self.clock.waiting(|| wait).await?)
    }

    fn open(&mut self) -> Result<()> {
        self.require(OUTSIDE.or(Phase::DATA), "gate.open")?;
        self.shared.gate.open();
        Ok(())
    }
}
