//! Rebuilds the reference counts of an image that is marked as dirty.
//!
//! qemu marks an image as dirty while it writes reference counts late (`lazy_refcounts`). If qemu
//! is killed then, the tables are right, and the counts may be too low or too high.
//!
//! The tables are read once for each [`window`](Bounds::window) of clusters, and the references to
//! the clusters of the window are counted. So the memory that this takes has a bound, whatever the
//! size of the image is. The image stays marked until all counts are durable: after a kill the next
//! start begins again.

use std::collections::BTreeMap;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::{Below, ClusterMap, META, PLAIN, Shared};
use super::refcounts::{Counts, Refcounts};
use super::tables::Tables;
use crate::qcow2::features;
use crate::qcow2::header::{Header, Table};
use crate::qcow2::layout::{COMPRESSED, COPIED, Entry, OFFSET};

/// The bounds of rebuilding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The references to so many clusters are counted at once, in a byte each.
    pub(super) window: u64,
    /// At most so many bytes of tables are read.
    pub(super) reads: u64,
}

/// A window takes 24 MiB. A filter has 64 MiB, and four images that are open take 24 MiB of them.
///
/// A filter has 60 seconds to open an image. The tables of a full image of 10 TiB with clusters of
/// 64 KiB have 1.25 GiB, and are read for seven windows: 8.75 GiB. A GiB takes about two seconds.
pub(super) const BOUNDS: Bounds = Bounds { window: 24 << 20, reads: 10 << 30 };

/// At most so many clusters of a window have more references than a byte can count. Then many
/// compressed clusters share one.
const MAX_LARGE: usize = 1 << 16;
/// Tables are read in pieces of so many bytes.
const PIECE: u64 = 256 << 10;

/// What is needed to rebuild the counts.
pub(super) struct Rebuild<'a> {
    pub(super) header: &'a Header,
    pub(super) source: &'a Rc<dyn Source>,
    pub(super) below: &'a Rc<dyn Below>,
    pub(super) shared: &'a dyn Shared,
    pub(super) tables: &'a Tables,
    pub(super) refcounts: &'a Refcounts,
    /// The L1 tables: first that of the current state, then those of the snapshots.
    pub(super) l1: Vec<Table>,
    /// How many references of tables there are to the last cluster of the file, if the file does
    /// not have it whole.
    pub(super) in_tail: u64,
    pub(super) bounds: Bounds,
}

/// The references to the clusters from `first` on.
struct Window {
    first: u64,
    counts: Vec<u8>,
    /// Those of which there are 255 and more.
    large: BTreeMap<u64, u64>,
    /// Whether an entry of the current state has no flag that nothing else has its cluster.
    has_unflagged: bool,
}

impl Window {
    fn contains(&self, cluster: u64) -> bool {
        cluster >= self.first && cluster - self.first < self.counts.len() as u64
    }

    fn add(&mut self, cluster: u64, references: u64) -> Result<(), Error> {
        if !self.contains(cluster) {
            return Ok(());
        }
        let count = &mut self.counts[(cluster - self.first) as usize];
        match u64::from(*count) + references {
            sum if sum < 255 => *count = sum as u8,
            sum => {
                let before = if *count == u8::MAX { 0 } else { sum - references };
                *count = u8::MAX;
                *self.large.entry(cluster).or_insert(before) += references;
                if self.large.len() > MAX_LARGE {
                    return Err(refusal(&format!("more than {MAX_LARGE} of its clusters have 255 references or more")));
                }
            }
        }
        Ok(())
    }

    fn get(&self, cluster: u64) -> u64 {
        match self.counts[(cluster - self.first) as usize] {
            u8::MAX => self.large.get(&cluster).copied().unwrap_or(0),
            count => count.into(),
        }
    }
}

/// Why counts are not rebuilt.
fn refusal(why: &str) -> Error {
    Error::image(format!("the image is marked as dirty, and {why} ('qemu-img check -r all' repairs it)"))
}

