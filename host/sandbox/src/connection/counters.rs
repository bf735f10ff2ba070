//! Counts of what happened in a filter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What happened in one filter. Shown with `-v` when it ends; tests read it through
/// [`Host::statistics`](crate::Host::statistics).
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls of guest functions.
    pub calls: AtomicU64,
    /// Payload bytes that a guest read (`buffer.read`).
    pub bytes_in: AtomicU64,
    /// Payload bytes that a guest wrote (`buffer.write`).
    pub bytes_out: AtomicU64,
    /// Calls that ended in a trap or at a limit.
    pub faults: AtomicU64,
    /// Instances made.
    pub instances: AtomicU64,
    /// Prefetches that were done, with or without success.
    pub prefetches: AtomicU64,
    /// Prefetches that failed.
    pub prefetches_failed: AtomicU64,
    /// Ranges of which a part was queued, under way or just done.
    pub prefetches_merged: AtomicU64,
    /// Ranges for which the queue had no room.
    pub prefetches_dropped: AtomicU64,
    /// Operations below that continued after the call that had begun them, because its client had
    /// gone.
    pub detached: AtomicU64,
    /// Versions of the filter's code that something uses now.
    pub versions: Arc<AtomicU32>,
    /// The most of these at once.
    pub most_versions: AtomicU32,
}

impl Counters {
    /// Payload bytes that crossed into or out of the sandbox.
    pub fn bytes_crossed(&self) -> u64 {
        self.bytes_in.load(Relaxed) + self.bytes_out.load(Relaxed)
    }
    /// Logs the counts of the filter of this name, with `-v`.
    pub(crate) fn log(&self, name: &str, when: &str) {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let c = self;
        tracing::debug!(
            "{}: {when}: {} calls, {} bytes crossed, {} faults, {} instances made; \
             prefetches: {} done, {} of them failed, {} merged, {} dropped; at most {} versions of it at once",
            name,
            get(&c.calls),
            c.bytes_crossed(),
            get(&c.faults),
            get(&c.instances),
            get(&c.prefetches),
            get(&c.prefetches_failed),
            get(&c.prefetches_merged),
            get(&c.prefetches_dropped),
            c.most_versions.load(Relaxed),
        );
    }
}

/// Adds one to a counter for as long as it lives.
pub(crate) struct Counted(Arc<AtomicU32>);

impl Counted {
    pub(crate) fn new(count: &Arc<AtomicU32>) -> Counted {
        count.fetch_add(1, Relaxed);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
