//! How many clients do how much, and what came of it.

/// How a crowd treats a disk.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Everything follows from it but the order in which threads run.
    pub seed: u64,
    /// Operations in all.
    pub operations: u64,
    /// Connections at a time.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Whether requests may fail with EIO (something below fails on purpose).
    pub may_fail: bool,
    /// Bytes in a stripe.
    pub stripe: u64,
    /// Times that stripes change hands.
    pub phases: u64,
}

impl Crowd {
    /// The usual one.
    pub fn new(seed: u64, operations: u64) -> Crowd {
        Crowd { seed, operations, connections: 4, depth: 6, may_fail: false, stripe: 70_001, phases: 6 }
    }

    /// Requests may fail.
    pub fn may_fail(mut self) -> Crowd {
        self.may_fail = true;
        self
    }
}

/// How many requests of which kind came to what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub operations: u64,
    /// Of which failed on purpose.
    pub failed: u64,
    /// Extents that were compared.
    pub extents: u64,
    /// Bytes that were compared.
    pub compared: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.operations += other.operations;
        self.failed += other.failed;
        self.extents += other.extents;
        self.compared += other.compared;
    }
}
