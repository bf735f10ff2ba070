//! `rbdkit:filter/counters`.

use rbdkit_plugin_api::Errno;
use wasmtime::Result;

use super::phases::NOT_CONFIGURE;
use crate::connection::bindings::host::counters::Host;
use crate::connection::import_error::ImportError;
use crate::guest::context::Context;
use crate::state::MAX_KEYS;

impl Host for Context {
    fn add(&mut self, key: u64, delta: u64) -> Result<(), ImportError> {
        self.require(NOT_CONFIGURE, "counters.add")?;
        Ok(self.shared.totals.add(key, delta)?)
    }

    fn add_all(&mut self, additions: Vec<(u64, u64)>) -> Result<(), ImportError> {
        self.require(NOT_CONFIGURE, "counters.add-all")?;
        if additions.len() > MAX_KEYS {
            return Err(Errno::Einval.into());
        }
        let mut result = Ok(());
        for (key, delta) in additions {
            if let Err(errno) = self.shared.totals.add(key, delta) {
                result = Err(errno.into());
            }
        }
        result
    }

    fn get(&mut self, key: u64) -> Result<u64> {
        self.require(NOT_CONFIGURE, "counters.get")?;
        Ok(self.shared.totals.get(key))
    }

    fn list(&mut self) -> Result<Vec<(u64, u64)>> {
        self.require(NOT_CONFIGURE, "counters.list")?;
        Ok(self.shared.totals.list())
    }
}
