//! How a write gets at the bytes of one cluster: in place, or into space that is new.

use std::ops::Range;

use rbdkit_filter_sdk::image::Error;

use super::ports::Payload;
use super::tables::own_word;
use super::writer::{Part, View, Writer};
use crate::qcow2::image::SECTOR;
use crate::qcow2::layout::{COMPRESSED, Entry, Place, SUBCLUSTERS};

/// How a write gets at a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// There is nothing to do: zeroes are written, and it reads as zero.
    Nothing,
    /// The bytes have their place in this cluster of the image, which nothing else has.
    InPlace(u64),
    /// This cluster of the image is there, and nothing else has it. Some of the subclusters that
    /// are written have no data in it yet, and nobody knows what is in their place.
    Fill(u64),
    /// A new cluster is needed. A new cluster is zero.
    New,
}

impl Way {
    /// Whether the entry changes.
    pub(super) fn changes_entry(self) -> bool {
        matches!(self, Way::Fill(_) | Way::New)
    }
}

impl Writer {
    /// How to write each cluster of a part.
    ///
    /// # Errors
    /// A line for an entry that is wrong.
    pub(super) fn ways(&self, part: &Part, view: &View, payload: Payload) -> Result<Vec<Way>, Error> {
        let way = |(n, entry): (usize, &Entry)| {
            let (start, end) = self.within(part, n);
            self.way(*entry, start, end, matches!(payload, Payload::Zeroes))
        };
        view.entries.iter().enumerate().map(way).collect()
    }

    /// How to write the bytes of the disk from `start` to `end`, which lie in one cluster.
    fn way(&self, entry: Entry, start: u64, end: u64, are_zeroes: bool) -> Result<Way, Error> {
        let own = self.tables.own(entry, self.size);
        let (mut all_zero, mut all_data) = (true, true);
        for (place, units) in self.tables.places(entry, self.units(start, end), start)? {
            let first = self.unit_offset(start, units.start);
            all_zero &= match place {
                Place::Zero | Place::Unallocated => self.is_zero(first, place),
                Place::Data(_) | Place::Compressed(_) => false,
            };
            all_data &= matches!(place, Place::Data(_));
        }
        Ok(match own {
            _ if are_zeroes && all_zero => Way::Nothing,
            Some(host) if all_data => Way::InPlace(host),
            Some(host) if self.tables.layout.has_subclusters() => Way::Fill(host),
            _ => Way::New,
        })
    }

    /// The bytes of the disk that a part has of its cluster `n`.
    pub(super) fn within(&self, part: &Part, n: usize) -> (u64, u64) {
        let start = (part.first + n as u64) * self.cluster();
        (start.max(part.offset), (start + self.cluster()).min(part.offset + part.length))
    }

    /// The subclusters that have the bytes from `start` to `end`, which lie in one cluster and are
    /// not none.
    pub(super) fn units(&self, start: u64, end: u64) -> Range<u32> {
        let (unit, cluster) = (self.tables.layout.unit(), self.cluster());
        ((start % cluster) / unit) as u32..((end - 1) % cluster / unit) as u32 + 1
    }

    /// How many subclusters a cluster has.
    pub(super) fn units_of_cluster(&self) -> u32 {
        if self.tables.layout.has_subclusters() { SUBCLUSTERS } else { 1 }
    }

    /// Where subcluster `unit` of the cluster that has `offset` begins on the disk.
    fn unit_offset(&self, offset: u64, unit: u32) -> u64 {
        offset / self.cluster() * self.cluster() + u64::from(unit) * self.tables.layout.unit()
    }

    /// The entry of a cluster at `host` after the bytes from `start` to `end` were written.
    pub(super) fn written_entry(&self, old: Entry, host: u64, start: u64, end: u64) -> Entry {
        if !self.tables.layout.has_subclusters() {
            return Entry { word: own_word(host), bitmap: 0 };
        }
        let allocated = if old.word & COMPRESSED != 0 { u64::from(u32::MAX) } else { old.bitmap & u64::from(u32::MAX) };
        let zero = old.bitmap >> 32;
        let written = mask(self.units(start, end));
        Entry { word: own_word(host), bitmap: allocated | written | (zero & !written) << 32 }
    }

    /// The bytes of the disk that have to be copied to the place of a cluster, when the bytes from
    /// `start` to `end` are written there: the rest of the subclusters that are written, and for a
    /// new cluster all other subclusters with data. Ranges that touch are one.
    ///
    /// # Errors
    /// A line for an entry that is wrong.
    pub(super) fn rest(&self, entry: Entry, way: Way, start: u64, end: u64) -> Result<Vec<Range<u64>>, Error> {
        let units = self.units(start, end);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        // Half a sector cannot be encrypted: the write itself copies what is left of one.
        let (start, end) = match self.image.cipher() {
            Some(_) => (start / SECTOR * SECTOR, end.next_multiple_of(SECTOR)),
            None => (start, end),
        };
        for (place, run) in self.tables.places(entry, 0..self.units_of_cluster(), start)? {
            let has_data = matches!(place, Place::Data(_) | Place::Compressed(_));
            let wanted = match way {
                Way::New if has_data => run,
                Way::Fill(_) if has_data => continue,
                _ => run.start.max(units.start)..run.end.min(units.end),
            };
            // A new cluster is zero there too.
            let is_there = way == Way::New
                && !has_data
                && self.is_zero_when_new()
                && self.is_zero(self.unit_offset(start, wanted.start), place);
            if wanted.is_empty() || is_there {
                continue;
            }
            let (from, to) = (self.unit_offset(start, wanted.start), self.unit_offset(start, wanted.end));
            for range in [from..to.min(start), from.max(end)..to] {
                match ranges.last_mut() {
                    _ if range.is_empty() => {}
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
        }
        Ok(ranges)
    }
}

/// The bits of subclusters.
pub(super) fn mask(units: Range<u32>) -> u64 {
    (1 << units.end) - (1 << units.start)
}
