//! `rbdkit:filter/clock`.

use wasmtime::Result;

use crate::connection::bindings::host::clock::Host;
use crate::guest::context::Context;

impl Host for Context {
    fn monotonic(&mut self) -> Result<u64> {
        Ok(self.now())
    }

    fn realtime(&mut self) -> Result<u64> {
        Ok(u64::try_from(self.inputs.realtime().as_nanos()).unwrap_or(u64::MAX))
    }

    fn random(&mut self) -> Result<u64> {
        self.inputs.word()
    }
}
