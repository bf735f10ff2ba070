//! All shared state of one filter at one position in the chain, by scope.
//!
//! The state of an export belongs to the disk below ([`DiskId`]), and not to the name that a client
//! used. The scope of the default export's disk always exists. All other scopes are created at
//! their first use and limited in number. A scope that no connection uses and that holds nothing is
//! dropped.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rbdkit_plugin_api::{DiskId, Errno, Error, Quota, Result, Usage, lock};

use super::scope::ScopeState;
use super::scratch::{self, DescriptorSource, Scratch};

/// Bytes that a scratch file may have beyond the size of its export, for the filter's own header or
/// index.
const SCRATCH_HEADER_BYTES: u64 = 1 << 20;

/// The limits of one filter's shared state.
#[derive(Clone, Debug)]
pub struct StateLimits {
    /// How many disks besides the default export's may have state of their own.
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
    /// Of the default export's disk.
    default: Arc<ScopeState>,
    /// Of all other disks.
    named: Mutex<HashMap<DiskId, Arc<ScopeState>>>,
}

/// An export's scope as one connection uses it. When the last of them is dropped, a scope that
/// holds nothing goes.
pub struct ExportScope {
    state: Arc<FilterState>,
    disk: DiskId,
    scope: Arc<ScopeState>,
}

impl ExportScope {
    /// The scope.
    #[inline]
    pub fn scope(&self) -> &Arc<ScopeState> {
        &self.scope
    }
}

impl Drop for ExportScope {
    fn drop(&mut self) {
        if self.disk.is_default() {
            return;
        }
        let mut named = self.state.named();
        // The map has one reference, and this connection the other.
        if Arc::strong_count(&self.scope) == 2 && self.scope.is_pristine() {
            named.remove(&self.disk);
        }
    }
}

fn new_scope(
    limits: &StateLimits,
    memory: &Arc<Quota>,
    disk: &Arc<Quota>,
    descriptor: DescriptorSource,
) -> Arc<ScopeState> {
    let scratch = Scratch::new(
        limits.scratch_dir.clone(),
        limits.scratch_bytes.unwrap_or(SCRATCH_HEADER_BYTES),
        Arc::clone(disk),
        Arc::clone(memory),
        descriptor,
    );
    ScopeState::new(memory, scratch)
}

impl FilterState {
    /// State with nothing in it.
    pub fn new(limits: StateLimits) -> Arc<FilterState> {
        // Amounts of memory are also counted with a sign.
        let memory = Arc::new(Quota::new(limits.map_bytes.min(i64::MAX as u64)));
        let disk = Arc::new(Quota::new(limits.scratch_total));
        let lasting = || new_scope(&limits, &memory, &disk, DescriptorSource::Reserved);
        let (server, default) = (lasting(), lasting());
        Arc::new(FilterState { limits, memory, disk, server, default, named: Mutex::default() })
    }

    fn new_scope(&self) -> Arc<ScopeState> {
        new_scope(&self.limits, &self.memory, &self.disk, DescriptorSource::Shared)
    }

