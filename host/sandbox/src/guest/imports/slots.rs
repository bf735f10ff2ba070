//! `rbdkit:filter/slots`.

use wasmtime::Result;

use crate::connection::bindings::host::slots::{Host, Words};
use crate::connection::bindings::host::types::Scope;
use crate::guest::call::Phase;
use crate::guest::context::Context;
use crate::guest::fault::mistake;
use crate::state::{SlotWords, Slots};

impl Context {
    /// The slots of a scope. A call without a connection has those of the server.
    fn slots(&self, scope: Scope, function: &str) -> Result<&Slots> {
        if scope == Scope::Server && self.call.phase != Phase::CONFIGURE {
            return Ok(self.shared.state.server().slots());
        }
        Ok(self.scope(scope, function)?.slots())
    }
}

impl Host for Context {
    fn get(&mut self, scope: Scope, slot: u32) -> Result<Words> {
        let SlotWords { version, a, b, c, d } = self.slots(scope, "slots.get")?.get(slot)?;
        Ok(Words { version, a, b, c, d })
    }

    fn replace(&mut self, scope: Scope, slot: u32, version: u64, a: u64, b: u64, c: u64, d: u64) -> Result<bool> {
        let slots = self.slots(scope, "slots.replace")?;
        Ok(slots.replace(slot, SlotWords { version, a, b, c, d })?)
    }

    fn add(&mut self, scope: Scope, slot: u32, delta: i64) -> Result<u64> {
        Ok(self.slots(scope, "slots.add")?.add(slot, delta)?)
    }

    fn add_until_close(&mut self, scope: Scope, slot: u32, delta: i64) -> Result<u64> {
        let conn = self.conn("slots.add-until-close")?;
        let state = conn.scope(scope).map_err(|error| mistake(error.to_string()))?;
        Ok(conn.deltas.add(state, slot, delta)?)
    }
}
