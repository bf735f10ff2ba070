//! Discarding, and making whole clusters and subclusters read as zero.

use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::{Lock, Payload};
use super::tables::L2;
use super::way::mask;
use super::writer::{ATTEMPTS, Part, View, Writer};
use crate::qcow2::layout::{COMPRESSED, Entry, ZERO};

/// What is to be done with whole clusters or subclusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// They may read as anything.
    Discard,
    /// They have to read as zero.
    Zero,
}

impl Writer {
    /// Discards a range, or makes it read as zero.
    ///
    /// # Errors
    /// Those of [`write`](Writer::write).
    pub fn unmap(&self, offset: u64, length: u64, how: Unmap) -> Result<(), Error> {
        self.clear_features()?;
        let unit = self.tables.layout.unit();
        let end = offset + length;
        // The last cluster of the disk may not be a whole one.
        let last = if end == self.image.size() { end } else { end / unit * unit };
        let first = offset.next_multiple_of(unit).min(end);
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
            let part = self.part(at, self.before_part_of_cluster(at, last) - at, 0);
            let is_done = self.unmap_part(part)?;
            if !is_done && how == Unmap::Zero {
                self.write_range(part.offset, part.length, Payload::Zeroes)?;
            }
            at += part.length;
        }
        Ok(())
    }

    /// Where to cut a range, so that what is before the cut consists of whole clusters, or lies in
    /// one cluster.
    fn before_part_of_cluster(&self, start: u64, end: u64) -> u64 {
        let cluster = self.cluster();
        if !start.is_multiple_of(cluster) {
            return start.next_multiple_of(cluster).min(end);
        }
        if end == self.image.size() || end / cluster * cluster == start { end } else { end / cluster * cluster }
    }

    /// The entry of a cluster that reads as zero and takes no space.
    fn empty_entry(&self) -> Entry {
        match (self.image.backing().is_some(), self.tables.layout.has_subclusters()) {
            (false, _) => Entry::default(),
            (true, false) => Entry { word: ZERO, bitmap: 0 },
            (true, true) => Entry { word: 0, bitmap: u64::from(u32::MAX) << 32 },
        }
    }

    /// The entry after the bytes from `start` to `end` of the disk, which are whole subclusters,
    /// were made zero. `None` if there is none: a part of a compressed cluster cannot be zero.
    fn unmapped(&self, entry: Entry, start: u64, end: u64) -> Result<Option<Entry>, Error> {
        // It must not be wrong.
        self.tables.places(entry, 0..self.units_of_cluster(), start)?;
        let units = self.units(start, end);
        let is_whole =
            start.is_multiple_of(self.cluster()) && (end == self.image.size() || end - start == self.cluster());
        if is_whole || units.len() as u32 == self.units_of_cluster() {
            return Ok(Some(self.empty_entry()));
        }
        if entry.word & COMPRESSED != 0 {
            return Ok(None);
        }
        let zero = if self.image.backing().is_some() { mask(units.clone()) << 32 } else { 0 };
        let bitmap = entry.bitmap & !mask(units) | zero;
        let has_data = bitmap & u64::from(u32::MAX) != 0;
        Ok(Some(Entry { word: if has_data { entry.word } else { 0 }, bitmap }))
    }

    fn unmapped_entries(&self, part: &Part, view: &View) -> Result<Option<Vec<Entry>>, Error> {
        let unmapped = |(n, entry): (usize, &Entry)| {
            let (start, end) = self.within(part, n);
            self.unmapped(*entry, start, end)
        };
        view.entries.iter().enumerate().map(unmapped).collect()
    }

    /// Makes whole subclusters read as zero. False if a write has to do it.
    fn unmap_part(&self, part: Part) -> Result<bool, Error> {
        let mut taken = Vec::new();
        let mut whole_table = false;
        for _ in 0..ATTEMPTS {
            let found = self.locked(part.offset, part.length, Lock::Shared, || {
                let view = self.view(&part)?;
                let Some(entries) = self.unmapped_entries(&part, &view)? else { return Ok(Some(false)) };
                let is_done = view.entries == entries;
                whole_table = !is_done && !matches!(view.l2, L2::Own(_));
                Ok(is_done.then_some(true))
            });
            if !matches!(found, Ok(None)) {
                self.space.give_back(&taken);
                return found.map(|is_done| is_done.unwrap_or(true));
            }
            if whole_table && taken.is_empty() {
                taken.extend(self.space.take(1)?);
            }
            let mut freed = Vec::new();
            self.lock_for_change(&part, whole_table).inspect_err(|_| self.space.give_back(&taken))?;
            let done = self.unmap_locked(&part, whole_table, &mut taken, &mut freed);
            self.shared.unlock();
            if let Ok(true) | Err(_) = done {
                self.space.give_back(&taken);
                self.space.free(freed)?;
                return done;
            }
        }
        self.space.give_back(&taken);
        Err(Error::image(format!("the tables for {} change all the time: the request gives up", part.offset)))
    }

    /// False if the lock or the space is not enough, or the entries are others now.
    fn unmap_locked(
        &self,
        part: &Part,
        whole_table: bool,
        taken: &mut Vec<u64>,
        freed: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        let view = self.view(part)?;
        let Some(entries) = self.unmapped_entries(part, &view)? else { return Ok(false) };
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
