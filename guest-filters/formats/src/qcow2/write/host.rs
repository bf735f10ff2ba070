//! What all instances of a filter share, in the host's maps, slots and locks; and preparing an
//! image for the connections that write to it.

use std::rc::Rc;

use rbdkit_filter_sdk::image::Error;
use rbdkit_filter_sdk::prelude::*;

use super::{Below, ClusterMap, Lock, Shared, prepare};
use crate::qcow2::image::Image;

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

const UNKNOWN: u64 = 0;
const CAN_BE_WRITTEN: u64 = 1;
const READ_ONLY: u64 = 2;

/// The number of the lock for opening. Disks have less than 2^54 clusters, and reference counts are
/// locked with 2^60.
const OPENING: u64 = 1 << 61;

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

/// The state in the host: maps 0 and 1, slots 0 to 4, and locks of one scope. It belongs to one
/// image.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    /// What owns the state.
    pub scope: Scope,
}

impl HostState {
    fn slot(self, index: u32) -> slots::Slot {
        slots::Slot { scope: self.scope, index }
    }

    fn put(self, index: u32, words: [u64; 4]) {
        let slot = self.slot(index);
        while !slot.replace(slot.get(), words) {}
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
        below: Rc<dyn Below>,
        open: impl FnOnce() -> Result<Image, Error>,
        refused: Option<String>,
    ) -> Result<Verdict, Error> {
        locks::lock(self.scope, OPENING, 1, locks::Mode::Exclusive)?;
        let verdict = self.prepare_locked(below, open, refused);
        locks::unlock();
        verdict
    }

    fn prepare_locked(
        self,
        below: Rc<dyn Below>,
        open: impl FnOnce() -> Result<Image, Error>,
        refused: Option<String>,
    ) -> Result<Verdict, Error> {
        let image = open()?;
        let sized = self.resize(&image);
        let writers = slots::add_until_close(self.scope, CONNECTIONS, 1);
        match self.slot(VERDICT).get().a {
            CAN_BE_WRITTEN if writers > 1 => return Ok(Verdict::Written),
            READ_ONLY if writers > 1 => return Ok(Verdict::ReadOnly(None)),
            _ => {}
        }
        self.put(VERDICT, [UNKNOWN, 0, 0, 0]);
        let found = match sized {
            Ok(()) => self.examine(&image, below, refused),
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
    fn examine(self, image: &Image, below: Rc<dyn Below>, refused: Option<String>) -> Result<(), Error> {
        for of in [ClusterMap::Roles, ClusterMap::Pending] {
            while let Some(first) = self.map(of).find(0, ANY) {
                let count = self.map(of).run(first, 1 << 30).count;
                self.map(of).set(first, count, ANY, 0);
            }
        }
        self.set_search((0, 0));
        self.put(CLEARED, [0; 4]);
        self.count_change();
        if let Some(line) = super::refusal(image).or(refused) {
            return Err(Error::Image(line));
        }
        prepare(image, below, &(Rc::new(self) as Rc<dyn Shared>))
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
    fn count_change(&self) -> u64 {
        slots::add(self.scope, GENERATION, 1)
    }
    fn search(&self) -> (u64, u64) {
        let words = self.slot(SEARCH).get();
        (words.a, words.b)
    }
    fn set_search(&self, (a, b): (u64, u64)) {
        self.put(SEARCH, [a, b, 0, 0]);
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
