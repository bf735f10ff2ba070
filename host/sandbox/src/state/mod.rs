//! What the instances of a filter share, and what outlives an instance: maps of blocks, slots, range locks, scratch files, and the files
//! that the operator named.
//!
//! Instances come and go (a pool grows, a trap drops one), so a filter keeps here what must not be forgotten or what two
//! instances must agree on. Everything is plain data behind short locks: nothing here knows wasmtime, and nothing a guest does can tear it,
//! because each function is atomic and what belongs to a call ([`Changes`], [`Held`]) is undone by being dropped.
//!
//! **Keys.** State belongs to one filter ([`FilterState`]) and there to one scope: the filter itself ([`FilterState::server`]), an
//! export by its canonical name ([`FilterState::export`]) or a connection ([`FilterState::connection`]). An export's state
//! is kept while the server runs: a cow filter's overlay survives the last client. Only what was never changed is
//! forgotten, when the number of exports reaches its limit.
//!
//! **Bounds.** Memory of maps and of the books kept on scratch files is charged to one [`Quota`] a filter; scratch files have one quota each and
//! one in sum.

#![forbid(unsafe_code)]

mod chunk;
mod files;
mod locks;
mod maps;
mod quota;
#[cfg(test)]
mod random;
mod scratch;
mod slots;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rbdkit_plugin_api::{Errno, Error, Result};

pub use files::Files;
pub use locks::{Held, Locks, Mode, Patience};
pub use maps::{Changes, Map, Run, When};
pub use quota::Quota;
pub use scratch::{Scratch, directory};
pub use slots::{ConnectionDeltas, Slots, Words};

/// Maps a scope has, by the contract.
pub const MAPS: usize = 8;

/// What a scratch file may have beyond its export's size, in bytes: a header or an index of the filter's own.
const HEADER: u64 = 1 << 20;

/// A guest asked for what cannot be answered: its call ends with a trap. The text is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trap(pub &'static str);

/// What one filter's shared state may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Exports that may have state of their own.
    pub exports: usize,
    /// Bytes of memory for all maps of the filter and the books on its scratch files.
    pub map_bytes: u64,
    /// Bytes that one scope's scratch file may take. None: as many as its export has ([`FilterState::size_scratch`]).
    pub scratch_bytes: Option<u64>,
    /// Bytes that all scratch files of the filter may take together.
    pub scratch_total: u64,
    /// Where scratch files are made ([`directory`]).
    pub scratch_dir: PathBuf,
}

impl Default for Limits {
    /// 1024 exports; 128 MiB for maps, which is 32 TiB in blocks of 64 KiB when no two neighbours are alike; scratch as large as
    /// the disk.
    fn default() -> Limits {
        Limits {
            exports: 1024,
            map_bytes: 128 << 20,
            scratch_bytes: Some(u64::MAX),
            scratch_total: u64::MAX,
            scratch_dir: directory(),
        }
    }
}

/// The state of one scope.
pub struct ScopeState {
    maps: [Map; MAPS],
    slots: Slots,
    locks: Arc<Locks>,
    scratch: Arc<Scratch>,
}

impl ScopeState {
    fn new(shared: &Shared) -> Arc<ScopeState> {
        Arc::new(ScopeState {
            maps: std::array::from_fn(|_| Map::new(Arc::clone(&shared.memory))),
            slots: Slots::default(),
            locks: Arc::new(Locks::default()),
            scratch: Arc::new(Scratch::new(
                shared.limits.scratch_dir.clone(),
                shared.limits.scratch_bytes.unwrap_or(HEADER),
                Arc::clone(&shared.disk),
                Arc::clone(&shared.memory),
            )),
        })
    }

    /// Map `id`.
    ///
    /// # Errors
    /// There are only [`MAPS`].
    pub fn map(&self, id: u32) -> Result<&Map, Trap> {
        self.maps.get(id as usize).ok_or(Trap("there is no map of that number"))
    }

    /// The slots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The range locks.
    pub fn locks(&self) -> &Arc<Locks> {
        &self.locks
    }

    /// The scratch file.
    pub fn scratch(&self) -> &Arc<Scratch> {
        &self.scratch
    }

    /// Whether a new one in its place could not be told from it (but for the sizes of maps, which every open gives anew).
    fn is_pristine(&self) -> bool {
        self.maps.iter().all(Map::is_blank) && self.slots.is_blank() && self.scratch.allocated() == 0
    }
}

/// What the scopes of a filter have in common.
struct Shared {
    limits: Limits,
    memory: Arc<Quota>,
    disk: Arc<Quota>,
}

/// All shared state of one filter in one place of the chain.
pub struct FilterState {
    shared: Shared,
    server: Arc<ScopeState>,
    exports: Mutex<HashMap<String, Arc<ScopeState>>>,
}

impl FilterState {
    /// Nothing in it yet.
    pub fn new(limits: Limits) -> Arc<FilterState> {
        let shared = Shared {
            // Amounts of memory are also counted with a sign.
            memory: Arc::new(Quota::new(limits.map_bytes.min(i64::MAX as u64))),
            disk: Arc::new(Quota::new(limits.scratch_total)),
            limits,
        };
        let server = ScopeState::new(&shared);
        Arc::new(FilterState { shared, server, exports: Mutex::default() })
    }

