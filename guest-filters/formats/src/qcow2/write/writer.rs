//! What all requests to an image that is written need: the tables as they are now, the locks, and
//! changing entries.

use std::cell::Cell;
use std::rc::Rc;

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

use super::ports::{Below, Lock, Shared, TableChange};
use super::space::Space;
use super::tables::{L2, Tables};
use crate::qcow2::image::Image;
use crate::qcow2::layout::{Entry, Place};

/// A request is served in parts of at most so many clusters.
const MOST_CLUSTERS: u64 = 1024;
/// Others may change the tables between a look at them and the lock for a change.
pub(super) const ATTEMPTS: u32 = 64;

/// Who has missed more changes of the tables than this reads them again.
const MOST_BEHIND: u64 = 8;

/// An image that is written.
pub struct Writer {
    pub(super) image: Image,
    pub(super) below: Rc<dyn Below>,
    pub(super) shared: Rc<dyn Shared>,
    pub(super) space: Space,
    pub(super) tables: Tables,
    /// The generation of the tables that are cached.
    seen: Cell<u64>,
    pub(super) size: u64,
}

/// A part of a request: within one L2 table.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Where it begins in the payload.
    pub(super) at: u64,
    /// Its clusters of the disk.
    pub(super) first: u64,
    pub(super) count: u64,
}

/// What the tables say of a part.
pub(super) struct View {
    pub(super) l2: L2,
    pub(super) entries: Vec<Entry>,
}

impl Writer {
    /// Writes to an image that [`prepare`] has prepared.
    pub fn new(image: Image, below: Rc<dyn Below>, shared: Rc<dyn Shared>) -> Writer {
        let source = Rc::clone(image.map().source());
        let space = Space::new(image.header(), &source, Rc::clone(&below), Rc::clone(&shared));
        let tables = Tables::new(&image, &below, &shared);
        let seen = Cell::new(shared.generation());
        Writer { image, below, shared, space, tables, seen, size: source.size() }
    }

    /// Follows the changes that others have made to the tables. A lock is held, or nothing is
    /// changed.
    ///
    /// A cached block may have a change already that is counted later. If an older one is made to
    /// it here, the later one follows before a request can lock the cluster in question.
    fn sync(&self) {
        let (now, seen) = (self.shared.generation(), self.seen.get());
        let is_known = |n| self.shared.change(seen.wrapping_add(n)).is_some_and(|change| self.follow(change));
        let behind = now.wrapping_sub(seen);
        if behind > MOST_BEHIND || !(1..=behind).all(is_known) {
            self.image.map().clear();
        }
        self.seen.set(now);
    }

    /// False if the cache has to be cleared for it.
    fn follow(&self, change: TableChange) -> bool {
        let cache = self.image.map().cache();
        match change {
            TableChange::Entry { at, entry } => {
                let mut bytes = Vec::with_capacity(16);
                self.tables.layout.put_entry(entry, &mut bytes);
                cache.update(at, &bytes);
            }
            TableChange::Bytes { at, length } => cache.forget(at, length),
            TableChange::Table => return false,
        }
        true
    }

    /// Tells the others that tables have changed.
    pub(super) fn changed(&self, change: TableChange) {
        let now = self.shared.count_change(change);
        if now == self.seen.get().wrapping_add(1) {
            self.seen.set(now);
        }
    }

    pub(super) fn cluster(&self) -> u64 {
        self.tables.layout.cluster_size()
    }

    /// How many clusters of the disk an L2 table maps.
    pub(super) fn per_table(&self) -> u64 {
        self.cluster() / self.tables.layout.entry_size()
    }

    /// The next part of a range, which is not empty.
    pub(super) fn part(&self, offset: u64, length: u64, at: u64) -> Part {
        let cluster = self.cluster();
        let first = offset / cluster;
        let in_table = self.per_table() - first % self.per_table();
        let end = (first + in_table.min(MOST_CLUSTERS)) * cluster;
        let length = length.min(end - offset);
        Part { offset, length, at, first, count: (offset + length - 1) / cluster - first + 1 }
    }

