//! The limit on bytes in flight of all connections together.
//!
//! A request takes the bytes of its payload when it is admitted, all at once. It gives them back
//! when its reply is written or dropped. Waiters are served in their order, so small requests do
//! not starve a large one. The crate's documentation says why no connection can hold up others for
//! ever.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// The unit of accounting, in bytes: the most frequent length of a request, and the smallest size
/// of a pooled buffer.
const PAGE: u64 = 4096;

/// Bytes rounded up to the unit of accounting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pages(pub u32);

impl Pages {
    #[inline]
    pub fn of(bytes: u64) -> Pages {
        Pages(u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX))
    }

    #[inline]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) * PAGE
    }
}

/// The bytes of a server, and how many of them are free.
#[derive(Debug)]
pub(super) struct Budget {
    free: Semaphore,
    waiting: AtomicUsize,
}

impl Budget {
    pub fn new(bytes: u64) -> Budget {
        let pages = usize::try_from(bytes / PAGE).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Budget { free: Semaphore::new(pages), waiting: AtomicUsize::new(0) }
    }

    /// Takes pages if they are free and no other request waits.
    pub fn try_take(&self, pages: Pages) -> bool {
        match self.free.try_acquire_many(pages.0) {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        }
    }

    /// Takes pages once they are free. Dropping the future gives up the place in the wait queue.
    pub async fn take(&self, pages: Pages) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        // The semaphore is never closed.
        if let Ok(permit) = self.free.acquire_many(pages.0).await {
            permit.forget();
        }
    }

    pub fn give_back(&self, pages: u64) {
        if pages > 0 {
            self.free.add_permits(pages as usize);
        }
    }

    /// Whether a connection waits for bytes that others hold.
    pub fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    #[cfg(test)]
    pub fn free_bytes(&self) -> u64 {
        self.free.available_permits() as u64 * PAGE
    }
}
