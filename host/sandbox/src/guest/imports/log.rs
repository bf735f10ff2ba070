//! `rbdkit:filter/log`.

use wasmtime::Result;

use crate::connection::bindings::host::log::Host;
use crate::connection::log::Level;
use crate::guest::context::Context;

impl Host for Context {
    fn error(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Error, &message);
        Ok(())
    }

    fn warn(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Warn, &message);
        Ok(())
    }

    fn info(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Info, &message);
        Ok(())
    }

    fn debug(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Debug, &message);
        Ok(())
    }
}