    /// Runs `serve` for the clusters of a range while nobody changes where they are.
    fn reading<R>(&self, offset: u64, length: u64, serve: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        self.locked(offset, length, Lock::Shared, serve)
    }

    /// Runs `serve` while the clusters of a range are locked.
    pub(super) fn locked<R>(
        &self,
        offset: u64,
        length: u64,
        lock: Lock,
        serve: impl FnOnce() -> Result<R, Error>,
    ) -> Result<R, Error> {
        if length == 0 {
            return serve();
        }
        let first = offset / self.cluster();
        let last = offset.saturating_add(length - 1) / self.cluster();
        self.shared.lock(first, last - first + 1, lock)?;
        self.sync();
        let answer = serve();
        self.shared.unlock();
        answer
    }

    /// How clusters are locked that are overwritten. A sector is encrypted as a whole: who read
    /// half of such a write would decrypt rubbish, also beside the bytes that changed.
    pub(super) fn lock_in_place(&self) -> Lock {
        if self.image.cipher().is_some() { Lock::Exclusive } else { Lock::Shared }
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
    pub(super) fn clear_features(&self) -> Result<(), Error> {
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

    pub(super) fn view(&self, part: &Part) -> Result<View, Error> {
        let cache = self.image.map().cache();
        let l2 = self.tables.l2(cache, part.first / self.per_table())?;
        let entries = self.tables.entries(cache, l2, part.first % self.per_table(), part.count)?;
        Ok(View { l2, entries })
    }

    /// Whether what has no data reads as zero, from `offset` of the disk on.
    pub(super) fn is_zero(&self, offset: u64, place: Place) -> bool {
        let backing = self.image.backing().map_or(0, |backing| backing.size());
        place == Place::Zero || offset >= backing
    }

    /// Locks the clusters of a part, or all clusters of its L2 table.
    pub(super) fn lock_for_change(&self, part: &Part, whole_table: bool) -> Result<(), Error> {
        let (first, count) = if whole_table {
            (part.first / self.per_table() * self.per_table(), self.per_table())
        } else {
            (part.first, part.count)
        };
        self.shared.lock(first, count, Lock::Exclusive)?;
        self.sync();
        Ok(())
    }

    /// The offset of the L2 table of a part, which is made if it is missing or shared.
    pub(super) fn own_table(
        &self,
        part: &Part,
        view: &View,
        taken: &mut Vec<u64>,
        freed: &mut Vec<u64>,
    ) -> Result<u64, Error> {
        match (view.l2, taken.last().copied()) {
            (L2::Own(offset), _) => Ok(offset),
            (_, None) => Err(Errno::Enospc.into()),
            (old, Some(cluster)) => {
                taken.pop();
                let made = self.tables.make_l2(self.image.map(), part.first / self.per_table(), old, cluster);
                self.changed(TableChange::Table);
                let made = made?;
                freed.extend(old.offset().map(|offset| offset / self.cluster()));
                Ok(made)
            }
        }
    }

    /// Writes the entries of a part, and notes what the old ones referred to.
    pub(super) fn replace_entries(
        &self,
        part: &Part,
        table: u64,
        view: &View,
        entries: &[Entry],
        freed: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let differs = |n: &usize| view.entries[*n] != entries[*n];
        let Some(first) = (0..entries.len()).find(differs) else { return Ok(()) };
        let last = (0..entries.len()).rfind(differs).unwrap_or(first);
        let index = part.first % self.per_table() + first as u64;
        let changed = &entries[first..=last];
        let written = self.tables.set_entries(self.image.map(), table, index, changed);
        let size = self.tables.layout.entry_size();
        let at = table + index * size;
        self.changed(match (&written, changed) {
            (Ok(()), [entry]) => TableChange::Entry { at, entry: *entry },
            _ => TableChange::Bytes { at, length: changed.len() as u64 * size },
        });
        written?;
        let total = self.space.refcounts.total();
        // If only the subclusters of a cluster change, the reference to it stays.
        let is_gone = |n: &usize| view.entries[*n].word != entries[*n].word;
        for n in (first..=last).filter(is_gone) {
            freed.extend(self.tables.references(view.entries[n], total));
        }
        Ok(())
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
