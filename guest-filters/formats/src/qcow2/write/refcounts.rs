//! Reference counts: reading and changing them, blocks for more of them, a larger table.
//!
//! Everything here is called under the lock of [`Space`](super::space::Space). Nothing is cached:
//! space is reserved for many clusters at a time, so this is rare.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use super::ports::{Below, ClusterMap, META, PLAIN, Shared};
use crate::qcow2::header::{Header, Table};

/// The bits of an entry of the table that hold an offset.
const OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Where the header says where the table is, and how many clusters it has.
const TABLE_FIELD: u64 = 48;
/// qemu's bound for the table, in bytes.
pub const MAX_TABLE: u64 = 8 << 20;
/// At most so many bytes of counts are read at once.
const PIECE: u64 = 64 << 10;
/// At most so many blocks are made at once, with one flush.
const BLOCKS_AT_ONCE: u64 = 32;

/// The reference counts of an image.
pub(super) struct Refcounts {
    source: Rc<dyn Source>,
    below: Rc<dyn Below>,
    shared: Rc<dyn Shared>,
    cluster_bits: u32,
    order: u32,
    /// How many whole clusters the image file has.
    total: u64,
}

/// What is known of counts from a cluster on.
pub(super) enum Counts {
    /// The counts of so many clusters.
    Known(Vec<u64>),
    /// The table has no block for the cluster.
    NoBlock,
    /// The table ends before the cluster.
    NoTable,
}

impl Refcounts {
    pub(super) fn new(
        header: &Header,
        source: Rc<dyn Source>,
        below: Rc<dyn Below>,
        shared: Rc<dyn Shared>,
    ) -> Refcounts {
        let total = source.size() >> header.cluster_bits;
        let (cluster_bits, order) = (header.cluster_bits, header.refcount_order);
        Refcounts { source, below, shared, cluster_bits, order, total }
    }

