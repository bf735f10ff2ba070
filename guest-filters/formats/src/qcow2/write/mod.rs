//! Writing to an image.
//!
//! # What a kill leaves
//! Every write to the image keeps this order, so that the tables are right at every moment, whether
//! the server is killed or the machine loses what was not flushed:
//! * A cluster has a durable reference count of one, and is durably zero, before a table names it:
//!   clusters are reserved many at a time (`space.rs`).
//! * A part of a cluster that is copied is durable before the L2 table names the copy.
//! * A table is durable before the table above names it.
//! * A reference count is lowered after the change is durable that removed the reference.
//!
//! What is left are clusters with a reference count that nothing names: leaks.
//!
//! # Locks
//! A request locks the clusters of the disk that it uses: shared to read and to overwrite, and
//! exclusively to change where they are. One that makes an L2 table locks all that the table maps.
//! Reference counts have a lock of their own, which no request takes while it holds another.

mod open;
mod ports;
mod refcounts;
mod space;
mod tables;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

use super::image::Image;
use super::layout::{Place, ZERO};

pub use open::{prepare, refusal};
pub use ports::{Below, Lock, META, Map, PLAIN, Payload, RESERVED, Shared, TABLE};

use space::Space;
use tables::{L2, Tables, Use, own_entry};

/// A request is served in parts of at most so many clusters.
const MOST_CLUSTERS: u64 = 1024;
/// Others may change the tables between a look at them and the lock for a change.
const ATTEMPTS: u32 = 64;

/// An image that is written.
pub struct Writer {
    image: Image,
    below: Rc<dyn Below>,
    shared: Rc<dyn Shared>,
    space: Space,
    tables: Tables,
    /// The generation of the tables that are cached.
    seen: Cell<u64>,
    size: u64,
}

/// A part of a request: within one L2 table.
#[derive(Clone, Copy)]
struct Part {
    offset: u64,
    length: u64,
    /// Where it begins in the payload.
    at: u64,
    /// Its clusters of the disk.
    first: u64,
    count: u64,
}

/// What the tables say of a part.
struct View {
    l2: L2,
    entries: Vec<u64>,
    uses: Vec<Use>,
}

/// What is to be done with whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// They may read as anything.
    Discard,
    /// They have to read as zero.
    Zero,
}

impl Writer {
    /// Writes to an image that [`prepare`] has prepared.
    pub fn new(image: Image, below: Rc<dyn Below>, shared: Rc<dyn Shared>) -> Writer {
        let source = Rc::clone(image.map().source());
        let space = Space::new(image.header(), &source, Rc::clone(&below), Rc::clone(&shared));
        let tables = Tables {
            layout: image.map().layout(),
            l1: image.header().l1,
            below: Rc::clone(&below),
            shared: Rc::clone(&shared),
        };
        let seen = Cell::new(shared.generation());
        Writer { image, below, shared, space, tables, seen, size: source.size() }
    }

    /// Forgets the tables if others have changed them. A lock is held, or nothing is changed.
    fn sync(&self) {
        let now = self.shared.generation();
        if now != self.seen.get() {
            self.image.map().clear();
            self.seen.set(now);
        }
    }

    /// Tells the others that tables have changed.
    fn changed(&self) {
        let now = self.shared.count_change();
        if now == self.seen.get().wrapping_add(1) {
            self.seen.set(now);
        }
    }

    fn cluster(&self) -> u64 {
        self.tables.layout.cluster_size()
    }

    /// How many clusters of the disk an L2 table maps.
    fn per_table(&self) -> u64 {
        self.cluster() / self.tables.layout.entry_size()
    }

    /// The next part of a range, which is not empty.
    fn part(&self, offset: u64, length: u64, at: u64) -> Part {
        let cluster = self.cluster();
        let first = offset / cluster;
        let in_table = self.per_table() - first % self.per_table();
        let end = (first + in_table.min(MOST_CLUSTERS)) * cluster;
        let length = length.min(end - offset);
        Part { offset, length, at, first, count: (offset + length - 1) / cluster - first + 1 }
    }

    /// Runs `serve` for the clusters of a range while nobody changes where they are.
    fn reading<R>(&self, offset: u64, length: u64, serve: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        if length == 0 {
            return serve();
        }
        let first = offset / self.cluster();
        let last = offset.saturating_add(length - 1) / self.cluster();
        self.shared.lock(first, last - first + 1, Lock::Shared)?;
        self.sync();
        let answer = serve();
        self.shared.unlock();
        answer
    }

    /// Writes a range, which lies within the disk.
    ///
    /// # Errors
    /// Those of next and of the backing disk, ENOSPC, and a line if the image is wrong.
    pub fn write(&self, offset: u64, length: u64, payload: Payload) -> Result<(), Error> {
        self.clear_features()?;
        self.write_range(offset, length, payload)
    }

