//! Writing data: in place, or into new clusters.

use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::Payload;
use super::tables::{L2, Use, own_entry};
use super::writer::{ATTEMPTS, Part, View, Writer};

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

    /// The clusters of a part that need space, by their number in the part.
    fn missing(&self, part: &Part, view: &View, payload: Payload) -> Vec<usize> {
        let needs = |n: &usize| match view.uses[*n] {
            Use::Own(_) => false,
            Use::Copy => true,
            Use::Empty(place) => !matches!(payload, Payload::Zeroes) || !self.is_zero(part.first + *n as u64, place),
        };
        (0..view.uses.len()).filter(needs).collect()
    }

    fn write_part(&self, part: Part, payload: Payload) -> Result<(), Error> {
        let mut taken = Vec::new();
        let mut whole_table = false;
        for _ in 0..ATTEMPTS {
            let needed = self.reading(part.offset, part.length, || {
                let view = self.view(&part)?;
                let missing = self.missing(&part, &view, payload);
                whole_table = !missing.is_empty() && !matches!(view.l2, L2::Own(_));
                if missing.is_empty() {
                    self.write_own(&part, &view, payload)?;
                }
                Ok(missing.len() as u64 + u64::from(whole_table))
            });
            let needed = match needed {
                Ok(0) => {
                    self.space.give_back(&taken);
                    return Ok(());
                }
                Ok(needed) => needed,
                Err(error) => {
                    self.space.give_back(&taken);
                    return Err(error);
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
    fn write_own(&self, part: &Part, view: &View, payload: Payload) -> Result<(), Error> {
        let mut run: Option<(u64, u64, u64)> = None;
        for (n, usage) in view.uses.iter().enumerate() {
            let Use::Own(host) = *usage else { continue };
            let (start, end) = self.within(part, n);
            self.tables.check_data(host, start)?;
            let (to, length) = (host + start % self.cluster(), end - start);
            match &mut run {
                Some((at, from, so_far)) if *at + *so_far == to && *from + *so_far == start => *so_far += length,
                _ => {
                    self.write_run(part, run, payload)?;
                    run = Some((to, start, length));
                }
            }
        }
        self.write_run(part, run, payload)
    }

    /// Writes a run of bytes of a part: where, the offset of the disk, and how many.
    fn write_run(&self, part: &Part, run: Option<(u64, u64, u64)>, payload: Payload) -> Result<(), Error> {
        let Some((to, offset, length)) = run else { return Ok(()) };
        let at = part.at + (offset - part.offset);
        match payload {
            Payload::Guest(bytes) => self.below.write(to, &bytes[at as usize..(at + length) as usize])?,
            Payload::Buffer(buffer) => self.below.write_buffer(to, length as u32, buffer, at as u32)?,
            Payload::Zeroes => self.below.zero(to, length)?,
        }
        Ok(())
    }

    /// The bytes of the disk that a part has of its cluster `n`.
    fn within(&self, part: &Part, n: usize) -> (u64, u64) {
        let start = (part.first + n as u64) * self.cluster();
        (start.max(part.offset), (start + self.cluster()).min(part.offset + part.length))
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
        let missing = self.missing(part, &view, payload);
        let makes_table = !missing.is_empty() && !matches!(view.l2, L2::Own(_));
        if (makes_table && !whole_table) || taken.len() < missing.len() + usize::from(makes_table) {
            return Ok(false);
        }
        self.write_own(part, &view, payload)?;
        if missing.is_empty() {
            return Ok(true);
        }
        let table = self.own_table(part, &view, taken, freed)?;
        let mut entries = view.entries.clone();
        let mut copied = false;
        let mut run: Option<(u64, u64, u64)> = None;
        for n in missing {
            let Some(cluster) = taken.pop() else { return Ok(false) };
            let host = cluster * self.cluster();
            entries[n] = own_entry(host);
            let (start, end) = self.within(part, n);
            if !matches!(view.uses[n], Use::Empty(place) if self.is_zero(part.first + n as u64, place)) {
                copied |= self.copy_rest(start, end, host)?;
            }
            // A new cluster is zero.
            if matches!(payload, Payload::Zeroes) {
                continue;
            }
            let (to, length) = (host + start % self.cluster(), end - start);
            match &mut run {
                Some((at, from, so_far)) if *at + *so_far == to && *from + *so_far == start => *so_far += length,
                _ => {
                    self.write_run(part, run, payload)?;
                    run = Some((to, start, length));
                }
            }
        }
        self.write_run(part, run, payload)?;
        if copied {
            self.below.flush()?;
        }
        self.replace_entries(part, table, &view, &entries, freed)?;
        Ok(true)
    }

    /// Copies what a write of `start` to `end` leaves of a cluster to its new place. True if
    /// something was copied.
    fn copy_rest(&self, start: u64, end: u64, host: u64) -> Result<bool, Error> {
        let cluster = self.cluster();
        let begin = start / cluster * cluster;
        let stop = (begin + cluster).min(self.image.size());
        let mut copied = false;
        for (from, to) in [(begin, start), (end.min(stop), stop)] {
            if from == to {
                continue;
            }
            let mut bytes = vec![0; (to - from) as usize];
            self.image.read(from, &mut bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                self.below.write(host + from % cluster, &bytes)?;
                copied = true;
            }
        }
        Ok(copied)
    }
}
