//! Writing data: in place, or into new clusters.

use rbdkit_filter_sdk::image::Error;

use super::data::Span;
use super::ports::{Lock, Payload};
use super::tables::L2;
use super::way::Way;
use super::writer::{ATTEMPTS, Part, View, Writer};
use crate::qcow2::layout::Entry;

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
        let (mut whole_table, mut has_rest) = (false, false);
        for _ in 0..ATTEMPTS {
            let needed = self.locked(part.offset, part.length, self.lock_in_place(), || {
                let view = self.view(&part)?;
                let ways = self.ways(&part, &view, payload)?;
                if !ways.iter().any(|way| way.changes_entry()) {
                    self.write_in_place(&part, &ways, payload)?;
                    return Ok(None);
                }
                whole_table = !matches!(view.l2, L2::Own(_));
                has_rest = self.has_rest(&part, &view, &ways)?;
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
            let mut ahead = Vec::new();
            let mut freed = Vec::new();
            let copied = if has_rest { self.copy_ahead(&part, payload, &mut taken, &mut ahead) } else { Ok(()) };
            let locked = copied.and_then(|()| self.lock_for_change(&part, whole_table));
            let done = locked.and_then(|()| {
                let done = self.write_new(&part, payload, whole_table, &mut taken, &mut ahead, &mut freed);
                self.shared.unlock();
                done
            });
            // What has a copy that is not needed is not zero.
            freed.extend(ahead.iter().map(|copy| copy.cluster));
            self.space.free(freed).inspect_err(|_| self.space.give_back(&taken))?;
            if let Ok(true) | Err(_) = done {
                self.space.give_back(&taken);
                return done.map(drop);
            }
        }
        self.space.give_back(&taken);
        Err(Error::image(format!("the tables for {} change all the time: the write gives up", part.offset)))
    }

    /// Whether a write leaves something of clusters that are to be new.
    fn has_rest(&self, part: &Part, view: &View, ways: &[Way]) -> Result<bool, Error> {
        for (n, way) in ways.iter().enumerate().filter(|(_, way)| **way == Way::New) {
            let (start, end) = self.within(part, n);
            if !self.rest(view.entries[n], *way, start, end)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies what a write leaves of clusters to new clusters before the clusters are locked, so
    /// that one flush serves many requests. Nobody changes these bytes in place: the disk has them
    /// in the backing disk, in a snapshot or compressed.
    fn copy_ahead(
        &self,
        part: &Part,
        payload: Payload,
        taken: &mut Vec<u64>,
        ahead: &mut Vec<Ahead>,
    ) -> Result<(), Error> {
        let copied = self.locked(part.offset, part.length, Lock::Shared, || {
            let view = self.view(part)?;
            let ways = self.ways(part, &view, payload)?;
            let mut copied = false;
            for (n, way) in ways.iter().enumerate().filter(|(_, way)| **way == Way::New) {
                let (entry, (start, end)) = (view.entries[n], self.within(part, n));
                let rest = self.rest(entry, *way, start, end)?;
                if rest.is_empty() || self.splits_sector(start, end) {
                    continue;
                }
                let Some(cluster) = taken.pop() else { break };
                ahead.push(Ahead { n, entry, cluster });
                copied |= self.copy(&rest, cluster * self.cluster(), *way)?;
            }
            Ok(copied)
        });
        if copied? { self.space.flush_together() } else { Ok(()) }
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
        ahead: &mut Vec<Ahead>,
        freed: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        let view = self.view(part)?;
        let ways = self.ways(part, &view, payload)?;
        let changes = ways.iter().any(|way| way.changes_entry());
        let makes_table = changes && !matches!(view.l2, L2::Own(_));
        let is_ahead = |n: usize, copy: &Ahead| copy.n == n && ways[n] == Way::New && copy.entry == view.entries[n];
        let there = ahead.iter().filter(|copy| is_ahead(copy.n, copy)).count() as u64;
        let needed = new_clusters(&ways) + u64::from(makes_table) - there;
        if (makes_table && !whole_table) || (taken.len() as u64) < needed {
            return Ok(false);
        }
        self.write_in_place(part, &ways, payload)?;
        if !changes {
            return Ok(true);
        }
        let table = self.own_table(part, &view, taken, freed)?;
        let mut entries = view.entries.clone();
        let mut must_flush = false;
        let mut spans = Vec::new();
        for (n, way) in ways.iter().enumerate().filter(|(_, way)| way.changes_entry()) {
            let (start, end) = self.within(part, n);
            let copy = ahead.iter().position(|copy| is_ahead(n, copy)).map(|at| ahead.swap_remove(at));
            let host = match (way, &copy) {
                (Way::Fill(host), _) => {
                    self.tables.check_data(*host, start)?;
                    *host
                }
                (_, Some(copy)) => copy.cluster * self.cluster(),
                (_, None) => {
                    let Some(cluster) = taken.pop() else { return Ok(false) };
                    cluster * self.cluster()
                }
            };
            if copy.is_none() {
                let rest = self.rest(view.entries[n], *way, start, end)?;
                // The write copies what it leaves of a sector.
                must_flush |= self.copy(&rest, host, *way)? || self.splits_sector(start, end);
            }
            entries[n] = self.written_entry(view.entries[n], host, start, end);
            let is_written = matches!(way, Way::New) && matches!(payload, Payload::Zeroes) && self.is_zero_when_new();
            if !is_written {
                Span::push(&mut spans, host + start % self.cluster(), start..end);
            }
        }
        self.write_spans(part, &spans, payload)?;
        if must_flush {
            self.below.flush()?;
        }
        self.replace_entries(part, table, &view, &entries, freed)?;
        Ok(true)
    }
}

/// A new cluster that has a copy of what a write leaves.
struct Ahead {
    /// The number of the cluster in the part.
    n: usize,
    /// The entry from which it was copied.
    entry: Entry,
    /// The new cluster.
    cluster: u64,
}

fn new_clusters(ways: &[Way]) -> u64 {
    ways.iter().filter(|way| matches!(way, Way::New)).count() as u64
}
