//! Range locks, granted in the order in which they were requested.
//!
//! Every lock that is held or waited for is an entry in one short list, in the order of the
//! requests. An entry waits while an *earlier* entry conflicts with it: the two ranges overlap and
//! at least one of the locks is exclusive. So no lock overtakes a waiting lock that it conflicts
//! with, and other locks are granted at once. Each entry waits only for earlier ones, so there is
//! no deadlock.
//!
//! Each entry counts the earlier entries that it conflicts with (`blockers`). When an entry leaves
//! (its lock was released, its caller gave up, or it was refused), every later entry that it
//! conflicts with loses one blocker. At zero the lock is held and its task is woken. A lock without
//! blockers *is* held, so no hand-over can be lost.
//!
//! It is a list and not a tree because an instance holds or awaits at most one lock, and there are
//! at most some dozens of instances. There is one mutex and not one for each part of the range,
//! because it is held for only some tens of nanoseconds, and a long range would have to take all of
//! them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use rbdkit_plugin_api::{Errno, Op, lock};

/// With which other locks a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// With other shared locks.
    Shared,
    /// With no other lock.
    Exclusive,
}

/// What a caller that waits for a lock does when the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// It gives up with ESHUTDOWN. For requests of clients.
    GiveUp,
    /// It keeps waiting until the holders have released the lock. For finalize and close, which
    /// write back data that must not be lost.
    KeepWaiting,
}

/// The range locks of one scope.
#[derive(Default)]
pub struct Locks(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// In the order of the requests, which is the order of `id`.
    entries: Vec<LockEntry>,
    next_id: u64,
    stopping: bool,
}

struct LockEntry {
    id: u64,
    /// The first and the last byte.
    first: u64,
    last: u64,
    mode: LockMode,
    on_shutdown: OnShutdown,
    /// How many earlier entries conflict with this one. If there are none, the lock is held.
    blockers: usize,
    waker: Option<Waker>,
}

impl LockEntry {
    fn conflicts(&self, other: &LockEntry) -> bool {
        self.first <= other.last
            && other.first <= self.last
            && (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
    }
}

impl Table {
    fn position(&self, id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    /// Removes an entry. Adds the wakers of the locks that are held now to `wake`. The caller wakes
    /// them after it has unlocked the table.
    fn remove(&mut self, position: usize, wake: &mut Vec<Waker>) {
        let gone = self.entries.remove(position);
        for later in &mut self.entries[position..] {
            if gone.conflicts(later) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    wake.extend(later.waker.take());
                }
            }
        }
    }
}

/// A lock that is held. Dropping it releases it.
#[must_use = "a lock that is dropped is released"]
pub struct HeldLock {
    locks: Arc<Locks>,
    id: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.locks.leave(self.id);
    }
}

/// Waits for a lock. Leaves the list when dropped, unless the caller has got the lock.
struct WaitingLock {
    locks: Arc<Locks>,
    id: u64,
    over: bool,
}

impl Future for WaitingLock {
    type Output = Result<HeldLock, Errno>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut table = self.locks.table();
        let Some(position) = table.position(self.id) else {
            // Only a shutdown removes an entry that waits.
            drop(table);
            self.over = true;
            return Poll::Ready(Err(Errno::Eshutdown));
        };
        let entry = &mut table.entries[position];
        if entry.blockers > 0 {
            match &mut entry.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        drop(table);
        self.over = true;
        Poll::Ready(Ok(HeldLock { locks: Arc::clone(&self.locks), id: self.id }))
    }
}

impl Drop for WaitingLock {
    fn drop(&mut self) {
        if !self.over {
            self.locks.leave(self.id);
        }
    }
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Locks `length` bytes at `offset`, after earlier conflicting locks. The entry is added at
    /// once, and removed if the answer is dropped.
    ///
    /// # Errors
    /// EINVAL for a length of 0 or a range beyond 2^64. ESHUTDOWN if the lock is not free and the
    /// server stops ([`OnShutdown::GiveUp`]).
    pub fn lock_now(
        self: &Arc<Locks>,
        offset: u64,
        length: u64,
        mode: LockMode,
        on_shutdown: OnShutdown,
    ) -> Op<Result<HeldLock, Errno>> {
        match self.enter(offset, length, mode, on_shutdown) {
            Ok((id, true)) => Op::Ready(Ok(HeldLock { locks: Arc::clone(self), id })),
            Ok((id, false)) => Op::later(WaitingLock { locks: Arc::clone(self), id, over: false }),
            Err(errno) => Op::Ready(Err(errno)),
        }
    }

    /// [`Locks::lock_now`] as a future that begins when it is polled.
    ///
    /// # Errors
    /// The same.
    pub async fn lock(
        self: &Arc<Locks>,
        offset: u64,
        length: u64,
        mode: LockMode,
        on_shutdown: OnShutdown,
    ) -> Result<HeldLock, Errno> {
        self.lock_now(offset, length, mode, on_shutdown).await
    }

    /// Adds an entry at the end. Answers its id, and whether the lock is held already.
    fn enter(&self, offset: u64, length: u64, mode: LockMode, on_shutdown: OnShutdown) -> Result<(u64, bool), Errno> {
        let last = length.checked_sub(1).and_then(|n| offset.checked_add(n)).ok_or(Errno::Einval)?;
        let mut table = self.table();
        let mut entry =
            LockEntry { id: table.next_id, first: offset, last, mode, on_shutdown, blockers: 0, waker: None };
        entry.blockers = table.entries.iter().filter(|earlier| earlier.conflicts(&entry)).count();
        if entry.blockers > 0 && table.stopping && on_shutdown == OnShutdown::GiveUp {
            return Err(Errno::Eshutdown);
        }
        let result = (entry.id, entry.blockers == 0);
        table.next_id += 1;
        table.entries.push(entry);
        Ok(result)
    }

    fn leave(&self, id: u64) {
        let mut wake = Vec::new();
        let mut table = self.table();
        // A shutdown may have removed it already.
        if let Some(position) = table.position(id) {
            table.remove(position, &mut wake);
        }
        drop(table);
        wake.into_iter().for_each(Waker::wake);
    }

    /// The server stops: callers with [`OnShutdown::GiveUp`] get ESHUTDOWN instead of waiting, from
    /// now on. Locks that are held stay held.
    pub fn shutdown(&self) {
        let mut wake = Vec::new();
        let mut table = self.table();
        table.stopping = true;
        // From the end, so that removing an entry does not move those that are still to be visited.
        for position in (0..table.entries.len()).rev() {
            let entry = &mut table.entries[position];
            if entry.blockers > 0 && entry.on_shutdown == OnShutdown::GiveUp {
                wake.extend(entry.waker.take());
                table.remove(position, &mut wake);
            }
        }
        drop(table);
        wake.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
