//! Free clusters: reserving them ahead, handing them out, giving them back.
//!
//! Clusters are reserved many at a time: their reference counts become one, they become zero, and
//! one flush makes both durable. From then on a table may name such a cluster at any moment without
//! a further flush, and its bytes that nobody wrote are zero. What is reserved and not used when
//! the server is killed is a leak.
//!
//! A reference count is lowered only after a flush has made the change durable that removed the
//! reference. Until then the map of pending changes has it, which is lost with the server: a leak
//! again.

use std::rc::Rc;

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::{Below, ClusterMap, Lock, META, PLAIN, RESERVED, Shared, TABLE};
use super::refcounts::{Counts, Refcounts};
use crate::qcow2::header::Header;

/// The number of the lock for reference counts. Disks have less than 2^54 clusters.
const SPACE: u64 = 1 << 60;
/// The number of the lock for flushing together.
const FLUSH: u64 = SPACE + 1;
/// At most so many clusters are examined at a time.
const SCAN: u64 = 1 << 18;
/// At most so many runs of pending changes are made at a time.
const MOST_PENDING: usize = 1 << 16;
/// All states of a map but 0.
const ANY: u8 = 0b1110;

/// The space of an image file.
pub(super) struct Space {
    below: Rc<dyn Below>,
    shared: Rc<dyn Shared>,
    pub(super) refcounts: Refcounts,
    cluster_bits: u32,
    size: u64,
}

impl Space {
    pub(super) fn new(header: &Header, source: &Rc<dyn Source>, below: Rc<dyn Below>, shared: Rc<dyn Shared>) -> Space {
        let refcounts = Refcounts::new(header, Rc::clone(source), Rc::clone(&below), Rc::clone(&shared));
        Space { below, shared, refcounts, cluster_bits: header.cluster_bits, size: source.size() }
    }

    /// Locks the reference counts. No other lock may be held.
    pub(super) fn lock(&self) -> Result<(), Errno> {
        self.shared.lock(SPACE, 1, Lock::Exclusive)
    }

