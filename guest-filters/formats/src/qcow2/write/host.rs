//! What all instances of a filter share, in the host's maps, slots and locks; and preparing an
//! image for the connections that write to it.

use std::rc::Rc;

use rbdkit_filter_sdk::image::Error;
use rbdkit_filter_sdk::prelude::*;

use super::{Below, ClusterMap, Lock, Shared, TableChange, prepare};
use crate::qcow2::image::Image;
use crate::qcow2::layout::Entry;

/// How often tables were changed.
const GENERATION: u32 = 0;
/// The two numbers of the search for space.
const SEARCH: u32 = 1;
/// Whether the header has no autoclear bits any more.
const CLEARED: u32 = 2;
/// How many connections may write.
const CONNECTIONS: u32 = 3;
/// Whether the image can be written: one of the following.
const VERDICT: u32 = 4;
/// The two numbers of flushes.
const FLUSHES: u32 = 5;
/// The last changes of tables: each is in the slot of its number, which it has as its first word.
const FIRST_CHANGE: u32 = 6;
const CHANGES: u64 = 8;
/// Marks a change that has an offset and a length.
const IS_RANGE: u64 = 1 << 63;

const UNKNOWN: u64 = 0;
const CAN_BE_WRITTEN: u64 = 1;
const READ_ONLY: u64 = 2;

/// The number of the lock for opening. Disks have less than 2^54 clusters, and reference counts are
/// locked with 2^60.
const OPENING: u64 = 1 << 61;

/// Another connection may change the header while an image is opened.
const ATTEMPTS: u32 = 16;

/// All states of a map but 0.
const ANY: u8 = 0b1110;

/// Whether an image can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can.
    Written,
    /// It cannot. The line says why; only the connection that found it out has it.
    ReadOnly(Option<String>),
}

/// The state in the host: maps 0 and 1, 14 slots, and locks of one scope. It belongs to one image.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    /// What owns the state.
    pub scope: Scope,
    /// The first of the slots.
    pub first_slot: u32,
}

fn set(slot: slots::Slot, words: [u64; 4]) {
    while !slot.replace(slot.get(), words) {}
}

impl HostState {
    fn slot(self, index: u32) -> slots::Slot {
        slots::Slot { scope: self.scope, index: self.first_slot + index }
    }

    fn change_slot(self, number: u64) -> slots::Slot {
        self.slot(FIRST_CHANGE + (number % CHANGES) as u32)
    }

    fn put(self, index: u32, words: [u64; 4]) {
        set(self.slot(index), words);
    }

    fn map(self, map: ClusterMap) -> maps::Map {
        maps::Map { scope: self.scope, id: map as u32 }
    }

    /// Prepares writing for the connection that is being opened. The first of several connections
    /// that write finds out what the clusters are used for. `open` opens the image, and `refused`
    /// is a reason beside those of the format why it is not written.
    ///
    /// # Errors
    /// Those of the image's source, and of `open`.
    pub fn prepare(
        self,
        below: &Rc<dyn Below>,
        open: impl Fn() -> Result<Image, Error>,
        refused: Option<&str>,
    ) -> Result<Verdict, Error> {
        for _ in 0..ATTEMPTS {
            // Unlocking an encrypted image takes a lock itself, and a call can have one only.
            let image = open()?;
            locks::lock(self.scope, OPENING, 1, locks::Mode::Exclusive)?;
            let verdict = match image.is_current() {
                Ok(true) => self.prepare_locked(&image, below, refused).map(Some),
                changed => changed.map(|_| None),
            };
            locks::unlock();
            if let Some(verdict) = verdict? {
                return Ok(verdict);
            }
        }
        Err(Error::image("the header changes all the time: the image cannot be opened for writing"))
    }

    fn prepare_locked(self, image: &Image, below: &Rc<dyn Below>, refused: Option<&str>) -> Result<Verdict, Error> {
        let sized = self.resize(image);
        let writers = slots::add_until_close(self.scope, self.slot(CONNECTIONS).index, 1);
        match self.slot(VERDICT).get().a {
            CAN_BE_WRITTEN if writers > 1 => return Ok(Verdict::Written),
            READ_ONLY if writers > 1 => return Ok(Verdict::ReadOnly(None)),
            _ => {}
        }
        self.put(VERDICT, [UNKNOWN, 0, 0, 0]);
        let found = match sized {
            Ok(()) => self.examine(image, below, refused),
            Err(line) => Err(Error::Image(line)),
        };
        let (verdict, answer) = match found {
            Ok(()) => (CAN_BE_WRITTEN, Verdict::Written),
            Err(Error::Image(line)) => (READ_ONLY, Verdict::ReadOnly(Some(line))),
            Err(failed) => return Err(failed),
        };
        self.put(VERDICT, [verdict, 0, 0, 0]);
        Ok(answer)
    }

