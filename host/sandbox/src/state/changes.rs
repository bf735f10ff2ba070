//! Changes of maps that are published or undone when a guest's call ends.
//!
//! A call may hold changes back until it succeeds, or have changes undone if it fails. The call's
//! [`Changes`] keeps both; dropping it counts as a failure.
//!
//! **Holding back.** A held-back change reserves all the memory that it may need at once, so
//! publishing it cannot fail. Each published change is atomic, but not all changes of a call
//! together.
//!
//! **Undoing.** Undoing starts with the last change, and resets a block only if it still has the
//! state that the call gave it. If another call has changed the block since, that change stays. A
//! block that another call changed *and changed back* looks unchanged, so it is reset as well. If
//! that would be wrong, the filter holds a range lock from the change until nothing can fail any
//! more. It is never wrong if the restored state is the safe one (dirty again, not cached again).
//! Memory that a change frees stays charged until the change can no longer be undone.

use std::sync::Arc;

use super::map::{Blocks, Change, LOGGED_RUN_BYTES, MemorySource, NO_MEMORY, UndoLog};
use super::misuse::Misuse;
use super::scope::ScopeState;

const TOO_MUCH: Misuse = Misuse("a call holds back more changes of maps than can be published at once");

/// What one change in a call's lists is charged in addition: 64 bytes in a vector that may be half
/// empty.
const LISTED_CHANGE_BYTES: u64 = 128;
/// The most chunks that all held-back changes of a call together may touch, unless it is a single
/// change. Publishing cannot be interrupted and counts towards no time limit. For this many chunks
/// it takes at most some 0.2 s. An honest request touches one chunk, or at most the chunks of 4
/// GiB.
const MAX_HELD_CHUNKS: u64 = 1 << 20;

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeTiming {
    /// At once.
    Now,
    /// When the call succeeds or unlocks. Never if the call fails.
    OnSuccess,
    /// At once. It is undone if the call fails.
    UndoOnFailure,
}

/// The changes of one call that depend on how it ends. Dropping them is the same as
/// [`Changes::fail`].
#[derive(Default)]
pub struct Changes {
    held: Vec<HeldChange>,
    /// How many chunks the changes in `held` may touch.
    held_chunks: u64,
    undo: Vec<UndoableChange>,
}

/// A change that is held back.
struct HeldChange {
    scope: Arc<ScopeState>,
    map: usize,
    change: Change,
    /// Bytes that were taken from the quota for this change.
    reserved: u64,
}

/// A change that was made and may be undone.
struct UndoableChange {
    scope: Arc<ScopeState>,
    map: usize,
    to: u8,
    log: UndoLog,
}

impl Changes {
    /// As [`Map::set`](super::Map::set) on map `id` of `scope`, but takes effect as `timing` says.
    /// For [`ChangeTiming::OnSuccess`] the answer is 0.
    ///
    /// # Errors
    /// Those of [`Map::set`](super::Map::set). There is no map `id`. Publishing all held-back
    /// changes would take too long.
    pub fn set(
        &mut self,
        scope: &Arc<ScopeState>,
        id: u32,
        first: u64,
        count: u64,
        states: u8,
        to: u8,
        timing: ChangeTiming,
    ) -> Result<u64, Misuse> {
        let map = scope.map(id)?;
        let Some(change) = map.change(first, count, states, to)? else { return Ok(0) };
        match timing {
            ChangeTiming::Now => map.apply(&change, MemorySource::Take, None),
            ChangeTiming::OnSuccess => {
                let reserved = change.max_bytes();
                let chunks = self.held_chunks.saturating_add(change.max_chunks(&map.quota));
                if chunks > MAX_HELD_CHUNKS && !self.held.is_empty() {
                    return Err(TOO_MUCH);
                }
                if !map.quota.take(reserved.saturating_add(LISTED_CHANGE_BYTES)) {
                    return Err(NO_MEMORY);
                }
                self.held_chunks = chunks;
                self.held.push(HeldChange { scope: Arc::clone(scope), map: id as usize, change, reserved });
                Ok(0)
            }
            ChangeTiming::UndoOnFailure => {
                if !map.quota.take(LISTED_CHANGE_BYTES) {
                    return Err(NO_MEMORY);
                }
                let mut log = UndoLog::default();
                let result = map.apply(&change, MemorySource::Take, Some(&mut log));
                let undo = UndoableChange { scope: Arc::clone(scope), map: id as usize, to, log };
                if result.is_err() || undo.log.runs.is_empty() {
                    map.quota.give(undo.cost());
                } else {
                    self.undo.push(undo);
                }
                result
            }
        }
    }

    /// Makes the held-back changes, in the order in which they were requested. This cannot fail. It
    /// happens at `unlock` and when the call succeeds.
    pub fn publish(&mut self) {
        self.held_chunks = 0;
        for held in self.held.drain(..) {
            let map = held.scope.map_at(held.map);
            // Cannot fail: the map was sized and the memory is reserved.
            let _ = map.apply(&held.change, MemorySource::Reserved(held.reserved), None);
            map.quota.give(LISTED_CHANGE_BYTES);
        }
    }

    /// The call has succeeded: publishes held-back changes, and keeps the undoable ones.
    pub fn succeed(&mut self) {
        self.publish();
        for undo in self.undo.drain(..) {
            undo.scope.map_at(undo.map).quota.give(undo.cost());
        }
    }

    /// The call has failed: forgets held-back changes, and undoes the undoable ones.
    pub fn fail(&mut self) {
        self.held_chunks = 0;
        for held in self.held.drain(..) {
            held.scope.map_at(held.map).quota.give(held.reserved + LISTED_CHANGE_BYTES);
        }
        for undo in self.undo.drain(..).rev() {
            let map = undo.scope.map_at(undo.map);
            for &(first, count, old) in &undo.log.runs {
                let blocks = Blocks { first, end: first + count };
                // Cannot fail: the map was sized, and overdrawing needs no free memory.
                let _ = map.apply(&Change { blocks, states: 1 << undo.to, to: old }, MemorySource::Overdraw, None);
            }
            map.quota.give(undo.cost());
        }
    }

    /// Whether there is nothing to publish and nothing to undo, as in most calls.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.undo.is_empty()
    }
}

impl UndoableChange {
    /// Bytes that are charged for it.
    fn cost(&self) -> u64 {
        LISTED_CHANGE_BYTES + LOGGED_RUN_BYTES * self.log.runs.len() as u64 + self.log.kept
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.fail();
    }
}

#[cfg(test)]
mod tests;
