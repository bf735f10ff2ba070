//! The state of one scope: its maps, slots, range locks and scratch file.

use std::sync::Arc;

use super::keys::Keys;
use super::locks::Locks;
use super::map::Map;
use super::misuse::Misuse;
use super::scratch::Scratch;
use super::slots::Slots;
use rbdkit_plugin_api::Quota;

/// How many maps a scope has, by the contract.
pub const MAPS: usize = 8;

/// The state of one scope.
pub struct ScopeState {
    maps: [Map; MAPS],
    slots: Slots,
    keys: Keys,
    locks: Arc<Locks>,
    scratch: Arc<Scratch>,
}

impl ScopeState {
    /// A scope in which nothing was changed. The memory of its maps is charged to `memory`.
    pub(super) fn new(memory: &Arc<Quota>, scratch: Scratch) -> Arc<ScopeState> {
        Arc::new(ScopeState {
            maps: std::array::from_fn(|_| Map::new(Arc::clone(memory))),
            slots: Slots::default(),
            keys: Keys::default(),
            locks: Arc::new(Locks::default()),
            scratch: Arc::new(scratch),
        })
    }

    /// Map `id`.
    ///
    /// # Errors
    /// `id` is not below [`MAPS`].
    pub fn map(&self, id: u32) -> Result<&Map, Misuse> {
        self.maps.get(id as usize).ok_or(Misuse("there is no map of that number"))
    }

    /// A map, by a number that [`ScopeState::map`] has checked.
    pub(super) fn map_at(&self, index: usize) -> &Map {
        &self.maps[index]
    }

    /// The slots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The keys of ciphers.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The range locks.
    pub fn locks(&self) -> &Arc<Locks> {
        &self.locks
    }

    /// The scratch file.
    pub fn scratch(&self) -> &Arc<Scratch> {
        &self.scratch
    }

    /// Whether a new scope could replace this one unnoticed. The sizes of maps do not count,
    /// because every open sets them again.
    pub(super) fn is_pristine(&self) -> bool {
        self.maps.iter().all(Map::is_blank)
            && self.slots.is_blank()
            && self.keys.is_empty()
            && self.scratch.allocated() == 0
    }
}
