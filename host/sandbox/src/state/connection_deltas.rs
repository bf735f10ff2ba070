//! What a connection adds to slots until it closes.
//!
//! A filter that counts open connections may never count down, because its instance may trap. So
//! the host remembers what each connection added, and takes it back when the connection ends,
//! however it ends.

use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::lock;

use super::misuse::Misuse;
use super::scope::ScopeState;

/// What one connection has added to slots. [`ConnectionDeltas::take_back`] takes it back, at the
/// latest when this is dropped.
#[derive(Default)]
pub struct ConnectionDeltas(Mutex<Vec<Delta>>);

struct Delta {
    scope: Arc<ScopeState>,
    slot: u32,
    sum: i64,
}

impl ConnectionDeltas {
    /// Adds to word a of a slot of `scope` until this connection closes. Answers the word's new
    /// value.
    pub fn add(&self, scope: &Arc<ScopeState>, slot: u32, delta: i64) -> Result<u64, Misuse> {
        let mut deltas = lock(&self.0);
        let sum = scope.slots().add(slot, delta)?;
        // One entry for each slot, so the list is never longer than the number of slots, however
        // often a guest adds.
        match deltas.iter_mut().find(|known| known.slot == slot && Arc::ptr_eq(&known.scope, scope)) {
            Some(known) => known.sum = known.sum.wrapping_add(delta),
            None => deltas.push(Delta { scope: Arc::clone(scope), slot, sum: delta }),
        }
        Ok(sum)
    }

    /// The connection has closed: undoes what it added. A second call does nothing.
    pub fn take_back(&self) {
        let deltas = std::mem::take(&mut *lock(&self.0));
        for delta in deltas {
            // Cannot fail: the slot existed when it was added to. A sum of i64::MIN is its own
            // negative, which is right in wrapping arithmetic.
            let _ = delta.scope.slots().add(delta.slot, delta.sum.wrapping_neg());
        }
    }
}

impl Drop for ConnectionDeltas {
    fn drop(&mut self) {
        self.take_back();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FilterState, StateLimits};
    use super::*;

    #[test]
    fn what_a_connection_added_is_gone_when_it_closes() {
        let state = FilterState::new(StateLimits::default());
        let (one, two) = (ConnectionDeltas::default(), ConnectionDeltas::default());
        assert_eq!(one.add(state.server(), 0, 1), Ok(1));
        assert_eq!(two.add(state.server(), 0, 1), Ok(2));
        assert_eq!(one.add(state.server(), 0, 5), Ok(7));
        assert_eq!(one.0.lock().unwrap().len(), 1);
        one.take_back();
        one.take_back();
        assert_eq!(state.server().slots().get(0).unwrap().a, 1);
        drop(two);
        assert_eq!(state.server().slots().get(0).unwrap().a, 0);
    }
}
