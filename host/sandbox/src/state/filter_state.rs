//! All shared state of one filter at one position in the chain, by scope.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rbdkit_plugin_api::{Errno, Error, Quota, Result, Usage, lock};

use super::scope::ScopeState;
use super::scratch::{self, Scratch};

/// Bytes that a scratch file may have beyond the size of its export, for the filter's own header or
/// index.
const SCRATCH_HEADER_BYTES: u64 = 1 << 20;

/// The limits of one filter's shared state.
#[derive(Clone, Debug)]
pub struct StateLimits {
    /// How many exports may have state of their own.
    pub exports: usize,
    /// Bytes of memory for all maps of the filter and the page maps of its scratch files.
    pub map_bytes: u64,
    /// Bytes that the scratch file of one scope may take. None: the size of its export
    /// ([`FilterState::size_scratch`]).
    pub scratch_bytes: Option<u64>,
    /// Bytes that all scratch files of the filter may take together.
    pub scratch_total: u64,
    /// Where scratch files are made ([`scratch::scratch_directory`]).
    pub scratch_dir: PathBuf,
}

impl Default for StateLimits {
    /// 1024 exports. 128 MiB for maps, which is enough for 32 TiB in blocks of 64 KiB even if no
    /// two neighbouring blocks have the same state. Scratch files as large as the disk.
    fn default() -> StateLimits {
        StateLimits {
            exports: 1024,
            map_bytes: 128 << 20,
            scratch_bytes: Some(u64::MAX),
            scratch_total: u64::MAX,
            scratch_dir: scratch::scratch_directory(),
        }
    }
}

/// All shared state of one filter in one place of the chain.
pub struct FilterState {
    limits: StateLimits,
    /// For maps and page maps.
    memory: Arc<Quota>,
    /// For all scratch files together.
    disk: Arc<Quota>,
    server: Arc<ScopeState>,
    exports: Mutex<HashMap<String, Arc<ScopeState>>>,
}

fn new_scope(limits: &StateLimits, memory: &Arc<Quota>, disk: &Arc<Quota>) -> Arc<ScopeState> {
    let scratch = Scratch::new(
        limits.scratch_dir.clone(),
        limits.scratch_bytes.unwrap_or(SCRATCH_HEADER_BYTES),
        Arc::clone(disk),
        Arc::clone(memory),
    );
    ScopeState::new(memory, scratch)
}

impl FilterState {
    /// State with nothing in it.
    pub fn new(limits: StateLimits) -> Arc<FilterState> {
        // Amounts of memory are also counted with a sign.
        let memory = Arc::new(Quota::new(limits.map_bytes.min(i64::MAX as u64)));
        let disk = Arc::new(Quota::new(limits.scratch_total));
        let server = new_scope(&limits, &memory, &disk);
        Arc::new(FilterState { limits, memory, disk, server, exports: Mutex::default() })
    }

    fn new_scope(&self) -> Arc<ScopeState> {
        new_scope(&self.limits, &self.memory, &self.disk)
    }

