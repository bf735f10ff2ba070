//! The settings of a run, its errors and its statistics.

use crate::host::HostError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimError {
    Io,
    Full,
    NoMemory,
    NotSupported,
    /// A second lock in one call.
    Deadlock,
    Trapped,
}

impl HostError for SimError {
    const NOT_SUPPORTED: SimError = SimError::NotSupported;

    fn is_full(self) -> bool {
        self == SimError::Full
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub seed: u64,
    /// Blocks have 2^`bits` bytes.
    pub bits: u32,
    /// The size of the disk in bytes.
    pub size: u64,
    pub clients: usize,
    /// How many requests each client makes.
    pub requests: usize,
    /// The maximum number of blocks in scratch.
    pub quota: u64,
    /// How many of 1000 uses of next fail.
    pub next_fails: u64,
    /// How many of 1000 writes to scratch fail, besides those over the quota.
    pub scratch_full: u64,
    /// How many of 1000 allocations of a buffer fail.
    pub no_memory: u64,
    /// How many of 10000 steps trap.
    pub traps: u64,
    /// The longest request to next in bytes.
    pub next_max: u32,
    pub writes: Writes,
    /// Whether a flush of next covers the writes of other connections.
    pub multi_conn: bool,
}

impl Settings {
    /// Four clients on a disk of thirteen blocks, without faults. The last block is a short one.
    pub fn small(seed: u64, writes: Writes, multi_conn: bool) -> Settings {
        Settings {
            seed,
            bits: 4,
            size: 16 * 12 + 5,
            clients: 4,
            requests: 100,
            quota: u64::MAX,
            next_fails: 0,
            scratch_full: 0,
            no_memory: 0,
            traps: 0,
            next_max: 1000,
            writes,
            multi_conn,
        }
    }
}

/// What must become of the clients' writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// No write may reach next.
    Kept,
    /// Writes that were flushed must be durable in next.
    Durable,
    /// Nothing is promised.
    Unsafe,
}

/// Counts of what happened. A test uses them to check that the case it is about did happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub served: u64,
    pub failed: u64,
    /// How many of the failed requests were fast zeroes that would have been slow.
    pub refused: u64,
    pub traps: u64,
    /// How many writes found scratch full.
    pub full: u64,
    /// How many requests for a lock had to wait.
    pub waits: u64,
    pub next_reads: u64,
    pub next_writes: u64,
    pub next_caches: u64,
    /// The largest number of blocks that were in scratch at once.
    pub peak: u64,
}

/// The seeds of a random test. The environment variable `RUNS` says how many there are, by default
/// `runs`. `SEED` is the first one; by default it comes from the clock.
pub fn seeds(runs: u64) -> impl Iterator<Item = u64> {
    let from_env = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let first = from_env("SEED").unwrap_or_else(|| clock() % 1_000_000_000);
    let runs = from_env("RUNS").unwrap_or(runs);
    println!("seeds {first} to {}", first + runs - 1);
    first..first + runs
}
