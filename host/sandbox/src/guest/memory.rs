//! The limiter of an instance's memory.

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
        MemoryLimiter { limit, used: 0, all }
    }

    /// Bytes of memory and tables that the instance has.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    fn grow(&mut self, from: usize, to: usize, scale: u64) -> bool {
        let more = (to.saturating_sub(from) as u64).saturating_mul(scale);
        let used = self.used.saturating_add(more);
        if used > self.limit || !self.all.take(more) {
            return false;
        }
        self.used = used;
        true
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
}
