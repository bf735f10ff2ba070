//! `rbdkit:filter/slots`.

use wasmtime::Result;

use crate::connection::bindings::host::slots::{Host, Words};
use crate::connection::bindings::host::types::Scope;
use crate::guest::context::Context;
use crate::guest::fault::mistake;
use crate::state::SlotWords;

impl Host for Context {
    fn get(&mut self, scope: Scope, slot: u32) -> Result<Words> {
        let SlotWords { version, a, b, c, d } = self.scope(scope, "slots.get")?.slots().get(slot)?;
        Ok(Words { version, a, b, c, d })
    }

    fn replace(&mut self, scope: Scope, slot: u32, version: u64, a: u64, b: u64, c: u64, d: u64) -> Result<bool> {
        let slots = self.scope(scope, "slots.replace")?.slots();
        Ok(slots.replace(slot, SlotWords { version, a, b, c, d })?)
    }

    fn add(&mut self, scope: Scope, slot: u32, delta: i64) -> Result<u64> {
        Ok(self.scope(scope, "slots.add")?.slots().add(slot, delta)?)
    }

    fn add_until_close(&mut self, scope: Scope, slot: u32, delta: i64) -> Result<u64> {
        let conn = self.conn("slots.add-until-close")?;
        let state = conn.scope(scope).map_err(|error| mistake(error.to_string()))?;
        Ok(conn.deltas.add(state, slot, delta)?)
    }
}
