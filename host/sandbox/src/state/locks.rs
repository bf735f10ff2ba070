//! Range locks, granted in the order of asking.
//!
//! Every lock that is held or waited for is an entry in one short list, in the order of asking. An entry waits while an *earlier* entry
//! conflicts with it: overlaps, and one of the two is exclusive. So nobody overtakes a conflicting lock that is waiting, what does not
//! conflict passes, and since each waits only for earlier ones, no set of locks can wait for each other.
//!
//! Each entry counts the earlier ones in its way (`blockers`). An entry that goes away, whether it was held, gave up waiting or was refused, takes one
//! off every later entry it conflicts with; at zero the lock is held and its task is woken. That is the whole algorithm:
//! there is no hand-over that could be lost, because to hold a lock *is* to have no blockers.
//!
//! A list and not a tree: an instance holds or awaits at most one lock, and there are at most some dozens of instances. One mutex and not
//! several by range: it is held for some tens of nanoseconds, and a lock over several shards would have to enter all of them at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rbdkit_plugin_api::{Errno, Op};

/// With whom a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With other shared ones.
    Shared,
    /// With none.
    Exclusive,
}

/// What a waiting lock does when the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Gives up with ESHUTDOWN: requests of clients.
    UntilShutdown,
    /// Waits on: finalize and close, which have to write back what must not be lost. It ends when what every holder waits for does.
    Always,
}

/// The range locks of one scope.
#[derive(Default)]
pub struct Locks(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// Ascending by `id`, which is the order of asking.
    entries: Vec<Entry>,
    next_id: u64,
    stopping: bool,
}

struct Entry {
    id: u64,
    /// The first and the last byte.
    first: u64,
    last: u64,
    mode: Mode,
    patience: Patience,
    /// How many entries before this one conflict with it. Held if none.
    blockers: usize,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        self.first <= other.last
            && other.first <= self.last
            && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

impl Table {
    fn position(&self, id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    /// Takes an entry out and says who is to be woken, once the table is unlocked.
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
pub struct Held {
    locks: Arc<Locks>,
    id: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.leave(self.id);
    }
}

/// Waits in the list; leaves it when dropped, unless the lock was handed out.
struct Waiting {
    locks: Arc<Locks>,
    id: u64,
    over: bool,
}

impl Future for Waiting {
    type Output = Result<Held, Errno>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut table = self.locks.table();
        let Some(position) = table.position(self.id) else {
            // Only a shutdown takes out an entry that waits.
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
        Poll::Ready(Ok(Held { locks: Arc::clone(&self.locks), id: self.id }))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            self.locks.leave(self.id);
        }
    }
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks `length` bytes at `offset`, waiting for conflicting locks that were asked for before. The place in the queue is taken at once,
    /// and given up if the answer is dropped.
    ///
    /// # Errors
    /// EINVAL for a length of 0 or a range beyond 2^64; ESHUTDOWN if it would have to wait and the server stops ([`Patience`]).
    pub fn lock_now(
        self: &Arc<Locks>,
        offset: u64,
        length: u64,
        mode: Mode,
        patience: Patience,
    ) -> Op<Result<Held, Errno>> {
        match self.enter(offset, length, mode, patience) {
            Ok((id, true)) => Op::Ready(Ok(Held { locks: Arc::clone(self), id })),
            Ok((id, false)) => Op::later(Waiting { locks: Arc::clone(self), id, over: false }),
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
        mode: Mode,
        patience: Patience,
    ) -> Result<Held, Errno> {
        self.lock_now(offset, length, mode, patience).await
    }

    /// Puts an entry at the end. Its id, and whether the lock is held already.
    fn enter(&self, offset: u64, length: u64, mode: Mode, patience: Patience) -> Result<(u64, bool), Errno> {
        let last = length.checked_sub(1).and_then(|n| offset.checked_add(n)).ok_or(Errno::Einval)?;
        let mut table = self.table();
        let mut entry = Entry { id: table.next_id, first: offset, last, mode, patience, blockers: 0, waker: None };
        entry.blockers = table.entries.iter().filter(|earlier| earlier.conflicts(&entry)).count();
        if entry.blockers > 0 && table.stopping && patience == Patience::UntilShutdown {
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
        // Not there: refused by a shutdown.
        if let Some(position) = table.position(id) {
            table.remove(position, &mut wake);
        }
        drop(table);
        wake.into_iter().for_each(Waker::wake);
    }

    /// The server stops: who waits gets ESHUTDOWN, and so does from now on who would have to wait, but for [`Patience::Always`]. What is held
    /// stays held.
    pub fn shutdown(&self) {
        let mut wake = Vec::new();
        let mut table = self.table();
        table.stopping = true;
        // From the end, so that what stays before a position stays where it is.
        for position in (0..table.entries.len()).rev() {
            let entry = &mut table.entries[position];
            if entry.blockers > 0 && entry.patience == Patience::UntilShutdown {
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