    fn named(&self) -> MutexGuard<'_, HashMap<DiskId, Arc<ScopeState>>> {
        lock(&self.named)
    }

    /// The filter's own scope.
    pub fn server(&self) -> &Arc<ScopeState> {
        &self.server
    }

    /// The scope of a disk. It is created at its first use.
    ///
    /// # Errors
    /// ENOSPC if the limit on disks with state is reached. Never for the default export's disk, nor
    /// for a disk that has a scope.
    pub fn export(self: &Arc<Self>, disk: &DiskId) -> Result<ExportScope> {
        let scope = if disk.is_default() { Arc::clone(&self.default) } else { self.named_scope(disk)? };
        Ok(ExportScope { state: Arc::clone(self), disk: disk.clone(), scope })
    }

    fn named_scope(&self, disk: &DiskId) -> Result<Arc<ScopeState>> {
        let mut named = self.named();
        if let Some(scope) = named.get(disk) {
            return Ok(Arc::clone(scope));
        }
        if named.len() >= self.limits.exports {
            // Some may have become empty after their last connection had closed.
            named.retain(|_, scope| Arc::strong_count(scope) > 1 || !scope.is_pristine());
        }
        if named.len() >= self.limits.exports {
            let context = format!(
                "a filter keeps the state of {} exports, and no more are allowed (--filter-limit exports=N)",
                named.len()
            );
            return Err(Error::new(Errno::Enospc, context));
        }
        let scope = self.new_scope();
        named.insert(disk.clone(), Arc::clone(&scope));
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
        let _named = self.named();
        let grown = export.scratch().grow_quota(quota);
        let server = self.server.scratch();
        server.grow_quota(server.quota().saturating_add(grown));
    }

    /// The server stops: callers that wait for a range lock in the server's or an export's scope
    /// get ESHUTDOWN. The caller does the same for the scopes of connections.
    pub fn shutdown(&self) {
        self.server.locks().shutdown();
        self.default.locks().shutdown();
        for scope in self.named().values() {
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

    fn disk(name: &str) -> DiskId {
        DiskId::named(name)
    }

    #[test]
    fn an_export_keeps_its_state_after_the_last_connection() {
        let state = FilterState::new(StateLimits::default());
        for disk in [DiskId::DEFAULT, disk("disk")] {
            let export = state.export(&disk).unwrap();
            export.scope().map(0).unwrap().resize(4096, 1 << 20).unwrap();
            export.scope().map(0).unwrap().set(3, 2, 0b1111, 1).unwrap();
            drop(export);
            let export = state.export(&disk).unwrap();
            assert_eq!(export.scope().map(0).unwrap().count(1), Ok(2));
            assert!(export.scope().map(8).is_err());
        }
        assert_eq!(state.export(&disk("other")).unwrap().scope().map(0).unwrap().count(1), Err(NOT_SIZED));
    }

    #[test]
    fn disks_beyond_the_limit_are_refused_but_never_the_default_or_one_with_a_scope() {
        let state = FilterState::new(StateLimits { exports: 2, ..StateLimits::default() });
        let first = state.export(&disk("a")).unwrap();
        state.export(&disk("b")).unwrap().scope().slots().add(0, 1).unwrap();
        let refused = state.export(&disk("c")).err().unwrap();
        assert_eq!(refused.errno(), Errno::Enospc, "a is in use, b was changed");
        state.export(&DiskId::DEFAULT).unwrap();
        state.export(&disk("a")).unwrap();
        drop(first);
        state.export(&disk("c")).unwrap();
        assert_eq!(state.export(&disk("b")).unwrap().scope().slots().get(0).unwrap().a, 1);
    }

    #[test]
    fn a_scope_that_nobody_uses_and_that_holds_nothing_goes() {
        let state = FilterState::new(StateLimits::default());
        let (one, other) = (state.export(&disk("a")).unwrap(), state.export(&disk("a")).unwrap());
        one.scope().map(0).unwrap().resize(4096, 1 << 20).unwrap();
        drop(one);
        assert_eq!(state.named().len(), 1);
        drop(other);
        assert_eq!(state.named().len(), 0);
        state.export(&disk("b")).unwrap().scope().slots().add(3, 1).unwrap();
        assert_eq!(state.named().len(), 1);
    }

    #[test]
    fn a_scratch_file_may_be_as_large_as_its_export() {
        let state = FilterState::new(StateLimits { scratch_bytes: None, ..StateLimits::default() });
        let (first, second) = (state.export(&DiskId::DEFAULT).unwrap(), state.export(&disk("b")).unwrap());
        let (a, b, own) = (first.scope(), second.scope(), state.connection());
        assert_eq!(a.scratch().quota(), SCRATCH_HEADER_BYTES);
        state.size_scratch(a, Some(&own), 10 << 20);
        state.size_scratch(a, None, 5 << 20);
        state.size_scratch(b, None, 3 << 20);
        let quotas = [a, b, &own, state.server()].map(|scope| scope.scratch().quota() >> 20);
        assert_eq!(quotas, [11, 4, 11, 14]);
        state.size_scratch(a, None, u64::MAX);
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
