//! `rbdkit:filter/request`.

use std::sync::atomic::Ordering::Relaxed;

use wasmtime::Result;

use super::phases::OPEN_DATA;
use crate::connection::bindings::host::request::Host;
use crate::connection::waiting::WaitPolicy;
use crate::guest::call::Phase;
use crate::guest::context::Context;
use crate::guest::fault::mistake;

impl Host for Context {
    fn connection(&mut self) -> Result<u64> {
        self.require(OPEN_DATA.or(Phase::BEFORE), "request.connection")?;
        let client = self.call.client();
        Ok(client.ok_or_else(|| mistake("it called request.connection where there is no connection"))?.id)
    }

    fn exportname(&mut self) -> Result<String> {
        Ok(self.conn("request.exportname")?.exportname.clone())
    }

    fn readonly(&mut self) -> Result<bool> {
        Ok(self.conn("request.readonly")?.readonly)
    }

    fn handle(&mut self) -> Result<u64> {
        Ok(self.conn("request.handle")?.handle.load(Relaxed))
    }

    fn cancelled(&mut self) -> Result<bool> {
        let is_needed = self.call.wait_policy() == WaitPolicy::UntilDone;
        let conn = self.conn("request.cancelled")?;
        Ok(!is_needed && (conn.client().is_gone() || conn.shared.stopping.is_set()))
    }
}
