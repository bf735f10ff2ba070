//! The disk below, as the record shows it.

use crate::testing::disk::Disk;
use crate::testing::host::Host;
use crate::testing::imports::next::words;
use crate::testing::ranges::Ranges;
use crate::testing::recorded_below::RecordedBelow;

use super::entry::{Answer, EntryCall, Event, Gate, Outcome, Record, RecordedCall};

/// The largest disk in bytes. It is in memory.
const MAX_DISK: u64 = 1 << 30;

impl Host {
    /// A server over the disk that the record shows. Files and scripts that the filter needs are
    /// added as for every [`Host`], and then [`Host::replay`] runs the record.
    ///
    /// # Errors
    /// One line: see [`Record::disk`].
    pub fn from_record(record: &Record) -> Result<Host, String> {
        let (disk, below) = record.below()?;
        let mut host = Host::new(disk);
        host.world.recorded = Some(below);
        Ok(host)
    }
}

impl Record {
    /// The disk below, as it was when the record began, as far as the filter read it. What it did
    /// not read is zero.
    ///
    /// # Errors
    /// One line: the record is of a plugin or has only digests of the data, or there are several
    /// disks below, or a disk of more than 1 GiB.
    pub fn disk(&self) -> Result<Disk, String> {
        self.below().map(|(disk, _)| disk)
    }

    /// The calls below that begin or end, in their order.
    fn events_below(&self) -> impl Iterator<Item = (Event, &RecordedCall)> {
        self.events
            .iter()
            .map(|event| match *event {
                Event::Begins(index) | Event::Ends(index) => (*event, &self.calls[index]),
            })
            .filter(|(_, call)| call.gate == Gate::Below)
    }

    fn below(&self) -> Result<(Disk, RecordedBelow), String> {
        let layer = &self.session.layer;
        if !self.session.is_filter {
            return Err(format!(
                "the record is of the plugin {layer}: record the filter's layer (--record=FILTER:FILE)"
            ));
        }
        if !self.session.has_payloads {
            return Err("the record has only digests of the data: record it with --record-payloads".into());
        }
        let mut disk = self.empty_disk()?;
        let (mut below, mut changed) = (RecordedBelow::default(), Ranges::default());
        for (event, call) in self.events_below() {
            if let Event::Begins(_) = event {
                if let Some((offset, length)) = call.call.range().filter(|_| call.call.changes()) {
                    changed.add(offset, length);
                }
                continue;
            }
            match (&call.call, &call.outcome) {
                (EntryCall::Pread { offset, length }, Some(Outcome::Answered(Answer::Data(payload)))) => {
                    let bytes = self.bytes(payload, *length as usize).unwrap_or_default();
                    for (at, length) in changed.gaps(*offset, (*length).into()) {
                        let from = (at - offset) as usize;
                        let part = bytes.get(from..from + length as usize).ok_or("the record lacks data")?;
                        // A lie: it was read beyond the end.
                        let to = disk
                            .range(at, length)
                            .map_err(|_| format!("{} is outside of the disk", call.describe()))?;
                        to.copy_from_slice(part);
                        below.known.add(at, length);
                    }
                }
                (EntryCall::BlockSizes, Some(Outcome::Answered(Answer::BlockSizes(sizes)))) => {
                    disk.block_sizes = *sizes
                }
                (EntryCall::Description, Some(Outcome::Answered(Answer::Description(text)))) => {
                    disk.description.clone_from(text)
                }
                (EntryCall::Extents { .. }, Some(Outcome::Answered(Answer::Extents(list)))) => {
                    below.extents.entry(line(&call.call)).or_default().push_back(list.clone());
                }
                _ => {}
            }
            let outcome = match call.outcome {
                Some(Outcome::Failed(errno)) => Err(errno),
                _ => Ok(()),
            };
            below.outcomes.entry(line(&call.call)).or_default().push_back(outcome);
        }
        Ok((disk, below))
    }

    /// The disk without its content.
    fn empty_disk(&self) -> Result<Disk, String> {
        let mut found: Option<(&str, u64, crate::Capabilities)> = None;
        for call in self.calls.iter().filter(|call| call.gate == Gate::Below) {
            let (EntryCall::Open { name, .. }, Some(Answer::Opened { size, can })) = (&call.call, call.answer()) else {
                continue;
            };
            match found {
                Some((known, bytes, _)) if known != name || bytes != *size => {
                    return Err(
                        "the record has several disks below, and a simulated host has one: use rbdkit-filter replay"
                            .into(),
                    );
                }
                // A client that only reads sees less of what the disk can do.
                Some((_, _, known)) if known.write => {}
                _ => found = Some((name, *size, *can)),
            }
        }
        let Some((_, size, can)) = found else { return Ok(Disk::zeroes(0)) };
        if size > MAX_DISK {
            return Err(format!(
                "the disk below has {size} bytes, and a simulated one at most {MAX_DISK}: use rbdkit-filter replay"
            ));
        }
        Ok(Disk::zeroes(size as usize).can(|now| *now = can))
    }

    /// What the recorded filter left below: the disk, and where it is known what it left.
    pub(super) fn left_below(&self) -> Result<(Disk, Ranges), String> {
        let (mut disk, _) = self.below()?;
        let (mut changed, mut uncertain) = (Ranges::default(), Ranges::default());
        for (event, call) in self.events_below() {
            let Some((offset, length)) = call.call.range().filter(|_| call.call.changes()) else { continue };
            if let Event::Begins(_) = event {
                // Until it has ended, and if it fails, nobody knows.
                uncertain.add(offset, length);
                continue;
            }
            let is_certain = call.answer().is_some() && !call.is_racy;
            let bytes = match &call.call {
                EntryCall::Pwrite { payload, .. } => self.bytes(payload, length as usize),
                _ => Some(vec![0; usize::try_from(length.min(MAX_DISK)).unwrap_or_default()]),
            };
            if let (Some(bytes), Ok(to)) = (bytes, disk.range(offset, length)) {
                to.copy_from_slice(&bytes);
                changed.add(offset, length);
                if is_certain {
                    uncertain.remove(offset, length);
                }
            }
        }
        uncertain.iter().for_each(|(at, length)| changed.remove(at, length));
        Ok((disk, changed))
    }
}

/// The line that shows a call of the layer below.
fn line(call: &EntryCall) -> String {
    match call {
        EntryCall::Open { name, .. } if name.is_empty() => "open".into(),
        EntryCall::Open { name, .. } => format!("open {name}"),
        EntryCall::Pread { offset, length } => format!("pread {offset} {length}"),
        EntryCall::Pwrite { offset, length, flags, .. } => format!("pwrite {offset} {length}{}", words(*flags)),
        EntryCall::Trim { offset, length, flags } => format!("trim {offset} {length}{}", words(*flags)),
        EntryCall::Zero { offset, length, flags } => format!("zero {offset} {length}{}", words(*flags)),
        EntryCall::Cache { offset, length } => format!("cache {offset} {length}"),
        EntryCall::Extents { offset, length, flags } => format!("extents {offset} {length}{}", words(*flags)),
        other => other.name().into(),
    }
}
