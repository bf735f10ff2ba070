//! Writing data: in place, or into new clusters.

use rbdkit_filter_sdk::image::Error;

use super::data::Span;
use super::ports::Payload;
use super::tables::L2;
use super::way::Way;
use super::writer::{ATTEMPTS, Part, Writer};

impl Writer {
    /// Writes a range, which lies within the disk.
    ///
    /// # Errors
    /// Those of next and of the backing disk, ENOSPC, and a line if the image is wrong.
    pub fn write(&self, offset: u64, length: u64, payload: Payload) -> Result<(), Error> {
        self.clear_features()?;
        self.write_range(offset, length, payload)
    }

    pub(super) fn write_range(&self, offset: u64, length: u64, payload: Payload) -> Result<(), Error> {
        let mut done = 0;
        while done < length {
            let part = self.part(offset + done, length - done, done);
            self.write_part(part, payload)?;
            done += part.length;
        }
        Ok(())
    }

    fn write_part(&self, part: Part, payload: Payload) -> Result<(), Error> {
        let mut taken = Vec::new();
        let mut whole_table = false;
        for _ in 0..ATTEMPTS {
            let needed = self.locked(part.offset, part.length, self.lock_in_place(), || {
                let view = self.view(&part)?;
                let ways = self.ways(&part, &view, payload)?;
                if !ways.iter().any(|way| way.changes_entry()) {
                    self.write_in_place(&part, &ways, payload)?;
                    return Ok(None);
                }
                whole_table = !matches!(view.l2, L2::Own(_));
                Ok(Some(new_clusters(&ways) + u64::from(whole_table)))
            });
            let needed = match needed {
                Ok(Some(needed)) => needed,
                done => {
                    self.space.give_back(&taken);
                    return done.map(drop);
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

    /// Overwrites the clusters of a part that are there and are not shared.
    fn write_in_place(&self, part: &Part, ways: &[Way], payload: Payload) -> Result<(), Error> {
        let mut spans = Vec::new();
        for (n, way) in ways.iter().enumerate() {
            if let Way::InPlace(host) = *way {
                let (start, end) = self.within(part, n);
                self.tables.check_data(host, start)?;
                Span::push(&mut spans, host + start % self.cluster(), start..end);
            }
        }
        self.write_spans(part, &spans, payload)
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
        let ways = self.ways(part, &view, payload)?;
        let changes = ways.iter().any(|way| way.changes_entry());
        let makes_table = changes && !matches!(view.l2, L2::Own(_));
        let needed = new_clusters(&ways) + u64::from(makes_table);
        if (makes_table && !whole_table) || (taken.len() as u64) < needed {
            return Ok(false);
        }
        self.write_in_place(part, &ways, payload)?;
        if !changes {
            return Ok(true);
        }
        let table = self.own_table(part, &view, taken, freed)?;
        let mut entries = view.entries.clone();
        let mut copied = false;
        let mut spans = Vec::new();
        for (n, way) in ways.iter().enumerate().filter(|(_, way)| way.changes_entry()) {
            let (start, end) = self.within(part, n);
            let host = match way {
                Way::Fill(host) => {
                    self.tables.check_data(*host, start)?;
                    *host
                }
                _ => {
                    let Some(cluster) = taken.pop() else { return Ok(false) };
                    cluster * self.cluster()
                }
            };
            let rest = self.rest(view.entries[n], *way, start, end)?;
            copied |= self.copy(&rest, host, *way)?;
            entries[n] = self.written_entry(view.entries[n], host, start, end);
            let is_written = matches!(way, Way::New) && matches!(payload, Payload::Zeroes) && self.is_zero_when_new();
            if !is_written {
                Span::push(&mut spans, host + start % self.cluster(), start..end);
            }
        }
        self.write_spans(part, &spans, payload)?;
        if copied {
            self.below.flush()?;
        }
        self.replace_entries(part, table, &view, &entries, freed)?;
        Ok(true)
    }
}

fn new_clusters(ways: &[Way]) -> u64 {
    ways.iter().filter(|way| matches!(way, Way::New)).count() as u64
}