    fn write_range(&self, offset: u64, length: u64, payload: Payload) -> Result<(), Error> {
        let mut done = 0;
        while done < length {
            let part = self.part(offset + done, length - done, done);
            self.write_part(part, payload)?;
            done += part.length;
        }
        Ok(())
    }

    /// Discards a range, or makes it read as zero.
    ///
    /// # Errors
    /// Those of [`write`](Writer::write).
    pub fn unmap(&self, offset: u64, length: u64, how: Unmap) -> Result<(), Error> {
        self.clear_features()?;
        let cluster = self.cluster();
        let end = offset + length;
        // The last cluster of the disk may not be a whole one.
        let last = if end == self.image.size() { end } else { end / cluster * cluster };
        let first = offset.next_multiple_of(cluster).min(end);
        let last = last.max(first);
        let by_entry = self.image.header().version >= 3 || self.image.backing().is_none();
        if how == Unmap::Zero && !by_entry {
            return self.write_range(offset, length, Payload::Zeroes);
        }
        if how == Unmap::Zero {
            self.write_range(offset, first - offset, Payload::Zeroes)?;
            self.write_range(last, end - last, Payload::Zeroes)?;
        }
        let mut at = first;
        while by_entry && at < last {
            let part = self.part(at, last - at, 0);
            self.unmap_part(part)?;
            at += part.length;
        }
        Ok(())
    }

    /// Makes durable what was written before, and lowers the reference counts of what was freed.
    ///
    /// # Errors
    /// Those of next.
    pub fn flush(&self) -> Result<(), Error> {
        if self.space.has_pending() { self.space.lower_now() } else { Ok(self.below.flush()?) }
    }

    /// Flushes, and gives back what is reserved: at the end of a connection.
    ///
    /// # Errors
    /// Those of next.
    pub fn finish(&self) -> Result<(), Error> {
        self.space.release()
    }

    /// The header has bits that say that something beside the disk is right, for example dirty
    /// bitmaps. They are cleared before the first change.
    fn clear_features(&self) -> Result<(), Error> {
        if self.image.header().autoclear == 0 || self.shared.is_cleared() {
            return Ok(());
        }
        self.space.lock()?;
        let cleared = self.below.write(88, &[0; 8]).and_then(|()| self.below.flush());
        if cleared.is_ok() {
            self.shared.set_cleared();
        }
        self.shared.unlock();
        Ok(cleared?)
    }

    fn view(&self, part: &Part) -> Result<View, Error> {
        let cache = self.image.map().cache();
        let l2 = self.tables.l2(cache, part.first / self.per_table())?;
        let entries = self.tables.entries(cache, l2, part.first % self.per_table(), part.count)?;
        let uses = (part.first..)
            .zip(&entries)
            .map(|(cluster, entry)| self.tables.usage(*entry, cluster * self.cluster(), self.size))
            .collect::<Result<_, _>>()?;
        Ok(View { l2, entries, uses })
    }

    /// Whether a cluster reads as zero.
    fn is_zero(&self, cluster: u64, place: Place) -> bool {
        let backing = self.image.backing().map_or(0, |backing| backing.size());
        place == Place::Zero || cluster * self.cluster() >= backing
    }

    /// The clusters of a part that need space, by their number in the part.
    fn missing(&self, part: &Part, view: &View, payload: Payload) -> Vec<usize> {
        let needs = |n: &usize| match view.uses[*n] {
            Use::Own(_) => false,
            Use::Copy => true,
            Use::Empty(place) => !matches!(payload, Payload::Zeroes) || !self.is_zero(part.first + *n as u64, place),
        };
        (0..view.uses.len()).filter(needs).collect()
    }

    fn write_part(&self, part: Part, payload: Payload) -> Result<(), Error> {
        let mut taken = Vec::new();
        let mut whole_table = false;
        for _ in 0..ATTEMPTS {
            let needed = self.reading(part.offset, part.length, || {
                let view = self.view(&part)?;
                let missing = self.missing(&part, &view, payload);
                whole_table = !missing.is_empty() && !matches!(view.l2, L2::Own(_));
                if missing.is_empty() {
                    self.write_own(&part, &view, payload)?;
                }
                Ok(missing.len() as u64 + u64::from(whole_table))
            });
            let needed = match needed {
                Ok(0) => {
                    self.space.give_back(&taken);
                    return Ok(());
                }
                Ok(needed) => needed,
                Err(error) => {
                    self.space.give_back(&taken);
                    return Err(error);
                }
            };
            let more = needed.saturating_sub(taken.len() as u64);
            let more = self.space.take(more).inspect_err(|_| self.space.give_back(&taken))?;
            taken.extend(more);
            // From the lowest on.
            taken.sort_unstable_by(|a, b| b.cmp(a));
            let mut freed = Vec::new();
            self.lock_for_change(&part, whole_table).inspect_err(|_| self.space.give_back(&taken))?;
            let done = self.write_new(&part, payload, whole_table, &mut taken, &mut freed);
            self.shared.unlock();
            if let Ok(true) | Err(_) = done {
                self.space.give_back(&taken);
                self.space.free(freed)?;
                return done.map(drop);
            }
        }
        self.space.give_back(&taken);
        Err(Error::image(format!("the tables for {} change all the time: the write gives up", part.offset)))
    }