    /// The filter's own scope.
    pub fn server(&self) -> &Arc<ScopeState> {
        &self.server
    }

    /// The scope of the export of this canonical name; made at its first use.
    ///
    /// # Errors
    /// ENOSPC if as many exports as are allowed have state already.
    pub fn export(&self, name: &str) -> Result<Arc<ScopeState>> {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scope) = exports.get(name) {
            return Ok(Arc::clone(scope));
        }
        if exports.len() >= self.shared.limits.exports {
            // A client may invent names where the plugin takes any: what nobody uses and nobody changed costs the others nothing.
            exports.retain(|_, scope| Arc::strong_count(scope) > 1 || !scope.is_pristine());
        }
        if exports.len() >= self.shared.limits.exports {
            let context = format!("a filter keeps the state of {} exports, and no more are allowed", exports.len());
            return Err(Error::new(Errno::Enospc, context));
        }
        let scope = ScopeState::new(&self.shared);
        exports.insert(name.to_string(), Arc::clone(&scope));
        Ok(scope)
    }

    /// A scope for a connection: gone when the last reference is dropped, which is when the connection closes.
    pub fn connection(&self) -> Arc<ScopeState> {
        ScopeState::new(&self.shared)
    }

    /// An export was opened and has so many bytes: the scratch files of it and of this connection to it may take as many (and a header's), and the
    /// server's as many as all exports have together. It only ever grows. Nothing if the operator has set a limit.
    pub fn size_scratch(&self, export: &Arc<ScopeState>, own: Option<&Arc<ScopeState>>, size: u64) {
        if self.shared.limits.scratch_bytes.is_some() {
            return;
        }
        // Whole pages.
        let quota = size.saturating_add(HEADER).checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        if let Some(own) = own {
            own.scratch.grow_quota(quota);
        }
        // One at a time: the sum is read and written.
        let _one = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = export.scratch.grow_quota(quota);
        self.server.scratch.grow_quota(self.server.scratch.quota().saturating_add(grown));
    }

    /// The server stops: who waits for a range lock of the server's or an export's scope is told so. Connections' scopes
    /// are the caller's.
    pub fn shutdown(&self) {
        self.server.locks.shutdown();
        for scope in self.exports.lock().unwrap_or_else(PoisonError::into_inner).values() {
            scope.locks.shutdown();
        }
    }

    /// Memory that maps take now, in bytes.
    pub fn map_bytes(&self) -> u64 {
        self.shared.memory.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_keeps_its_state_after_the_last_connection() {
        let state = FilterState::new(Limits::default());
        let scope = state.export("disk").unwrap();
        scope.map(0).unwrap().resize(4096, 1 << 20).unwrap();
        scope.map(0).unwrap().set(3, 2, 0b1111, 1).unwrap();
        drop(scope);
        let scope = state.export("disk").unwrap();
        assert_eq!(scope.map(0).unwrap().count(1), Ok(2));
        assert_eq!(state.export("other").unwrap().map(0).unwrap().count(1), Err(maps::NOT_SIZED));
        assert!(scope.map(8).is_err());
    }

    #[test]
    fn exports_beyond_the_limit_are_refused_unless_an_untouched_one_can_go() {
        let state = FilterState::new(Limits { exports: 2, ..Limits::default() });
        let first = state.export("a").unwrap();
        state.export("b").unwrap().slots().add(0, 1).unwrap();
        assert_eq!(state.export("c").err().unwrap().errno(), Errno::Enospc, "a is in use, b was changed");
        drop(first);
        state.export("c").unwrap();
        assert_eq!(state.export("b").unwrap().slots().get(0).unwrap().a, 1);
    }

    #[test]
    fn a_scratch_file_may_be_as_large_as_its_export() {
        let state = FilterState::new(Limits { scratch_bytes: None, ..Limits::default() });
        let (a, b, own) = (state.export("a").unwrap(), state.export("b").unwrap(), state.connection());
        assert_eq!(a.scratch().quota(), HEADER);
        state.size_scratch(&a, Some(&own), 10 << 20);
        state.size_scratch(&a, None, 5 << 20);
        state.size_scratch(&b, None, 3 << 20);
        let quotas = [&a, &b, &own, state.server()].map(|scope| scope.scratch().quota() >> 20);
        assert_eq!(quotas, [11, 4, 11, 14]);
        state.size_scratch(&a, None, u64::MAX);
        assert_eq!(state.server().scratch().quota(), u64::MAX);
    }

    #[test]
    fn all_memory_is_given_back() {
        let state = FilterState::new(Limits::default());
        let scope = state.connection();
        let map = scope.map(1).unwrap();
        map.resize(4096, 1 << 40).unwrap();
        map.set(5, 100_000, 0b1111, 2).unwrap();
        assert!(state.map_bytes() > 0);
        drop(scope);
        assert_eq!(state.map_bytes(), 0);
    }
}
