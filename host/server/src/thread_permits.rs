//! Permits for the threads that serve busy clients, one thread for one client.

use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most clients that have a thread at a time. More threads would help on no usual machine;
/// further busy clients share the runtime's threads.
pub(super) const MAX_CLIENT_THREADS: usize = 64;

/// The permits of a server. A clone shares them.
#[derive(Clone, Debug)]
pub(super) struct ThreadPermits(Arc<Semaphore>);

impl ThreadPermits {
    /// [`MAX_CLIENT_THREADS`] free permits.
    pub fn new() -> ThreadPermits {
        ThreadPermits(Arc::new(Semaphore::new(MAX_CLIENT_THREADS)))
    }

    /// Takes a permit if one is free.
    pub fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    /// How many clients have a thread.
    pub fn in_use(&self) -> usize {
        MAX_CLIENT_THREADS - self.0.available_permits().min(MAX_CLIENT_THREADS)
    }

    /// Whether there is a processor for each client thread and one for each of their clients.
    pub fn processors_suffice(&self) -> bool {
        2 * self.in_use() <= processors()
    }
}

fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}
