//! Discarding, and making whole clusters read as zero.

use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::Payload;
use super::tables::L2;
use super::writer::{ATTEMPTS, Part, Writer};
use crate::qcow2::layout::ZERO;

/// What is to be done with whole clusters.
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