    fn exports(&self) -> MutexGuard<'_, HashMap<String, Arc<ScopeState>>> {
        lock(&self.exports)
    }

    /// The filter's own scope.
    pub fn server(&self) -> &Arc<ScopeState> {
        &self.server
    }

    /// The scope of the export with this canonical name. It is created at its first use.
    ///
    /// # Errors
    /// ENOSPC if the limit on exports with state is reached.
    pub fn export(&self, name: &str) -> Result<Arc<ScopeState>> {
        let mut exports = self.exports();
        if let Some(scope) = exports.get(name) {
            return Ok(Arc::clone(scope));
        }
        if exports.len() >= self.limits.exports {
            // If the plugin accepts any export name, a client can invent many. Scopes that no
            // connection uses and no call has changed must not use up the limit.
            exports.retain(|_, scope| Arc::strong_count(scope) > 1 || !scope.is_pristine());
        }
        if exports.len() >= self.limits.exports {
            let context = format!("a filter keeps the state of {} exports, and no more are allowed", exports.len());
            return Err(Error::new(Errno::Enospc, context));
        }
        let scope = self.new_scope();
        exports.insert(name.to_string(), Arc::clone(&scope));
        Ok(scope)
    }

    /// A scope for a connection. It ends when the last reference is dropped, when the connection
    /// closes.
    pub fn connection(&self) -> Arc<ScopeState> {
        self.new_scope()
    }

    /// An export of `size` bytes was opened. From now on its scratch file and that of this
    /// connection (`own`) may take that many bytes and a header, and the server's scratch file as
    /// many as all exports together. Quotas only grow. Does nothing if the operator has set a
    /// limit.
    pub fn size_scratch(&self, export: &Arc<ScopeState>, own: Option<&Arc<ScopeState>>, size: u64) {
        if self.limits.scratch_bytes.is_some() {
            return;
        }
        let bytes = size.saturating_add(SCRATCH_HEADER_BYTES);
        let quota = bytes.checked_next_multiple_of(scratch::PAGE).unwrap_or(u64::MAX);
        if let Some(own) = own {
            own.scratch().grow_quota(quota);
        }
        // The lock makes reading and writing the server's quota one step.
        let _exports = self.exports();
        let grown = export.scratch().grow_quota(quota);
        let server = self.server.scratch();
        server.grow_quota(server.quota().saturating_add(grown));
    }

    /// The server stops: callers that wait for a range lock in the server's or an export's scope
    /// get ESHUTDOWN. The caller does the same for the scopes of connections.
    pub fn shutdown(&self) {
        self.server.locks().shutdown();
        for scope in self.exports().values() {
            scope.locks().shutdown();
        }
    }

    /// What maps take of their limit, and scratch files of theirs.
    pub fn usage(&self) -> [Usage; 2] {
        [self.memory.usage("maps"), self.disk.usage("scratch-total")]
    }

    /// Bytes of memory that maps take now.
    pub fn map_bytes(&self) -> u64 {
        self.memory.used()
    }

    /// The quota for maps.
    #[cfg(test)]
    pub(super) fn memory(&self) -> &Quota {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::NOT_SIZED;
    use super::*;

    #[test]
    fn an_export_keeps_its_state_after_the_last_connection() {
        let state = FilterState::new(StateLimits::default());
        let scope = state.export("disk").unwrap();
        scope.map(0).unwrap().resize(4096, 1 << 20).unwrap();
        scope.map(0).unwrap().set(3, 2, 0b1111, 1).unwrap();
        drop(scope);
        let scope = state.export("disk").unwrap();
        assert_eq!(scope.map(0).unwrap().count(1), Ok(2));
        assert_eq!(state.export("other").unwrap().map(0).unwrap().count(1), Err(NOT_SIZED));
        assert!(scope.map(8).is_err());
    }

    #[test]
    fn exports_beyond_the_limit_are_refused_unless_an_untouched_one_can_go() {
        let state = FilterState::new(StateLimits { exports: 2, ..StateLimits::default() });
        let first = state.export("a").unwrap();
        state.export("b").unwrap().slots().add(0, 1).unwrap();
        assert_eq!(state.export("c").err().unwrap().errno(), Errno::Enospc, "a is in use, b was changed");
        drop(first);
        state.export("c").unwrap();
        assert_eq!(state.export("b").unwrap().slots().get(0).unwrap().a, 1);
    }

    #[test]
    fn a_scratch_file_may_be_as_large_as_its_export() {
        let state = FilterState::new(StateLimits { scratch_bytes: None, ..StateLimits::default() });
        let (a, b, own) = (state.export("a").unwrap(), state.export("b").unwrap(), state.connection());
        assert_eq!(a.scratch().quota(), SCRATCH_HEADER_BYTES);
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
        let state = FilterState::new(StateLimits::default());
        let scope = state.connection();
        let map = scope.map(1).unwrap();
        map.resize(4096, 1 << 40).unwrap();
        map.set(5, 100_000, 0b1111, 2).unwrap();
        assert!(state.map_bytes() > 0);
        drop(scope);
        assert_eq!(state.map_bytes(), 0);
    }
}