    /// Takes `wanted` clusters, with a reference count of one and zero. Locks.
    ///
    /// # Errors
    /// Those of next, ENOSPC with a line in the log, and a line if the image is wrong.
    pub(super) fn take(&self, wanted: u64) -> Result<Vec<u64>, Error> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        self.lock()?;
        let taken = self.take_locked(wanted);
        self.shared.unlock();
        taken
    }

    fn take_locked(&self, wanted: u64) -> Result<Vec<u64>, Error> {
        let mut taken = Vec::new();
        while (taken.len() as u64) < wanted {
            let missing = wanted - taken.len() as u64;
            match self.shared.find(ClusterMap::Roles, 0, 1 << RESERVED) {
                Some(first) => {
                    let (_, count) = self.shared.run(ClusterMap::Roles, first, missing);
                    self.shared.set(ClusterMap::Roles, first, count, 1 << RESERVED, PLAIN);
                    taken.extend(first..first + count);
                }
                None => {
                    if let Err(error) = self.reserve_or_free(missing) {
                        self.give_back(&taken);
                        return Err(error);
                    }
                }
            }
        }
        Ok(taken)
    }

    /// Takes back clusters that were not used.
    pub(super) fn give_back(&self, clusters: &[u64]) {
        for cluster in clusters {
            self.shared.set(ClusterMap::Roles, *cluster, 1, 1 << PLAIN, RESERVED);
        }
    }

    /// Reserves clusters. What was freed is looked at if there are none.
    fn reserve_or_free(&self, wanted: u64) -> Result<(), Error> {
        if self.reserve(wanted)? {
            return Ok(());
        }
        self.lower_pending()?;
        if self.reserve(wanted)? {
            return Ok(());
        }
        self.shared.warn(&format!(
            "the image file has {} bytes, and no free cluster of {} bytes: make it larger with \
             truncate -s +SIZE FILE, and start the server again",
            self.size,
            1u64 << self.cluster_bits
        ));
        Err(Errno::Enospc.into())
    }

    /// Reserves at least `wanted` clusters. False if there are not so many.
    fn reserve(&self, wanted: u64) -> Result<bool, Error> {
        // 4 MiB at first, and up to 64 MiB: what a kill can leave unused.
        let least = ((4 << 20) >> self.cluster_bits).clamp(4, 64);
        let most = ((64 << 20) >> self.cluster_bits).clamp(16, 4096);
        let (start, batch) = self.shared.search();
        let goal = wanted.max(batch.max(least));
        let runs = self.find_free(start.min(self.refcounts.total()), goal, wanted)?;
        let found: u64 = runs.iter().map(|(_, count)| count).sum();
        if found < wanted {
            return Ok(false);
        }
        for (first, count) in &runs {
            self.refcounts.put(*first, &vec![1; *count as usize])?;
            self.below.zero(first << self.cluster_bits, count << self.cluster_bits)?;
        }
        self.below.flush()?;
        for (first, count) in &runs {
            self.shared.set(ClusterMap::Roles, *first, *count, 1 << PLAIN, RESERVED);
        }
        let end = runs.last().map_or(0, |(first, count)| first + count);
        self.shared.set_search((end, goal.saturating_mul(2).min(most)));
        Ok(true)
    }

    /// Runs of free clusters, `goal` in all if there are so many: those from `start` on first. For
    /// `wanted` clusters the table grows.
    fn find_free(&self, start: u64, goal: u64, wanted: u64) -> Result<Vec<(u64, u64)>, Error> {
        let total = self.refcounts.total();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut left = goal;
        for (from, to) in [(start, total), (0, start)] {
            let mut at = from;
            while at < to && left > 0 {
                match self.refcounts.get(at, (to - at).min(SCAN))? {
                    Counts::Known(counts) => {
                        self.free_of(at, &counts, &mut runs, &mut left);
                        at += counts.len() as u64;
                    }
                    Counts::NoBlock => self.refcounts.add_blocks(at)?,
                    // Clusters before the table's end are taken first.
                    Counts::NoTable if goal - left >= wanted => break,
                    Counts::NoTable => match self.refcounts.grow()? {
                        None => break,
                        Some((first, count)) => {
                            self.shared.set(ClusterMap::Roles, first, count, 1 << META, PLAIN);
                            self.lower(first, count, 1)?;
                        }
                    },
                }
            }
        }
        Ok(runs)
    }

    /// Appends the free ones of clusters whose counts are known.
    fn free_of(&self, first: u64, counts: &[u64], runs: &mut Vec<(u64, u64)>, left: &mut u64) {
        let mut at = 0;
        while at < counts.len() && *left > 0 {
            let here = first + at as u64;
            if counts[at] != 0 {
                at += 1;
                continue;
            }
            let free = counts[at..].iter().take_while(|count| **count == 0).count() as u64;
            let (role, same) = self.shared.run(ClusterMap::Roles, here, free.min(*left));
            let n = same.max(1);
            if role == PLAIN && same > 0 {
                match runs.last_mut() {
                    Some((start, count)) if *start + *count == here => *count += n,
                    _ => runs.push((here, n)),
                }
                *left -= n;
            }
            at += n as usize;
        }
    }

    /// Notes that a reference to each of these clusters is gone. Locks.
    ///
    /// # Errors
    /// Those of next.
    pub(super) fn free(&self, mut clusters: Vec<u64>) -> Result<(), Error> {
        if clusters.is_empty() {
            return Ok(());
        }
        clusters.sort_unstable();
        self.lock()?;
        let noted = self.note(&clusters);
        self.shared.unlock();
        noted
    }

    fn note(&self, clusters: &[u64]) -> Result<(), Error> {
        let mut at = 0;
        while at < clusters.len() {
            let first = clusters[at];
            let run = (first..).zip(&clusters[at..]).take_while(|(expected, cluster)| expected == *cluster).count();
            let (state, count) = self.shared.run(ClusterMap::Pending, first, run as u64);
            if state == 3 {
                // The map cannot count further.
                self.lower_pending()?;
                continue;
            }
            if count == 0 {
                // It is beyond the end of the image.
                at += 1;
                continue;
            }
            self.shared.set(ClusterMap::Pending, first, count, 1 << state, state + 1);
            at += count as usize;
        }
        Ok(())
    }

    /// Whether reference counts are to be lowered.
    pub(super) fn has_pending(&self) -> bool {
        self.shared.find(ClusterMap::Pending, 0, ANY).is_some()
    }

    /// Makes durable what was written before. One flush serves all requests that wait for one.
    /// Locks.
    ///
    /// # Errors
    /// Those of next.
    pub(super) fn flush_together(&self) -> Result<(), Error> {
        let (begun, _) = self.shared.flushes();
        self.shared.lock(FLUSH, 1, Lock::Exclusive)?;
        let (last, done) = self.shared.flushes();
        let flushed = if done > begun {
            // It began after what was written before.
            Ok(())
        } else {
            self.shared.set_flushes((last + 1, done));
            self.below.flush().inspect(|()| self.shared.set_flushes((last + 1, last + 1)))
        };
        self.shared.unlock();
        Ok(flushed?)
    }

    /// Flushes, and lowers the reference counts of what was freed before. Locks.
    ///
    /// # Errors
    /// Those of next.
    pub(super) fn lower_now(&self) -> Result<(), Error> {
        self.lock()?;
        let lowered = self.lower_pending();
        self.shared.unlock();
        lowered
    }

    fn lower_pending(&self) -> Result<(), Error> {
        let mut taken = Vec::new();
        let mut at = 0;
        while taken.len() < MOST_PENDING {
            let Some(first) = self.shared.find(ClusterMap::Pending, at, ANY) else { break };
            let (state, count) = self.shared.run(ClusterMap::Pending, first, SCAN);
            self.shared.set(ClusterMap::Pending, first, count, 1 << state, 0);
            taken.push((first, count, state));
            at = first + count;
        }
        if let Err(errno) = self.below.flush() {
            // Nothing is lowered that may not be durable.
            for (first, count, state) in taken {
                self.shared.set(ClusterMap::Pending, first, count, 1, state);
            }
            return Err(errno.into());
        }
        for (first, count, by) in taken {
            self.lower(first, count, by.into())?;
        }
        Ok(())
    }

    /// Lowers the reference counts of clusters by `by`.
    fn lower(&self, first: u64, count: u64, by: u64) -> Result<(), Error> {
        let (mut at, end) = (first, first + count);
        while at < end {
            let known = match self.refcounts.get(at, end - at)? {
                Counts::Known(counts) => counts,
                // They have no counts that could be lowered.
                Counts::NoBlock | Counts::NoTable => {
                    self.warn_of(at, 0, by);
                    at += 1;
                    continue;
                }
            };
            if let Some(n) = known.iter().position(|count| *count < by) {
                self.warn_of(at + n as u64, known[n], by);
            }
            let now: Vec<u64> = known.iter().map(|count| count.saturating_sub(by)).collect();
            self.refcounts.put(at, &now)?;
            let mut n = 0;
            while n < now.len() {
                let free = (n..now.len()).take_while(|n| now[*n] == 0 && known[*n] != 0).count();
                if free > 0 {
                    let first = at + n as u64;
                    self.shared.set(ClusterMap::Roles, first, free as u64, 1 << TABLE, PLAIN);
                    // It is only advice.
                    let _ = self.below.discard(first << self.cluster_bits, (free as u64) << self.cluster_bits);
                }
                n += free.max(1);
            }
            at += known.len() as u64;
        }
        Ok(())
    }

    fn warn_of(&self, cluster: u64, count: u64, by: u64) {
        self.shared.warn(&format!(
            "the reference count of the cluster at {} is {count}, and {by} references to it were removed: 'qemu-img \
             check' says more",
            cluster << self.cluster_bits
        ));
    }

    /// Gives back to the image what is reserved, and lowers what is pending. Locks.
    ///
    /// # Errors
    /// Those of next.
    pub(super) fn release(&self) -> Result<(), Error> {
        self.lock()?;
        let released = self.release_locked();
        self.shared.unlock();
        released
    }

    fn release_locked(&self) -> Result<(), Error> {
        if self.has_pending() {
            self.lower_pending()?;
        }
        while let Some(first) = self.shared.find(ClusterMap::Roles, 0, 1 << RESERVED) {
            let (_, count) = self.shared.run(ClusterMap::Roles, first, SCAN);
            self.shared.set(ClusterMap::Roles, first, count, 1 << RESERVED, PLAIN);
            self.refcounts.put(first, &vec![0; count as usize])?;
        }
        self.shared.set_search((0, 0));
        Ok(self.below.flush()?)
    }
}