impl Rebuild<'_> {
    /// Rebuilds the counts, and removes the mark.
    ///
    /// # Errors
    /// Those of next, and a line if it cannot be done.
    pub(super) fn run(&self) -> Result<(), Error> {
        let total = self.source.size().div_ceil(self.header.cluster_size());
        let mut tables: u64 = 0;
        for l1 in &self.l1 {
            self.each_table(*l1, |_, _, _| {
                tables += 1;
                Ok(())
            })?;
        }
        let Bounds { window: most, reads } = self.bounds;
        let read = u128::from(total.div_ceil(most)) * u128::from(tables) * u128::from(self.header.cluster_size());
        if read > reads.into() {
            return Err(refusal(&format!(
                "to count the references to its clusters takes reads of {read} bytes, and {reads} is the most"
            )));
        }
        if self.header.autoclear != 0 {
            // Nothing counts the clusters of dirty bitmaps, which are invalid from now on.
            self.below.write(88, &[0; 8])?;
            self.below.flush()?;
        }
        for first in (0..total).step_by(most as usize) {
            let mut window = self.count(first, most.min(total - first), total)?;
            self.set_flags(&window)?;
            self.set_counts(&mut window)?;
        }
        self.below.flush()?;
        let features = self.header.incompatible & !features::DIRTY;
        self.below.write(72, &features.to_be_bytes())?;
        self.below.flush()?;
        self.shared.warn("the image was marked as dirty: its reference counts were rebuilt");
        Ok(())
    }

    /// Calls `each` with the offset of each entry of an L1 table that has an L2 table, the entry,
    /// and the offset of the L2 table.
    fn each_table(&self, l1: Table, mut each: impl FnMut(u64, u64, u64) -> Result<(), Error>) -> Result<(), Error> {
        self.each_piece(l1.offset, u64::from(l1.count) * 8, |at, bytes| {
            for (n, entry) in (0..).zip(bytes.chunks_exact(8)) {
                let entry = entry.try_into().map_or(0, u64::from_be_bytes);
                // The tables were checked when the clusters got their roles.
                if let Ok(Some(table)) = self.tables.layout.table(entry) {
                    each(at + n * 8, entry, table)?;
                }
            }
            Ok(())
        })
    }

    fn each_piece(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut bytes = vec![0; PIECE.min(length) as usize];
        let mut done = 0;
        while done < length {
            let n = PIECE.min(length - done);
            let piece = &mut bytes[..n as usize];
            self.source.read(offset + done, piece)?;
            each(offset + done, piece)?;
            done += n;
        }
        Ok(())
    }

    /// Calls `each` with the offset of each entry of an L2 table that is not empty, and the entry.
    fn each_entry(&self, table: u64, mut each: impl FnMut(u64, Entry) -> Result<(), Error>) -> Result<(), Error> {
        let size = self.tables.layout.entry_size();
        self.each_piece(table, self.header.cluster_size(), |at, bytes| {
            for (n, bytes) in (0..).zip(bytes.chunks_exact(size as usize)) {
                let entry = self.tables.layout.entry(bytes);
                if entry.word & (OFFSET | COMPRESSED) != 0 {
                    each(at + n * size, entry)?;
                }
            }
            Ok(())
        })
    }

    /// Counts the references to `length` clusters.
    fn count(&self, first: u64, length: u64, total: u64) -> Result<Window, Error> {
        let (counts, large) = (vec![0; length as usize], BTreeMap::new());
        let mut window = Window { first, counts, large, has_unflagged: false };
        let mut at = first;
        while let Some(meta) = self.shared.find(ClusterMap::Roles, at, 1 << META).filter(|meta| window.contains(*meta))
        {
            let (_, count) = self.shared.run(ClusterMap::Roles, meta, first + length - meta);
            (meta..meta + count).try_for_each(|cluster| window.add(cluster, 1))?;
            at = meta + count;
        }
        if total > self.refcounts.total() {
            window.add(self.refcounts.total(), self.in_tail)?;
        }
        for (n, l1) in self.l1.iter().enumerate() {
            self.each_table(*l1, |_, entry, table| {
                let cluster = table >> self.header.cluster_bits;
                window.add(cluster, 1)?;
                window.has_unflagged |= n == 0 && window.contains(cluster) && entry & COPIED == 0;
                self.each_entry(table, |_, entry| {
                    let cluster = (entry.word & OFFSET) >> self.header.cluster_bits;
                    if entry.word & COMPRESSED == 0 && !window.contains(cluster) {
                        // Most entries, if there are many windows.
                        return Ok(());
                    }
                    let references = self.tables.references(entry, total);
                    let is_plain = n == 0 && entry.word & (COMPRESSED | COPIED) == 0;
                    window.has_unflagged |= is_plain && references.clone().any(|cluster| window.contains(cluster));
                    references.into_iter().try_for_each(|cluster| window.add(cluster, 1))
                })
            })?;
        }
        Ok(window)
    }

    /// Makes the flags of the current state's entries say whether their clusters in the window have
    /// one reference.
    fn set_flags(&self, window: &Window) -> Result<(), Error> {
        if !window.has_unflagged && window.counts.iter().all(|count| *count < 2) {
            return Ok(());
        }
        self.each_table(self.l1[0], |at, entry, table| {
            self.set_flag(window, at, entry, table)?;
            self.each_entry(table, |at, entry| match entry.word & COMPRESSED {
                0 => self.set_flag(window, at, entry.word, entry.word & OFFSET),
                _ => Ok(()),
            })
        })
    }

    fn set_flag(&self, window: &Window, at: u64, word: u64, host: u64) -> Result<(), Error> {
        let cluster = host >> self.header.cluster_bits;
        if host == 0 || !host.is_multiple_of(self.header.cluster_size()) || !window.contains(cluster) {
            return Ok(());
        }
        let flag = if window.get(cluster) == 1 { COPIED } else { 0 };
        if word & COPIED != flag {
            self.below.write(at, &(word & !COPIED | flag).to_be_bytes())?;
        }
        Ok(())
    }

    /// Writes the counts of a window where they are others.
    fn set_counts(&self, window: &mut Window) -> Result<(), Error> {
        let most = self.refcounts.most();
        let end = window.first + window.counts.len() as u64;
        let mut at = window.first;
        while at < end {
            match self.refcounts.get(at, end - at)? {
                Counts::Known(counts) => {
                    let right: Vec<u64> = (at..at + counts.len() as u64).map(|cluster| window.get(cluster)).collect();
                    if let Some(count) = right.iter().find(|count| **count > most) {
                        return Err(refusal(&format!(
                            "a cluster has {count} references, and its reference counts end at {most}"
                        )));
                    }
                    if right != counts {
                        self.refcounts.put(at, &right)?;
                    }
                    at += counts.len() as u64;
                }
                Counts::NoBlock => at = self.add_block(window, at, end)?,
                Counts::NoTable if (at..end).all(|cluster| window.get(cluster) == 0) => return Ok(()),
                Counts::NoTable => {
                    return Err(refusal("its table of reference counts ends before its last cluster in use"));
                }
            }
        }
        Ok(())
    }

    /// Makes the block with the counts of the clusters from `start` on, if one of them is in use.
    /// It lies among them. Returns where to go on.
    fn add_block(&self, window: &mut Window, start: u64, end: u64) -> Result<u64, Error> {
        let per_block = self.refcounts.per_block();
        let after = ((start / per_block + 1) * per_block).min(end);
        if (start..after).all(|cluster| window.get(cluster) == 0) {
            return Ok(after);
        }
        let is_free =
            |cluster: &u64| window.get(*cluster) == 0 && self.shared.run(ClusterMap::Roles, *cluster, 1) == (PLAIN, 1);
        let Some(place) = (start..after.min(self.refcounts.total())).find(is_free) else {
            return Err(refusal("there is no free cluster for a block of reference counts"));
        };
        self.refcounts.add_block(place)?;
        window.add(place, 1)?;
        // The counts are written like those of any other block.
        Ok(start)
    }
}