    /// Gives the maps their size. The error is a line.
    fn resize(self, image: &Image) -> Result<(), String> {
        let cluster = image.header().cluster_size();
        for of in [ClusterMap::Roles, ClusterMap::Pending] {
            self.map(of).resize(cluster as u32, image.map().source().size()).map_err(|errno| match errno {
                Errno::Einval => {
                    "an image with another cluster size had this name before: restart the server".to_string()
                }
                errno => format!("there is no memory for the map of its clusters: {}", errno.name()),
            })?;
        }
        Ok(())
    }

    /// Finds out what the clusters of an image are used for. Nobody writes to it yet.
    fn examine(self, image: &Image, below: &Rc<dyn Below>, refused: Option<&str>) -> Result<(), Error> {
        for of in [ClusterMap::Roles, ClusterMap::Pending] {
            while let Some(first) = self.map(of).find(0, ANY) {
                let count = self.map(of).run(first, 1 << 30).count;
                self.map(of).set(first, count, ANY, 0);
            }
        }
        self.set_search((0, 0));
        self.put(CLEARED, [0; 4]);
        self.count_change(TableChange::Table);
        if let Some(line) = super::refusal(image).or(refused.map(String::from)) {
            return Err(Error::Image(line));
        }
        prepare(image, Rc::clone(below), &(Rc::new(self) as Rc<dyn Shared>))
    }
}

impl Shared for HostState {
    fn lock(&self, first: u64, count: u64, lock: Lock) -> Result<(), Errno> {
        let mode = match lock {
            Lock::Shared => locks::Mode::Shared,
            Lock::Exclusive => locks::Mode::Exclusive,
        };
        locks::lock(self.scope, first, count, mode)
    }
    fn unlock(&self) {
        locks::unlock();
    }
    fn warn(&self, line: &str) {
        warn!("{line}");
    }
    fn generation(&self) -> u64 {
        self.slot(GENERATION).get().a
    }
    fn count_change(&self, change: TableChange) -> u64 {
        let number = slots::add(self.scope, self.slot(GENERATION).index, 1);
        // Who does not find it here takes it for a change of everything.
        let words = match change {
            TableChange::Entry { at, entry } => [number, at, entry.word, entry.bitmap],
            TableChange::Bytes { at, length } => [number, at | IS_RANGE, length, 0],
            TableChange::Table => return number,
        };
        set(self.change_slot(number), words);
        number
    }
    fn change(&self, number: u64) -> Option<TableChange> {
        let words = self.change_slot(number).get();
        let at = words.b & !IS_RANGE;
        (words.a == number).then_some(match words.b & IS_RANGE {
            0 => TableChange::Entry { at, entry: Entry { word: words.c, bitmap: words.d } },
            _ => TableChange::Bytes { at, length: words.c },
        })
    }
    fn search(&self) -> (u64, u64) {
        let words = self.slot(SEARCH).get();
        (words.a, words.b)
    }
    fn set_search(&self, (a, b): (u64, u64)) {
        self.put(SEARCH, [a, b, 0, 0]);
    }
    fn flushes(&self) -> (u64, u64) {
        let words = self.slot(FLUSHES).get();
        (words.a, words.b)
    }
    fn set_flushes(&self, (a, b): (u64, u64)) {
        self.put(FLUSHES, [a, b, 0, 0]);
    }
    fn is_cleared(&self) -> bool {
        self.slot(CLEARED).get().a != 0
    }
    fn set_cleared(&self) {
        self.put(CLEARED, [1, 0, 0, 0]);
    }
    fn run(&self, of: ClusterMap, first: u64, limit: u64) -> (u8, u64) {
        let run = self.map(of).run(first, limit);
        (run.state, run.count)
    }
    fn find(&self, of: ClusterMap, first: u64, states: u8) -> Option<u64> {
        self.map(of).find(first, states)
    }
    fn set(&self, of: ClusterMap, first: u64, count: u64, states: u8, to: u8) -> u64 {
        self.map(of).set(first, count, states, to)
    }
}
