//! `rbdkit:filter/maps`.

use std::sync::Arc;

use wasmtime::Result;

use super::phases::OPEN_DATA;
use crate::connection::bindings::host::maps::{Host, Run, When};
use crate::connection::bindings::host::types::Scope;
use crate::connection::import_error::ImportError;
use crate::guest::context::Context;
use crate::state::{BlockRun, ChangeTiming, Map};

impl Context {
    /// A map. `function` is the function's name, for the message.
    fn map(&self, scope: Scope, id: u32, function: &str) -> Result<&Map> {
        Ok(self.scope(scope, function)?.map(id)?)
    }
}

impl From<When> for ChangeTiming {
    fn from(when: When) -> ChangeTiming {
        match when {
            When::Now => ChangeTiming::Now,
            When::OnSuccess => ChangeTiming::OnSuccess,
            When::UndoOnFailure => ChangeTiming::UndoOnFailure,
        }
    }
}

impl Host for Context {
    fn resize(&mut self, scope: Scope, id: u32, block: u32, bytes: u64) -> Result<(), ImportError> {
        self.allow(OPEN_DATA)?;
        Ok(self.map(scope, id, "maps.resize")?.resize(block, bytes)?)
    }

    fn get_run(&mut self, scope: Scope, id: u32, first: u64, limit: u64) -> Result<Run> {
        let BlockRun { state, count } = self.map(scope, id, "maps.get-run")?.get_run(first, limit)?;
        Ok(Run { state, count })
    }

    fn find(&mut self, scope: Scope, id: u32, first: u64, states: u8) -> Result<Option<u64>> {
        Ok(self.map(scope, id, "maps.find")?.find(first, states)?)
    }

    fn set(&mut self, scope: Scope, id: u32, first: u64, count: u64, if_states: u8, to: u8, when: When) -> Result<u64> {
        let scope = Arc::clone(self.scope(scope, "maps.set")?);
        Ok(self.call.changes.set(&scope, id, first, count, if_states, to, when.into())?)
    }

    fn count(&mut self, scope: Scope, id: u32, state: u8) -> Result<u64> {
        Ok(self.map(scope, id, "maps.count")?.count(state)?)
    }
}
