//! The limit on bytes in flight of all connections together.
//!
//! A request takes the bytes of its payload when it is admitted, all at once. It gives them back
//! when its reply is written or dropped.
//!
//! Each connection has a *first share* of the budget for itself, from the moment it is accepted. A
//! request that fits into the first share of its connection never waits for other connections, and
//! takes no lock. Only what exceeds the first share comes from the *common* bytes, for which
//! connections compete.
//!
//! Connections that wait for common bytes are served in the order of what they would then hold,
//! the smallest first. So a connection that asks for little does not wait behind many that ask for
//! much. After [`MAX_PASSED`] bytes went to others, the connection that has waited longest is
//! served next, so no request waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{MAX_REQUEST, Usage, lock};
use tokio::sync::{Notify, oneshot};

/// The unit of accounting, in bytes: the most frequent length of a request, and the smallest size
/// of a pooled buffer.
const PAGE: u64 = 4096;

/// The first shares of all connections together are at most this part of the budget, unless that
/// is less than a page for each connection.
const FIRST_SHARES: u64 = 4;

/// Pages that others may get before the connection that has waited longest: one of the largest
/// requests.
const MAX_PASSED: u64 = MAX_REQUEST as u64 / PAGE;

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
    /// Pages of the whole budget, with the first shares.
    total: u64,
    /// Pages that each connection has for itself.
    first_share: u64,
    /// Common pages that are free.
    free: AtomicU64,
    /// Common pages when none is taken.
    common: u64,
    /// First shares of the connections that exist, in pages.
    shares: AtomicU64,
    /// The most pages that were taken at once, with the first shares.
    peak: AtomicU64,
    /// How many connections wait for common pages. As long as none waits, pages are taken and given
    /// back without the lock.
    waiting: AtomicUsize,
    queue: Mutex<WaitQueue>,
    /// Notified when a connection begins to wait.
    shortage: Notify,
}

/// The connections that wait for common pages.
#[derive(Debug, Default)]
struct WaitQueue {
    next_ticket: u64,
    /// By ticket, so the first has waited longest.
    waiters: BTreeMap<u64, Waiter>,
    /// The weight and the ticket of each waiter.
    by_weight: BTreeSet<(u64, u64)>,
    /// Pages that went to others since the first waiter became the first.
    passed: u64,
}

#[derive(Debug)]
struct Waiter {
    pages: u64,
    /// The common pages that its connection would then hold.
    weight: u64,
    granted: oneshot::Sender<()>,
}

impl WaitQueue {
    /// The ticket of the waiter that is served next.
    fn next(&self) -> Option<u64> {
        let first = self.waiters.keys().next().copied();
        if self.passed >= MAX_PASSED { first } else { self.by_weight.first().map(|(_, ticket)| *ticket) }
    }

    fn remove(&mut self, ticket: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.by_weight.remove(&(waiter.weight, ticket));
        Some(waiter)
    }
}

impl Budget {
    /// A budget of `bytes`, at least [`Budget::least`], for at most `connections`.
    pub fn new(bytes: u64, connections: u64) -> Budget {
        let total = bytes / PAGE;
        let first_share = (total / FIRST_SHARES / connections.max(1)).max(1);
        let common = total.saturating_sub(first_share * connections);
        Budget {
            total,
            first_share,
            free: AtomicU64::new(common),
            common,
            shares: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            shortage: Notify::new(),
        }
    }

    /// The smallest budget that works, in bytes: a page for each connection, and one of the largest
    /// requests.
    pub fn least(connections: u64) -> u64 {
        u64::from(MAX_REQUEST).saturating_add(connections.saturating_mul(PAGE))
    }

    /// Takes common pages if they are free, whoever waits.
    fn take_free(&self, pages: u64) -> bool {
        let taken = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(pages));
        if let Ok(before) = taken {
            self.note(self.common - (before - pages));
        }
        taken.is_ok()
    }

    /// Records the most pages that were taken at once. `common` are taken of the common ones.
    fn note(&self, common: u64) {
        let taken = common + self.shares.load(Ordering::Relaxed);
        if taken > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(taken, Ordering::Relaxed);
        }
    }

    /// Takes common pages if they are free and no other connection waits.
    fn try_take(&self, pages: u64) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.take_free(pages)
    }

    /// Takes common pages once they are free. Dropping the future gives up the place in the wait
    /// queue.
    async fn take(&self, pages: u64, weight: u64) {
        let (granted, grant) = oneshot::channel();
        // First announced, then queued: whoever gives pages back from now on serves the queue.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut place = {
            let mut queue = lock(&self.queue);
            let ticket = queue.next_ticket;
            queue.next_ticket += 1;
            queue.waiters.insert(ticket, Waiter { pages, weight, granted });
            queue.by_weight.insert((weight, ticket));
            self.serve(&mut queue);
            QueuePlace { budget: self, ticket, pages, is_served: false }
        };
        self.shortage.notify_waiters();
        // The sender is only dropped after it has sent, so this cannot fail.
        let _ = grant.await;
        place.is_served = true;
    }

    /// Gives free pages to waiters, in their order.
    fn serve(&self, queue: &mut WaitQueue) {
        while let Some(ticket) = queue.next() {
            let Some(pages) = queue.waiters.get(&ticket).map(|waiter| waiter.pages) else { return };
            if !self.take_free(pages) {
                return;
            }
            let is_first = queue.waiters.keys().next() == Some(&ticket);
            queue.passed = if is_first { 0 } else { queue.passed + pages };
            // A waiter that is being dropped finds that it is no longer in the queue, and gives the
            // pages back.
            let _ = queue.remove(ticket).map(|waiter| waiter.granted.send(()));
        }
    }

    fn give_back(&self, pages: u64) {
        if pages > 0 {
            self.free.fetch_add(pages, Ordering::SeqCst);
            if self.waiting.load(Ordering::SeqCst) > 0 {
                self.serve(&mut lock(&self.queue));
            }
        }
    }

    /// What is taken. A first share counts as taken as long as its connection serves requests.
    pub fn usage(&self) -> Usage {
        let taken = self.common - self.free.load(Ordering::SeqCst) + self.shares.load(Ordering::SeqCst);
        Usage {
            account: "requests-total".to_string(),
            limit: self.total * PAGE,
            used: taken * PAGE,
            peak: self.peak.load(Ordering::Relaxed) * PAGE,
        }
    }

    #[cfg(test)]
    pub fn waiters(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    #[cfg(test)]
    pub fn free_common_bytes(&self) -> u64 {
        self.free.load(Ordering::SeqCst) * PAGE
    }
}