    /// How many whole clusters the image file has.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The largest count.
    pub(super) fn most(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// A block has the counts of so many clusters.
    pub(super) fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    /// The table as the header has it now: it may have grown.
    fn table(&self) -> Result<Table, Error> {
        let bytes = image::read(&*self.source, TABLE_FIELD, 12)?;
        let fields = Fields::big(&bytes, "the header");
        let table = Table { offset: fields.u64(0)?, count: fields.u32(8)? };
        check_table(&*self.source, self.cluster_bits, table)?;
        Ok(table)
    }

    fn entries(&self, table: Table) -> u64 {
        (u64::from(table.count) << self.cluster_bits) / 8
    }

    /// The offsets of all blocks.
    pub(super) fn blocks(&self, mut each: impl FnMut(u64) -> Result<(), Error>) -> Result<(), Error> {
        let table = self.table()?;
        let (mut at, end) = (table.offset, table.offset + self.entries(table) * 8);
        while at < end {
            let bytes = image::read(&*self.source, at, PIECE.min(end - at) as usize)?;
            for (n, entry) in (at / 8..).zip(bytes.chunks_exact(8)) {
                if let Some(block) = self.checked_block(word(entry), n - table.offset / 8)? {
                    each(block)?;
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn checked_block(&self, entry: u64, index: u64) -> Result<Option<u64>, Error> {
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.cluster()) || offset >> self.cluster_bits >= self.total {
            return Err(Error::image(format!(
                "entry {index} of the table of reference counts is wrong: there is no whole cluster at {offset}"
            )));
        }
        Ok(Some(offset))
    }

    /// The offset of the block for a cluster.
    fn block_of(&self, table: Table, cluster: u64) -> Result<Option<u64>, Error> {
        let index = cluster / self.per_block();
        let entry = image::read(&*self.source, table.offset + index * 8, 8)?;
        self.checked_block(word(&entry), index)
    }

    /// The counts of clusters from `first` on, at most `most`, which is not 0.
    pub(super) fn get(&self, first: u64, most: u64) -> Result<Counts, Error> {
        let table = self.table()?;
        if first / self.per_block() >= self.entries(table) {
            return Ok(Counts::NoTable);
        }
        let Some(block) = self.block_of(table, first)? else { return Ok(Counts::NoBlock) };
        let within = first % self.per_block();
        let count = most.min(self.per_block() - within).min((PIECE * 8) >> self.order);
        let (start, end) = self.bytes_of(within, count);
        let bytes = image::read(&*self.source, block + start, (end - start) as usize)?;
        let skip = within - ((start * 8) >> self.order);
        Ok(Counts::Known((skip..skip + count).map(|n| get(&bytes, n, self.order)).collect()))
    }

    /// The bytes of a block that have the counts of `count` clusters.
    fn bytes_of(&self, first: u64, count: u64) -> (u64, u64) {
        ((first << self.order) / 8, ((first + count) << self.order).div_ceil(8))
    }

    /// Sets the counts of clusters from `first` on, whose blocks exist.
    pub(super) fn put(&self, mut first: u64, mut counts: &[u64]) -> Result<(), Error> {
        let table = self.table()?;
        while !counts.is_empty() {
            let Some(block) = self.block_of(table, first)? else {
                return Err(Error::image(format!("cluster {first} of the image has no reference count")));
            };
            let within = first % self.per_block();
            let n = (counts.len() as u64).min(self.per_block() - within).min((PIECE * 8) >> self.order);
            let (start, end) = self.bytes_of(within, n);
            let mut bytes = image::read(&*self.source, block + start, (end - start) as usize)?;
            let skip = within - ((start * 8) >> self.order);
            let (now, rest) = counts.split_at(n as usize);
            for (at, count) in (skip..).zip(now) {
                set(&mut bytes, at, self.order, *count);
            }
            self.below.write(block + start, &bytes)?;
            first += n;
            counts = rest;
        }
        Ok(())
    }

    /// Makes the block that has the count of `cluster`, and those after it that are missing too. A
    /// block takes the first cluster of those whose counts it has. The blocks are durable before
    /// the table names them.
    ///
    /// # Errors
    /// Those of next, and a line if no cluster can be used for it.
    pub(super) fn add_blocks(&self, cluster: u64) -> Result<(), Error> {
        let table = self.table()?;
        let first = cluster / self.per_block();
        let last = (first + BLOCKS_AT_ONCE).min(self.total.div_ceil(self.per_block())).min(self.entries(table));
        let mut made = Vec::new();
        for index in first..last {
            if self.block_of(table, index * self.per_block())?.is_some() {
                break;
            }
            let (start, end) = (index * self.per_block(), ((index + 1) * self.per_block()).min(self.total));
            let Some(place) = self.shared.find(ClusterMap::Roles, start, 1 << PLAIN).filter(|place| *place < end)
            else {
                break;
            };
            self.write_block(place << self.cluster_bits, start, &[place])?;
            made.push(place);
        }
        if made.is_empty() {
            return Err(Error::image(format!(
                "cluster {cluster} of the image has no reference count, and its neighbours are in use"
            )));
        }
        self.below.flush()?;
        let entries: Vec<u8> = made.iter().flat_map(|place| (place << self.cluster_bits).to_be_bytes()).collect();
        for place in &made {
            self.shared.set(ClusterMap::Roles, *place, 1, 1 << PLAIN, META);
        }
        Ok(self.below.write(table.offset + first * 8, &entries)?)
    }

    /// Makes the block that has the count of `place`, which is free, at `place`. All other counts
    /// in it are 0.
    ///
    /// # Errors
    /// Those of next.
    pub(super) fn add_block(&self, place: u64) -> Result<(), Error> {
        let table = self.table()?;
        let index = place / self.per_block();
        self.write_block(place << self.cluster_bits, index * self.per_block(), &[place])?;
        self.below.flush()?;
        self.shared.set(ClusterMap::Roles, place, 1, 1 << PLAIN, META);
        Ok(self.below.write(table.offset + index * 8, &(place << self.cluster_bits).to_be_bytes())?)
    }

    /// Writes a block at `offset` with the counts from `start` on. Those of `used` are one.
    fn write_block(&self, offset: u64, start: u64, used: &[u64]) -> Result<(), Error> {
        let mut bytes = vec![0; self.cluster() as usize];
        for cluster in used {
            set(&mut bytes, cluster - start, self.order, 1);
        }
        Ok(self.below.write(offset, &bytes)?)
    }

    /// Makes a table that is large enough for the image file. It lies behind all clusters that have
    /// a count, together with the blocks for its own clusters. Returns the first and the number of
    /// the clusters of the old table. `None` if the file has no space for it.
    ///
    /// # Errors
    /// Those of next, and a line if the table would be too large.
    pub(super) fn grow(&self) -> Result<Option<(u64, u64)>, Error> {
        let old = self.table()?;
        let blocks = self.total.div_ceil(self.per_block());
        let clusters = (blocks * 8).div_ceil(self.cluster());
        if clusters * self.cluster() > MAX_TABLE {
            return Err(Error::image(format!(
                "the image file has {} bytes, and a table of reference counts for it would have more than {MAX_TABLE}",
                self.source.size()
            )));
        }
        let start = self.entries(old) * self.per_block();
        // The new blocks have counts for the table and for themselves.
        let mut new_blocks = 1;
        while (clusters + new_blocks).div_ceil(self.per_block()) > new_blocks {
            new_blocks += 1;
        }
        let end = start + clusters + new_blocks;
        if end > self.total || self.shared.run(ClusterMap::Roles, start, end - start) != (PLAIN, end - start) {
            return Ok(None);
        }
        let mut table = vec![0; (clusters * self.cluster()) as usize];
        let old_bytes = self.entries(old) * 8;
        image_into(&*self.source, old.offset, &mut table[..old_bytes as usize])?;
        for n in 0..new_blocks {
            let place = start + clusters + n;
            let first = start + n * self.per_block();
            let used: Vec<u64> = (first..(first + self.per_block()).min(end)).collect();
            self.write_block(place << self.cluster_bits, first, &used)?;
            let at = (old_bytes + n * 8) as usize;
            table[at..at + 8].copy_from_slice(&(place << self.cluster_bits).to_be_bytes());
        }
        for (piece, at) in table.chunks(1 << 20).zip((start << self.cluster_bits..).step_by(1 << 20)) {
            self.below.write(at, piece)?;
        }
        self.below.flush()?;
        let mut field = (start << self.cluster_bits).to_be_bytes().to_vec();
        field.extend((clusters as u32).to_be_bytes());
        self.below.write(TABLE_FIELD, &field)?;
        // The clusters of the old table are free from here on.
        self.below.flush()?;
        self.shared.set(ClusterMap::Roles, start, end - start, 1 << PLAIN, META);
        Ok(Some((old.offset >> self.cluster_bits, old.count.into())))
    }
}

/// Whether a table of reference counts can be one.
///
/// # Errors
/// A line that says what is wrong.
pub(super) fn check_table(source: &dyn Source, cluster_bits: u32, table: Table) -> Result<(), Error> {
    let bytes = u64::from(table.count) << cluster_bits;
    if bytes > MAX_TABLE {
        return Err(Error::image(format!(
            "the table of reference counts has {bytes} bytes, and {MAX_TABLE} is the most"
        )));
    }
    let is_aligned = table.offset.is_multiple_of(1 << cluster_bits);
    if table.count == 0 || !is_aligned || table.offset.checked_add(bytes).is_none_or(|end| end > source.size()) {
        return Err(Error::image(format!(
            "the table of reference counts has {bytes} bytes at {}, and has to be whole clusters of the image, which \
             ends after {}",
            table.offset,
            source.size()
        )));
    }
    Ok(())
}

fn image_into(source: &dyn Source, mut offset: u64, into: &mut [u8]) -> Result<(), Error> {
    for piece in into.chunks_mut(1 << 20) {
        source.read(offset, piece)?;
        offset += piece.len() as u64;
    }
    Ok(())
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// Count `n` of those in `bytes`, which have two to the power `order` bits each. Those below a byte
/// begin at its lowest bit, and the others are big-endian.
fn get(bytes: &[u8], n: u64, order: u32) -> u64 {
    if order < 3 {
        let bit = n << order;
        return u64::from(bytes[(bit / 8) as usize]) >> (bit % 8) & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let at = n as usize * width;
    bytes[at..at + width].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
}

fn set(bytes: &mut [u8], n: u64, order: u32, value: u64) {
    if order < 3 {
        let bit = n << order;
        let mask = ((1u8 << (1 << order)) - 1) << (bit % 8);
        let byte = &mut bytes[(bit / 8) as usize];
        *byte = *byte & !mask | ((value as u8) << (bit % 8) & mask);
        return;
    }
    let width = 1 << (order - 3);
    let at = n as usize * width;
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

#[cfg(test)]
mod tests {
    use super::{get, set};

    #[test]
    fn counts_of_all_widths_are_read_as_they_were_set() {
        for order in 0..=6 {
            let most = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let mut bytes = [0; 64];
            for n in 0..8 {
                set(&mut bytes, n, order, (n * 0x0123_4567_89ab_cdef) & most);
            }
            for n in 0..8 {
                assert_eq!(get(&bytes, n, order), (n * 0x0123_4567_89ab_cdef) & most, "2^{order} bits");
            }
            set(&mut bytes, 3, order, 0);
            assert_eq!((get(&bytes, 3, order), get(&bytes, 2, order)), (0, (2 * 0x0123_4567_89ab_cdef) & most));
        }
    }
}
