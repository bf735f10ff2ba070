//! The limiter of an instance's memory. It also remembers that it refused some, because a guest
//! without memory traps in ways that do not say so.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use crate::state::Quota;

/// Counts an instance's memory and tables against its limit and against the limit of all instances
/// together.
pub(crate) struct MemoryLimiter {
    /// Bytes that this instance may have.
    limit: u64,
    used: u64,
    /// What all instances of the server may have together.
    all: Arc<Quota>,
    /// The limit that was reached since the call began.
    reached: Option<MemoryLimit>,
}

/// A limit on memory that was reached. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// Of one instance: what it would have had, and the limit.
    Instance { asked: u64, limit: u64 },
    /// Of all instances together: what this one asked for in addition, and the limit.
    All { more: u64, limit: u64 },
}

impl MemoryLimit {
    /// The limit in words. `name` is the filter's on the command line. None: it does not have one
    /// yet, and the operator's limits do not hold for it.
    pub(super) fn words(self, name: Option<&str>) -> String {
        match (self, name) {
            (MemoryLimit::Instance { asked, limit }, name) => {
                let option = name.map(|name| format!(" (--filter-limit {name}:memory=SIZE)")).unwrap_or_default();
                format!("memory: the filter asked for {}; the limit is {}{option}", size(asked), size(limit))
            }
            (MemoryLimit::All { more, limit }, _) => format!(
                "memory: the filter asked for {} more; the limit of all filters together is {} (--filter-limit \
                 memory-all=SIZE)",
                size(more),
                size(limit)
            ),
        }
    }
}

/// A size for people. It is rounded up, so that a size beyond a limit never looks like the limit.
fn size(bytes: u64) -> String {
    let tenths = |unit: u64| (u128::from(bytes) * 10).div_ceil(u128::from(unit));
    let (tenths, unit) = match bytes {
        0..0x10_0000 => (tenths(1 << 10), "KiB"),
        _ => (tenths(1 << 20), "MiB"),
    };
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.all.give(self.used);
    }
}

/// Bytes that an element of a table takes in the host.
const TABLE_ELEMENT: u64 = 16;

impl MemoryLimiter {
    pub(crate) fn new(limit: u64, all: Arc<Quota>) -> MemoryLimiter {
        MemoryLimiter { limit, used: 0, all, reached: None }
    }

    /// A call begins.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.reached = None;
    }

    /// The limit that was reached since the call began.
    pub(super) fn reached(&self) -> Option<MemoryLimit> {
        self.reached
    }

    /// Charges what the instance takes besides memories and tables.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), MemoryLimit> {
        self.take(bytes)
    }

    /// Bytes that the instance has: memory, tables, and what else was charged.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    fn take(&mut self, more: u64) -> Result<(), MemoryLimit> {
        let used = self.used.saturating_add(more);
        if used > self.limit {
            return Err(MemoryLimit::Instance { asked: used, limit: self.limit });
        }
        if !self.all.take(more) {
            return Err(MemoryLimit::All { more, limit: self.all.limit() });
        }
        self.used = used;
        Ok(())
    }

    fn grow(&mut self, from: usize, to: usize, scale: u64) -> bool {
        let taken = self.take((to.saturating_sub(from) as u64).saturating_mul(scale));
        self.reached = taken.err().or(self.reached);
        taken.is_ok()
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, 1))
    }
    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, TABLE_ELEMENT))
    }
    // A component made by wit-component has the guest's module, a shim and a fixup. Python's has
    // one for each library.
    fn instances(&self) -> usize {
        256
    }
    fn tables(&self) -> usize {
        16
    }
    // A component has one, and so has each component inside it, such as a stub of WASI.
    fn memories(&self) -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_tables_share_one_limit() {
        let all = Arc::new(Quota::new(150 << 10));
        let mut room = MemoryLimiter::new(100 << 10, Arc::clone(&all));
        assert!(room.memory_growing(0, 64 << 10, None).unwrap());
        assert!(!room.memory_growing(64 << 10, 128 << 10, None).unwrap());
        assert!(room.table_growing(0, 1000, None).unwrap());
        assert!(!room.table_growing(1000, 100_000, None).unwrap());
        let mut other = MemoryLimiter::new(100 << 10, Arc::clone(&all));
        assert!(!other.memory_growing(0, 100 << 10, None).unwrap());
        drop(room);
        assert!(other.memory_growing(0, 100 << 10, None).unwrap());
        drop(other);
        assert_eq!(all.used(), 0);
    }

    #[test]
    fn the_limit_that_was_reached_is_known_until_the_next_call() {
        let all = Arc::new(Quota::new(1 << 20));
        let mut room = MemoryLimiter::new(128 << 10, Arc::clone(&all));
        room.charge(100 << 10).unwrap();
        assert_eq!((room.reached(), room.used()), (None, 100 << 10));
        let refused = MemoryLimit::Instance { asked: 200 << 10, limit: 128 << 10 };
        assert_eq!(room.charge(100 << 10), Err(refused));
        assert!(!room.memory_growing(0, 64 << 10, None).unwrap());
        let reached = room.reached().unwrap();
        assert_eq!(
            reached.words(Some("f")),
            "memory: the filter asked for 164 KiB; the limit is 128 KiB (--filter-limit f:memory=SIZE)"
        );
        assert_eq!(refused.words(None), "memory: the filter asked for 200 KiB; the limit is 128 KiB");
        room.begin();
        assert_eq!(room.reached(), None);
        assert!(all.take(all.limit() - all.used()));
        assert!(!room.table_growing(0, 1, None).unwrap());
        assert_eq!(
            room.reached().unwrap().words(Some("f")),
            "memory: the filter asked for 0.1 KiB more; the limit of all filters together is 1 MiB (--filter-limit \
             memory-all=SIZE)"
        );
        assert_eq!((size((64 << 20) + 1), size(70 << 20)), ("64.1 MiB".to_string(), "70 MiB".to_string()));
    }
}