    /// Locks the clusters of a part, or all clusters of its L2 table.
    fn lock_for_change(&self, part: &Part, whole_table: bool) -> Result<(), Error> {
        let (first, count) = if whole_table {
            (part.first / self.per_table() * self.per_table(), self.per_table())
        } else {
            (part.first, part.count)
        };
        self.shared.lock(first, count, Lock::Exclusive)?;
        self.sync();
        Ok(())
    }

    /// Overwrites the clusters of a part that are there and are not shared.
    fn write_own(&self, part: &Part, view: &View, payload: Payload) -> Result<(), Error> {
        let mut run: Option<(u64, u64, u64)> = None;
        for (n, usage) in view.uses.iter().enumerate() {
            let Use::Own(host) = *usage else { continue };
            let (start, end) = self.within(part, n);
            self.tables.check_data(host, start)?;
            let (to, length) = (host + start % self.cluster(), end - start);
            match &mut run {
                Some((at, from, so_far)) if *at + *so_far == to && *from + *so_far == start => *so_far += length,
                _ => {
                    self.write_run(part, run, payload)?;
                    run = Some((to, start, length));
                }
            }
        }
        self.write_run(part, run, payload)
    }

    /// Writes a run of bytes of a part: where, the offset of the disk, and how many.
    fn write_run(&self, part: &Part, run: Option<(u64, u64, u64)>, payload: Payload) -> Result<(), Error> {
        let Some((to, offset, length)) = run else { return Ok(()) };
        let at = part.at + (offset - part.offset);
        match payload {
            Payload::Guest(bytes) => self.below.write(to, &bytes[at as usize..(at + length) as usize])?,
            Payload::Buffer(buffer) => self.below.write_buffer(to, length as u32, buffer, at as u32)?,
            Payload::Zeroes => self.below.zero(to, length)?,
        }
        Ok(())
    }

    /// The bytes of the disk that a part has of its cluster `n`.
    fn within(&self, part: &Part, n: usize) -> (u64, u64) {
        let start = (part.first + n as u64) * self.cluster();
        (start.max(part.offset), (start + self.cluster()).min(part.offset + part.length))
    }

    /// Writes a part whose clusters are locked, with new clusters from `taken` where they are
    /// needed. False if there are not enough, or the lock is too small.
    fn write_new(
        &self,
        part: &Part,
        payload: Payload,
        whole_table: bool,
        taken: &mut Vec<u64>,
        freed: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        let view = self.view(part)?;
        let missing = self.missing(part, &view, payload);
        let makes_table = !missing.is_empty() && !matches!(view.l2, L2::Own(_));
        if (makes_table && !whole_table) || taken.len() < missing.len() + usize::from(makes_table) {
            return Ok(false);
        }
        self.write_own(part, &view, payload)?;
        if missing.is_empty() {
            return Ok(true);
        }
        let table = self.own_table(part, &view, taken, freed)?;
        let mut entries = view.entries.clone();
        let mut copied = false;
        let mut run: Option<(u64, u64, u64)> = None;
        for n in missing {
            let Some(cluster) = taken.pop() else { return Ok(false) };
            let host = cluster * self.cluster();
            entries[n] = own_entry(host);
            let (start, end) = self.within(part, n);
            if !matches!(view.uses[n], Use::Empty(place) if self.is_zero(part.first + n as u64, place)) {
                copied |= self.copy_rest(start, end, host)?;
            }
            // A new cluster is zero.
            if matches!(payload, Payload::Zeroes) {
                continue;
            }
            let (to, length) = (host + start % self.cluster(), end - start);
            match &mut run {
                Some((at, from, so_far)) if *at + *so_far == to && *from + *so_far == start => *so_far += length,
                _ => {
                    self.write_run(part, run, payload)?;
                    run = Some((to, start, length));
                }
            }
        }
        self.write_run(part, run, payload)?;
        if copied {
            self.below.flush()?;
        }
        self.replace_entries(part, table, &view, &entries, freed)?;
        Ok(true)
    }

