//! The L1 and L2 tables of the disk's current state, as a writer sees them.

use std::ops::Range;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error};

use super::ports::{Below, ClusterMap, PLAIN, Shared, TABLE};
use crate::qcow2::header::Table;
use crate::qcow2::image::Image;
use crate::qcow2::layout::{COMPRESSED, COPIED, Entry, Layout, OFFSET, Place, ZERO};
use crate::qcow2::map::Map;

/// At most so many bytes of a table are copied at a time.
const PIECE: usize = 256 << 10;

/// The L2 table for a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2 {
    /// There is none.
    Missing,
    /// A snapshot has it too.
    Shared(u64),
    /// It may be changed.
    Own(u64),
}

impl L2 {
    /// The offset of a table that there is.
    pub(super) fn offset(self) -> Option<u64> {
        match self {
            L2::Missing => None,
            L2::Shared(offset) | L2::Own(offset) => Some(offset),
        }
    }
}

/// The tables.
pub(super) struct Tables {
    pub(super) layout: Layout,
    pub(super) l1: Table,
    pub(super) below: Rc<dyn Below>,
    pub(super) shared: Rc<dyn Shared>,
}

impl Tables {
    /// The tables of the current state of an image.
    pub(super) fn new(image: &Image, below: &Rc<dyn Below>, shared: &Rc<dyn Shared>) -> Tables {
        Tables {
            layout: image.map().layout(),
            l1: image.header().l1,
            below: Rc::clone(below),
            shared: Rc::clone(shared),
        }
    }

    /// The L2 table of an index of the L1 table.
    pub(super) fn l2(&self, cache: &BlockCache, index: u64) -> Result<L2, Error> {
        if index >= u64::from(self.l1.count) {
            return Err(Error::image(format!("the L1 table has {} entries, and none for {index}", self.l1.count)));
        }
        let entry = u64::from_be_bytes(cache.array(self.l1.offset + index * 8)?);
        let table = self.layout.table(entry);
        let table = table.map_err(|wrong| Error::image(format!("the L1 entry {index} is wrong: {wrong}")))?;
        let Some(offset) = table else { return Ok(L2::Missing) };
        let role = self.shared.run(ClusterMap::Roles, offset / self.layout.cluster_size(), 1);
        if role != (TABLE, 1) {
            return Err(Error::image(format!(
                "the L1 entry {index} is wrong: the image has no L2 table at {offset} that can be written"
            )));
        }
        Ok(if entry & COPIED != 0 { L2::Own(offset) } else { L2::Shared(offset) })
    }

    /// `count` entries from `first` on.
    ///
    /// # Errors
    /// Those of the source, and a line for an entry that is wrong.
    pub(super) fn entries(&self, cache: &BlockCache, l2: L2, first: u64, count: u64) -> Result<Vec<Entry>, Error> {
        let Some(offset) = l2.offset() else { return Ok(vec![Entry::default(); count as usize]) };
        let size = self.layout.entry_size();
        let mut bytes = vec![0; (count * size) as usize];
        cache.read(offset + first * size, &mut bytes)?;
        Ok(bytes.chunks_exact(size as usize).map(|entry| self.layout.entry(entry)).collect())
    }

    /// The runs of subclusters of an entry, from `first` to before `end`: where they are, the
    /// first, and how many. Without subclusters the cluster is the only one. `offset` is the
    /// disk's, for a message.
    pub(super) fn places(
        &self,
        entry: Entry,
        units: Range<u32>,
        offset: u64,
    ) -> Result<Vec<(Place, Range<u32>)>, Error> {
        let mut runs = Vec::new();
        let mut at = units.start;
        while at < units.end {
            let (place, count) = self
                .layout
                .place(entry, at)
                .map_err(|wrong| Error::image(format!("the L2 entry for {offset} is wrong: {wrong}")))?;
            let end = (at + count).min(units.end);
            runs.push((place, at..end));
            at = end;
        }
        Ok(runs)
    }

    /// The cluster of an entry, if it may be written in place: nothing else has it, and the file,
    /// which has `size` bytes, has it whole.
    pub(super) fn own(&self, entry: Entry, size: u64) -> Option<u64> {
        let host = self.layout.aligned(entry.word & OFFSET).ok().filter(|host| *host != 0)?;
        let is_zero = entry.word & ZERO != 0 && !self.layout.has_subclusters();
        let is_own = entry.word & COPIED != 0 && entry.word & COMPRESSED == 0 && !is_zero;
        (is_own && host + self.layout.cluster_size() <= size).then_some(host)
    }

    /// The clusters of the image to which an entry refers.
    pub(super) fn references(&self, entry: Entry, total: u64) -> Range<u64> {
        let cluster = self.layout.cluster_size();
        let range = match self.layout.place(Entry { bitmap: 0, ..entry }, 0) {
            Ok((Place::Compressed(packed), _)) => {
                packed.offset / cluster..(packed.offset + u64::from(packed.length) - 1) / cluster + 1
            }
            _ => match entry.word & OFFSET {
                host if host != 0 && host.is_multiple_of(cluster) => host / cluster..host / cluster + 1,
                _ => 0..0,
            },
        };
        range.start.min(total)..range.end.min(total)
    }

    /// Whether the cluster at `host` may be written as data.
    ///
    /// # Errors
    /// A line if it is a table.
    pub(super) fn check_data(&self, host: u64, offset: u64) -> Result<(), Error> {
        if self.shared.run(ClusterMap::Roles, host / self.layout.cluster_size(), 1) != (PLAIN, 1) {
            return Err(Error::image(format!(
                "the cluster for {offset} is at {host}, where the image has its tables: it is not written"
            )));
        }
        Ok(())
    }

    /// Writes entries of a table, and notes that tables have changed.
    pub(super) fn set_entries(&self, map: &Map, table: u64, first: u64, entries: &[Entry]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| self.layout.put_entry(*entry, &mut bytes));
        let at = table + first * self.layout.entry_size();
        let written = self.below.write(at, &bytes);
        match written {
            Ok(()) => map.cache().update(at, &bytes),
            // Nobody knows what is there now.
            Err(_) => map.clear(),
        }
        Ok(written?)
    }

    /// Makes `cluster`, which is zero, the L2 table of an index: empty, or a copy of the one that a
    /// snapshot has as well. Returns its offset.
    pub(super) fn make_l2(&self, map: &Map, index: u64, old: L2, cluster: u64) -> Result<u64, Error> {
        let size = self.layout.cluster_size();
        let offset = cluster * size;
        if let Some(from) = old.offset() {
            let mut piece = vec![0; PIECE.min(size as usize)];
            for at in (0..size).step_by(piece.len()) {
                map.source().read(from + at, &mut piece)?;
                self.below.write(offset + at, &piece)?;
            }
            // A copy has to be durable before the L1 table names it.
            self.below.flush()?;
        }
        self.shared.set(ClusterMap::Roles, cluster, 1, 1 << PLAIN, TABLE);
        let written = self.below.write(self.l1.offset + index * 8, &(offset | COPIED).to_be_bytes());
        // The new table may be where another was, of which blocks are cached.
        map.clear();
        written?;
        Ok(offset)
    }
}

/// The first word of the entry of a cluster of the image that nothing else has.
pub(super) fn own_word(offset: u64) -> u64 {
    debug_assert_eq!(offset & !OFFSET & !COMPRESSED, 0);
    offset | COPIED
}
