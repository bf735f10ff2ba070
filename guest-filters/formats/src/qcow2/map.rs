//! Where the bytes of the disk are: from an offset through the L1 and the L2 table.
//!
//! A lookup takes two steps whatever the tables say, so entries that point at each other do no
//! harm: a table that is not one gives wrong places, which are checked where they are read.

use std::cell::Cell;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source};

use super::header::Table;
use super::layout::{Layout, Place, Wrong};

/// The blocks in which tables are read, and how much of them is kept. 4 KiB of an L2 table map 32
/// MiB with clusters of 64 KiB; all that is kept then maps 32 GiB.
const BLOCK: u32 = 4096;
const KEPT: u32 = 4 << 20;

/// The tables of a disk's state.
pub struct Map {
    layout: Layout,
    l1: Table,
    cache: BlockCache,
    /// The L1 index that was looked up last, and the offset of its L2 table.
    last: Cell<(u64, Option<u64>)>,
}

/// Bytes of the disk that follow each other, and are in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they are: for [`Place::Data`] where the first byte is. Only for a compressed cluster
    /// the place is the cluster's.
    pub place: Place,
    /// How many they are.
    pub length: u64,
}

impl Run {
    /// Takes `next` to itself, if it goes on as this run does.
    fn join(&mut self, next: Run) -> bool {
        let goes_on = match (self.place, next.place) {
            (Place::Data(here), Place::Data(there)) => here.checked_add(self.length) == Some(there),
            (Place::Compressed(_), _) => false,
            (here, there) => here == there,
        };
        if goes_on {
            self.length += next.length;
        }
        goes_on
    }
}

impl Map {
    /// The state of a disk that this L1 table has, which was checked.
    pub fn new(source: Rc<dyn Source>, layout: Layout, l1: Table) -> Map {
        Map { layout, l1, cache: BlockCache::new(source, BLOCK, KEPT), last: Cell::new((u64::MAX, None)) }
    }

    /// How the tables look.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The image that the tables are in.
    pub fn source(&self) -> &Rc<dyn Source> {
        self.cache.source()
    }

    /// The cache that the tables are read through.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Forgets what was read, since the tables may have changed.
    pub fn clear(&self) {
        self.cache.clear();
        self.last.set((u64::MAX, None));
    }

    /// Calls `each` for the runs of a range, with the offset of each from the start of the range.
    /// Runs that follow each other and could be one are one.
    ///
    /// # Errors
    /// Those of the source and of `each`, and a line for an entry that is wrong.
    pub fn each_run(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, Run) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut pending: Option<Run> = None;
        let (mut done, mut found) = (0, 0);
        while found < length {
            let next = self.run(offset + found, length - found)?;
            found += next.length;
            if let Some(run) = &mut pending {
                if run.join(next) {
                    continue;
                }
                each(done, *run)?;
                done += run.length;
            }
            pending = Some(next);
        }
        pending.map_or(Ok(()), |run| each(done, run))
    }

    /// The run at `offset`, at most `length` bytes, which is not 0. A run may go on after it: this
    /// looks at one block of a table.
    ///
    /// # Errors
    /// Those of the source, and a line for an entry that is wrong.
    pub fn run(&self, offset: u64, length: u64) -> Result<Run, Error> {
        match self.table(self.layout.l1_index(offset), offset)? {
            Some(table) => self.run_in_table(table, offset, length),
            None => self.run_without_table(offset, length),
        }
    }

    /// The offset of the L2 table of an L1 index.
    fn table(&self, index: u64, offset: u64) -> Result<Option<u64>, Error> {
        let (last, table) = self.last.get();
        if last == index {
            return Ok(table);
        }
        if index >= u64::from(self.l1.count) {
            return Err(Error::image(format!("the L1 table has {} entries, and none for {offset}", self.l1.count)));
        }
        let entry = u64::from_be_bytes(self.cache.array(self.l1.offset + index * 8)?);
        let table = self
            .layout
            .table(entry)
            .map_err(|wrong| Error::image(format!("the L1 entry {index} is wrong: {wrong}")))?;
        if let Some(at) = table {
            let size = self.source().size();
            if at.checked_add(self.layout.cluster_size()).is_none_or(|end| end > size) {
                return Err(Error::image(format!(
                    "the L1 entry {index} is wrong: the L2 table at {at} does not end before the image does, after \
                     {size} bytes"
                )));
            }
        }
        self.last.set((index, table));
        Ok(table)
    }

    /// The entries of the L1 table from `offset`'s on that have no L2 table, as far as a block of it
    /// tells. There are at most 2^22 entries, and each maps at most 2^39 bytes.
    fn run_without_table(&self, offset: u64, length: u64) -> Result<Run, Error> {
        let first = self.layout.l1_index(offset);
        let entries = self.cache.from(self.l1.offset + first * 8)?;
        let in_table = (entries.len() / 8).min((u64::from(self.l1.count) - first) as usize);
        let empty = entries[..in_table * 8].chunks_exact(8).take_while(|entry| is_empty(entry)).count().max(1);
        let end = (first + empty as u64) << self.layout.table_shift();
        Ok(Run { place: Place::Unallocated, length: length.min(end - offset) })
    }

    fn run_in_table(&self, table: u64, offset: u64, length: u64) -> Result<Run, Error> {
        let layout = self.layout;
        let (cluster, unit, size) = (layout.cluster_size(), layout.unit(), layout.entry_size());
        let index = layout.l2_index(offset);
        let at = table + index * size;
        let entries = self.cache.from(at)?;
        let entries = &entries[..entries.len().min((table + cluster - at) as usize)];
        let mut run: Option<Run> = None;
        let mut found = 0;
        for bytes in entries.chunks_exact(size as usize) {
            let entry = layout.entry(bytes);
            // Where in this cluster the run goes on.
            let mut within = (offset + found) % cluster;
            loop {
                let (place, units) = match layout.place(entry, (within / unit) as u32) {
                    Ok(place) => place,
                    // What precedes it can be read.
                    Err(_) if found > 0 => return Ok(cut(run, found, length)),
                    Err(wrong) => return Err(wrong_entry(offset, wrong)),
                };
                let end = (within / unit + u64::from(units)) * unit;
                let place = match place {
                    Place::Data(host) => Place::Data(host + within),
                    other => other,
                };
                let next = Run { place, length: end - within };
                match &mut run {
                    None => run = Some(next),
                    Some(run) => {
                        if !run.join(next) {
                            return Ok(Run { length: found, ..*run });
                        }
                    }
                }
                found += next.length;
                if found >= length {
                    return Ok(cut(run, found, length));
                }
                if end == cluster {
                    break;
                }
                within = end;
            }
        }
        Ok(cut(run, found, length))
    }
}

/// The run that was found, which is not longer than what is wanted.
fn cut(run: Option<Run>, found: u64, length: u64) -> Run {
    let place = run.map_or(Place::Unallocated, |run| run.place);
    Run { place, length: found.min(length) }
}

fn is_empty(l1_entry: &[u8]) -> bool {
    // The flag in the highest bit says nothing about an entry without an offset.
    l1_entry[0] & 0x7f == 0 && l1_entry[1..].iter().all(|byte| *byte == 0)
}

fn wrong_entry(offset: u64, wrong: Wrong) -> Error {
    Error::image(format!("the L2 entry for {offset} is wrong: {wrong}"))
}
