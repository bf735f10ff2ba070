//! Whether an image can be written, and what its clusters are used for.

use std::cell::Cell;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Source};

use super::ports::{Below, ClusterMap, META, PLAIN, Shared, TABLE};
use super::rebuild::{BOUNDS, Bounds, Rebuild};
use super::refcounts::{Refcounts, check_table};
use super::tables::Tables;
use crate::qcow2::features;
use crate::qcow2::header::{Header, Table};
use crate::qcow2::image::Image;
use crate::qcow2::snapshots;

/// The L1 tables of the snapshots have at most so many entries together: they are read when the
/// image is opened for writing. 2^22 entries are 32 MiB.
const MAX_ENTRIES: u64 = 1 << 22;
/// A table is read in pieces of so many bytes.
const PIECE: u64 = 256 << 10;

/// Why an image cannot be written. `None` if nothing is known against it.
pub fn refusal(image: &Image) -> Option<String> {
    let header = image.header();
    let why = if image.snapshot().is_some() {
        "a snapshot cannot be written"
    } else if header.has(features::CORRUPT) {
        "the image is marked as corrupt ('qemu-img check -r all' repairs it)"
    } else if header.has(features::EXTERNAL_DATA) {
        "images with an external data file are not written"
    } else {
        return None;
    };
    Some(why.to_string())
}

/// Finds out what the clusters of an image are used for, and rebuilds the reference counts of one
/// that is marked as dirty. `shared` has its maps for it, in which all
/// clusters are in state 0.
///
/// # Errors
/// Those of next, and a line if the tables overlap, or do not lie within the image.
pub fn prepare(image: &Image, below: Rc<dyn Below>, shared: &Rc<dyn Shared>) -> Result<(), Error> {
    prepare_within(image, below, shared, BOUNDS)
}

pub(super) fn prepare_within(
    image: &Image,
    below: Rc<dyn Below>,
    shared: &Rc<dyn Shared>,
    bounds: Bounds,
) -> Result<(), Error> {
    let header = image.header();
    let source = image.map().source();
    let roles = Roles { header, source: &**source, shared: &**shared, in_tail: Cell::new(0) };
    check_table(&**source, header.cluster_bits, header.refcounts)?;
    roles.mark(0, header.cluster_size(), "the header")?;
    roles.mark(header.l1.offset, u64::from(header.l1.count) * 8, "the L1 table")?;
    let counts = u64::from(header.refcounts.count) << header.cluster_bits;
    roles.mark(header.refcounts.offset, counts, "the table of reference counts")?;
    if let Some((offset, length)) = header.luks {
        roles.mark(offset, length, "the header of LUKS")?;
    }
    let refcounts = Refcounts::new(header, Rc::clone(source), Rc::clone(&below), Rc::clone(shared));
    let size = header.cluster_size();
    refcounts.blocks(|block| roles.mark(block, size, "a block of reference counts"))?;
    roles.mark_tables(header.l1)?;
    let mut left = MAX_ENTRIES;
    let mut snapshot_tables = Vec::new();
    let length = snapshots::each(header, image.map().cache(), |snapshot| {
        snapshot_tables.push(snapshot.l1);
        true
    })?;
    roles.mark(header.snapshots.offset, length, "the table of snapshots")?;
    for l1 in &snapshot_tables {
        left = left.checked_sub(l1.count.into()).ok_or_else(|| {
            Error::image(format!("the L1 tables of the snapshots have more than {MAX_ENTRIES} entries together"))
        })?;
        header.check_l1(&**source, *l1, 0, "the L1 table of a snapshot")?;
        roles.mark(l1.offset, u64::from(l1.count) * 8, "the L1 table of a snapshot")?;
        roles.mark_tables(*l1)?;
    }
    if header.has(features::DIRTY) {
        let l1 = [&[header.l1][..], &snapshot_tables].concat();
        let tables = Tables::new(image, &below, shared);
        let in_tail = roles.in_tail.get();
        let (below, shared) = (&below, &**shared);
        Rebuild { header, source, below, shared, tables: &tables, refcounts: &refcounts, l1, in_tail, bounds }.run()?;
    }
    Ok(())
}

struct Roles<'a> {
    header: &'a Header,
    source: &'a dyn Source,
    shared: &'a dyn Shared,
    /// How many tables have a part in the last cluster of the file, if that is not a whole one.
    in_tail: Cell<u64>,
}

impl Roles<'_> {
    /// The clusters of a range are used for this.
    fn mark(&self, offset: u64, length: u64, what: &str) -> Result<(), Error> {
        let bits = self.header.cluster_bits;
        if length == 0 {
            return Ok(());
        }
        let (first, end) = (offset >> bits, (offset + length).div_ceil(1 << bits));
        // The last cluster of the file may not be a whole one, and is not written then.
        let whole = self.source.size() >> bits;
        if end > whole {
            self.in_tail.set(self.in_tail.get() + 1);
        }
        let end = end.min(whole);
        let count = end.saturating_sub(first);
        if count > 0 && self.shared.set(ClusterMap::Roles, first, count, 1 << PLAIN, META) != count {
            return Err(Error::image(format!("{what} is at {offset}, where the image has another table")));
        }
        Ok(())
    }

    /// The L2 tables of an L1 table. Snapshots may have the same ones.
    fn mark_tables(&self, l1: Table) -> Result<(), Error> {
        let (mut at, end) = (l1.offset, l1.offset + u64::from(l1.count) * 8);
        let layout = self.header.layout();
        let total = self.source.size() >> self.header.cluster_bits;
        while at < end {
            let bytes = image::read(self.source, at, PIECE.min(end - at) as usize)?;
            for (index, entry) in ((at - l1.offset) / 8..).zip(bytes.chunks_exact(8)) {
                let entry = entry.try_into().map_or(0, u64::from_be_bytes);
                let wrong = |wrong: &dyn std::fmt::Display| {
                    Error::image(format!("the L1 entry {index} of the table at {} is wrong: {wrong}", l1.offset))
                };
                let Some(table) = layout.table(entry).map_err(|why| wrong(&why))? else { continue };
                let cluster = table >> self.header.cluster_bits;
                if cluster >= total {
                    return Err(wrong(&format!("there is no whole cluster at {table}")));
                }
                if self.shared.set(ClusterMap::Roles, cluster, 1, 1 << PLAIN | 1 << TABLE, TABLE) != 1 {
                    return Err(wrong(&format!("the image has another table at {table}")));
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }
}