/// A place in the wait queue. Dropped before it is served, it is given up.
struct QueuePlace<'a> {
    budget: &'a Budget,
    ticket: u64,
    pages: u64,
    is_served: bool,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(1, Ordering::SeqCst);
        if self.is_served {
            return;
        }
        let mut queue = lock(&self.budget.queue);
        if queue.remove(self.ticket).is_none() {
            // It was served, and nobody uses the pages.
            self.budget.free.fetch_add(self.pages, Ordering::SeqCst);
        }
        // Others may have waited behind it.
        self.budget.serve(&mut queue);
    }
}

/// What one connection holds of the budget.
///
/// Of the pages that it holds, those beyond the first share are common pages. The reader adds, and
/// whoever writes replies takes away; each settles the difference of the common part.
#[derive(Debug)]
pub(super) struct ConnectionBudget {
    budget: Arc<Budget>,
    held: AtomicU64,
    /// The reader waits for common pages.
    waits: AtomicBool,
}

impl ConnectionBudget {
    /// The budget of a new connection, which holds its first share from now on.
    pub fn new(budget: &Arc<Budget>) -> ConnectionBudget {
        budget.shares.fetch_add(budget.first_share, Ordering::SeqCst);
        budget.note(budget.common - budget.free.load(Ordering::SeqCst));
        ConnectionBudget { budget: Arc::clone(budget), held: AtomicU64::new(0), waits: AtomicBool::new(false) }
    }

    /// Of `held` pages, those that are common.
    #[inline]
    fn common_part(&self, held: u64) -> u64 {
        held.saturating_sub(self.budget.first_share)
    }

    /// Pages that the connection holds.
    #[inline]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Bytes that the connection holds.
    pub fn held_bytes(&self) -> u64 {
        self.held() * PAGE
    }

    /// The common pages that are missing for `pages` more.
    #[inline]
    fn missing(&self, pages: Pages) -> u64 {
        let held = self.held();
        self.common_part(held + u64::from(pages.0)) - self.common_part(held)
    }

    /// Takes pages if it need not wait.
    #[inline]
    pub fn try_take(&self, pages: Pages) -> bool {
        let missing = self.missing(pages);
        if missing > 0 && !self.budget.try_take(missing) {
            return false;
        }
        self.add(pages, missing);
        true
    }

    /// Whether pages can be taken without any common ones.
    #[inline]
    pub fn fits_first_share(&self, pages: Pages) -> bool {
        self.missing(pages) == 0
    }

    /// Takes pages once the common ones among them are free. Dropping the future gives up the place
    /// in the wait queue.
    pub async fn take(&self, pages: Pages) {
        struct Waits<'a>(&'a AtomicBool);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        self.waits.store(true, Ordering::SeqCst);
        let _waits = Waits(&self.waits);
        let missing = self.missing(pages);
        self.budget.take(missing, self.common_part(self.held() + u64::from(pages.0))).await;
        self.add(pages, missing);
    }

    /// Adds pages, of which `taken` common ones are taken already. Only the reader adds. If replies
    /// were written in the meantime, fewer are needed.
    #[inline]
    fn add(&self, pages: Pages, taken: u64) {
        let before = self.held.fetch_add(u64::from(pages.0), Ordering::SeqCst);
        let needed = self.common_part(before + u64::from(pages.0)) - self.common_part(before);
        self.budget.give_back(taken - needed);
    }

    /// Gives pages back.
    #[inline]
    pub fn give_back(&self, pages: u64) {
        let before = self.held.fetch_sub(pages, Ordering::SeqCst);
        self.budget.give_back(self.common_part(before) - self.common_part(before - pages));
    }

    /// Whether this connection holds common pages for which another one waits.
    pub fn keeps_others_waiting(&self) -> bool {
        let own = usize::from(self.waits.load(Ordering::SeqCst));
        self.common_part(self.held()) > 0 && self.budget.waiting.load(Ordering::SeqCst) > own
    }

    /// Completes when [`ConnectionBudget::keeps_others_waiting`].
    pub async fn until_others_wait(&self) {
        loop {
            let shortage = self.budget.shortage.notified();
            if self.keeps_others_waiting() {
                return;
            }
            shortage.await;
        }
    }
}

impl Drop for ConnectionBudget {
    fn drop(&mut self) {
        self.budget.give_back(self.common_part(self.held()));
        self.budget.shares.fetch_sub(self.budget.first_share, Ordering::SeqCst);
    }
}
