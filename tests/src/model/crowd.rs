//! How many clients send how many requests, and what came of them.

/// How many clients use a disk, and how.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// The seed of all choices. Only the order in which threads run does not follow from it.
    pub seed: u64,
    /// The number of requests in all.
    pub operations: u64,
    /// How many connections are open at a time.
    pub connections: usize,
    /// How many requests each connection keeps in flight.
    pub depth: usize,
    /// Whether requests may fail with EIO because a layer fails on purpose.
    pub may_fail: bool,
    /// The length of a stripe in bytes.
    pub stripe: u64,
    /// How often the stripes change owners.
    pub phases: u64,
}

impl Crowd {
    /// Four connections with six requests each.
    pub fn new(seed: u64, operations: u64) -> Crowd {
        Crowd { seed, operations, connections: 4, depth: 6, may_fail: false, stripe: 70_001, phases: 6 }
    }

    /// Lets requests fail with EIO.
    pub fn may_fail(mut self) -> Crowd {
        self.may_fail = true;
        self
    }
}

/// How much was done and compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub operations: u64,
    /// How many of them failed on purpose.
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