    /// The offset of the L2 table of a part, which is made if it is missing or shared.
    fn own_table(&self, part: &Part, view: &View, taken: &mut Vec<u64>, freed: &mut Vec<u64>) -> Result<u64, Error> {
        match (view.l2, taken.last().copied()) {
            (L2::Own(offset), _) => Ok(offset),
            (_, None) => Err(rbdkit_filter_sdk::Errno::Enospc.into()),
            (old, Some(cluster)) => {
                taken.pop();
                let made = self.tables.make_l2(self.image.map(), part.first / self.per_table(), old, cluster);
                self.changed();
                let made = made?;
                freed.extend(old.offset().map(|offset| offset / self.cluster()));
                Ok(made)
            }
        }
    }

    /// Writes the entries of a part, and notes what the old ones referred to.
    fn replace_entries(
        &self,
        part: &Part,
        table: u64,
        view: &View,
        entries: &[u64],
        freed: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let differs = |n: &usize| view.entries[*n] != entries[*n];
        let Some(first) = (0..entries.len()).find(differs) else { return Ok(()) };
        let last = (0..entries.len()).rfind(differs).unwrap_or(first);
        let index = part.first % self.per_table() + first as u64;
        let written = self.tables.set_entries(self.image.map(), table, index, &entries[first..=last]);
        self.changed();
        written?;
        let total = self.space.refcounts.total();
        for n in (first..=last).filter(differs) {
            freed.extend(self.tables.references(view.entries[n], total));
        }
        Ok(())
    }

    /// Copies what a write of `start` to `end` leaves of a cluster to its new place. True if
    /// something was copied.
    fn copy_rest(&self, start: u64, end: u64, host: u64) -> Result<bool, Error> {
        let cluster = self.cluster();
        let begin = start / cluster * cluster;
        let stop = (begin + cluster).min(self.image.size());
        let mut copied = false;
        for (from, to) in [(begin, start), (end.min(stop), stop)] {
            if from == to {
                continue;
            }
            let mut bytes = vec![0; (to - from) as usize];
            self.image.read(from, &mut bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                self.below.write(host + from % cluster, &bytes)?;
                copied = true;
            }
        }
        Ok(copied)
    }

    /// The entry of a cluster that reads as zero and takes no space.
    fn empty_entry(&self) -> u64 {
        if self.image.backing().is_some() { ZERO } else { 0 }
    }

    /// Makes whole clusters read as zero.
    fn unmap_part(&self, part: Part) -> Result<(), Error> {
        let mut taken = Vec::new();
        let empty = self.empty_entry();
        let mut whole_table = false;
        for _ in 0..ATTEMPTS {
            let needed = self.reading(part.offset, part.length, || {
                let view = self.view(&part)?;
                let is_done = view.entries.iter().all(|entry| *entry == empty);
                whole_table = !is_done && !matches!(view.l2, L2::Own(_));
                Ok((!is_done).then_some(u64::from(whole_table)))
            });
            let needed = match needed {
                Ok(Some(needed)) => needed,
                done => {
                    self.space.give_back(&taken);
                    return done.map(drop);
                }
            };
            if needed > taken.len() as u64 {
                taken.extend(self.space.take(needed)?);
            }
            let mut freed = Vec::new();
            self.lock_for_change(&part, whole_table).inspect_err(|_| self.space.give_back(&taken))?;
            let done = self.unmap_locked(&part, whole_table, &mut taken, &mut freed);
            self.shared.unlock();
            if let Ok(true) | Err(_) = done {
                self.space.give_back(&taken);
                self.space.free(freed)?;
                return done.map(drop);
            }
        }
        self.space.give_back(&taken);
        Err(Error::image(format!("the tables for {} change all the time: the request gives up", part.offset)))
    }

    fn unmap_locked(
        &self,
        part: &Part,
        whole_table: bool,
        taken: &mut Vec<u64>,
        freed: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        let view = self.view(part)?;
        let entries = vec![self.empty_entry(); view.entries.len()];
        if view.entries == entries {
            return Ok(true);
        }
        if !matches!(view.l2, L2::Own(_)) && (!whole_table || taken.is_empty()) {
            return Ok(false);
        }
        let table = self.own_table(part, &view, taken, freed)?;
        self.replace_entries(part, table, &view, &entries, freed)?;
        Ok(true)
    }
}

impl Source for Writer {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.reading(offset, into.len() as u64, || self.image.read(offset, into))
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.reading(offset, length.into(), || self.image.read_buffer(offset, length, buffer, at))
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.reading(list.at(), list.left(), || self.image.extents(list))
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.reading(offset, length, || self.image.cache(offset, length))
    }

    fn description(&self) -> Option<String> {
        self.image.description()
    }
}
