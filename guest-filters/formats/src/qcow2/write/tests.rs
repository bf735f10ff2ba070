//! Writing in memory: against a model, with `qemu-img check` as the judge, and with a kill after
//! each write below.

mod crash;
mod dirty;
mod hostile;
mod random;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{self, Error, Source};

use super::open::prepare_within;
use super::rebuild::{BOUNDS, Bounds};
use super::{Below, ClusterMap, Lock, Payload, Shared, TableChange, Unmap, Writer, refusal};
use crate::qcow2::{Image, Options};
use crate::testing::{Dir, Rng};

/// What was done to the image.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Flush,
}

/// The layer below, in memory. It notes every write and flush.
#[derive(Default)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    steps: RefCell<Vec<Step>>,
    /// After so many further writes each fails.
    fails_after: Cell<Option<u64>>,
}

impl Source for Memory {
    fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.bytes.borrow().read(offset, into)
    }
}

impl Below for Memory {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if let Some(left) = self.fails_after.get() {
            if left == 0 {
                return Err(Errno::Eio);
            }
            self.fails_after.set(Some(left - 1));
        }
        let (start, end) = (offset as usize, offset as usize + data.len());
        let mut bytes = self.bytes.borrow_mut();
        bytes.get_mut(start..end).ok_or(Errno::Einval)?.copy_from_slice(data);
        self.steps.borrow_mut().push(Step::Write(offset, data.to_vec()));
        Ok(())
    }
    fn write_buffer(&self, _: u64, _: u32, _: &Bytes, _: u32) -> Result<(), Errno> {
        unreachable!("these tests have their data in the guest")
    }
    fn zero(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.write(offset, &vec![0; length as usize])
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), Errno> {
        // The worst that a discard may do.
        self.write(offset, &vec![0xdb; length as usize])
    }
    fn flush(&self) -> Result<(), Errno> {
        self.steps.borrow_mut().push(Step::Flush);
        Ok(())
    }
}

/// What instances share. A lock that would wait is a fault of the test.
#[derive(Default)]
struct Sharing {
    clusters: u64,
    locked: Cell<bool>,
    changes: RefCell<Vec<TableChange>>,
    search: Cell<(u64, u64)>,
    flushes: Cell<(u64, u64)>,
    cleared: Cell<bool>,
    log: RefCell<Vec<String>>,
    maps: [RefCell<BTreeMap<u64, u8>>; 2],
}

impl Sharing {
    fn state(&self, map: ClusterMap, cluster: u64) -> u8 {
        self.maps[map as usize].borrow().get(&cluster).copied().unwrap_or(0)
    }
}

impl Shared for Sharing {
    fn lock(&self, _first: u64, count: u64, _lock: Lock) -> Result<(), Errno> {
        assert!(count > 0 && !self.locked.replace(true), "a call has one lock at most");
        Ok(())
    }
    fn unlock(&self) {
        assert!(self.locked.replace(false), "nothing is locked");
    }
    fn warn(&self, line: &str) {
        self.log.borrow_mut().push(line.into());
    }
    fn generation(&self) -> u64 {
        self.changes.borrow().len() as u64
    }
    fn count_change(&self, change: TableChange) -> u64 {
        self.changes.borrow_mut().push(change);
        self.generation()
    }
    fn change(&self, number: u64) -> Option<TableChange> {
        // Some are forgotten.
        self.changes.borrow().get(number as usize - 1).copied().filter(|_| !number.is_multiple_of(7))
    }
    fn search(&self) -> (u64, u64) {
        self.search.get()
    }
    fn set_search(&self, numbers: (u64, u64)) {
        self.search.set(numbers);
    }
    fn flushes(&self) -> (u64, u64) {
        self.flushes.get()
    }
    fn set_flushes(&self, numbers: (u64, u64)) {
        self.flushes.set(numbers);
    }
    fn is_cleared(&self) -> bool {
        self.cleared.get()
    }
    fn set_cleared(&self) {
        self.cleared.set(true);
    }
    fn run(&self, map: ClusterMap, first: u64, limit: u64) -> (u8, u64) {
        let state = self.state(map, first);
        let end = self.clusters.min(first.saturating_add(limit));
        (state, (first..end).take_while(|n| self.state(map, *n) == state).count() as u64)
    }
    fn find(&self, map: ClusterMap, first: u64, states: u8) -> Option<u64> {
        (first..self.clusters).find(|n| states >> self.state(map, *n) & 1 == 1)
    }
    fn set(&self, map: ClusterMap, first: u64, count: u64, states: u8, to: u8) -> u64 {
        assert!(first + count <= self.clusters, "the host traps for a range outside of the map");
        let matching = (first..first + count).filter(|n| states >> self.state(map, *n) & 1 == 1);
        let matching: Vec<u64> = matching.collect();
        self.maps[map as usize].borrow_mut().extend(matching.iter().map(|n| (*n, to)));
        matching.len() as u64
    }
}

/// An image in memory with several instances that write to it.
struct Bench {
    memory: Rc<Memory>,
    shared: Rc<Sharing>,
    writers: Vec<Writer>,
    turn: Cell<usize>,
}

impl Bench {
    /// # Errors
    /// Why the image is not written.
    fn new(bytes: Vec<u8>, options: &Options) -> Result<Bench, Error> {
        Bench::within(bytes, options, BOUNDS)
    }

    fn within(bytes: Vec<u8>, options: &Options, bounds: Bounds) -> Result<Bench, Error> {
        let memory = Rc::new(Memory { bytes: RefCell::new(bytes), ..Memory::default() });
        let image = || Image::open(Rc::clone(&memory) as Rc<dyn Source>, options.clone());
        let first = image()?;
        if let Some(line) = refusal(&first) {
            return Err(Error::Image(line));
        }
        let clusters = memory.size().div_ceil(first.header().cluster_size());
        let shared = Rc::new(Sharing { clusters, ..Sharing::default() });
        let below = Rc::clone(&memory) as Rc<dyn Below>;
        prepare_within(&first, Rc::clone(&below), &(Rc::clone(&shared) as Rc<dyn Shared>), bounds)?;
        let writer = |image| Writer::new(image, Rc::clone(&below), Rc::clone(&shared) as Rc<dyn Shared>);
        let writers = vec![writer(first), writer(image()?), writer(image()?)];
        Ok(Bench { memory, shared, writers, turn: Cell::new(0) })
    }

    /// The instance that serves the next request.
    fn writer(&self) -> &Writer {
        self.turn.set((self.turn.get() * 5 + 3) % 7919);
        &self.writers[self.turn.get() % self.writers.len()]
    }

    fn size(&self) -> u64 {
        self.writers[0].size()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.writer().write(offset, data.len() as u64, Payload::Guest(data))
    }

    fn all(&self) -> Vec<u8> {
        read_all(self.writer())
    }

    fn bytes(&self) -> Vec<u8> {
        self.memory.bytes.borrow().clone()
    }
}

fn read_all(source: &dyn Source) -> Vec<u8> {
    image::read(source, 0, source.size() as usize).expect("the disk")
}

/// A number from the environment, for tests that run for longer than usually: see tests/soak.sh.
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The seed of a random test: another one for each `RBDKIT_SEED`.
fn seeded(seed: u64) -> u64 {
    from_environment("RBDKIT_SEED").map_or(seed, |other| seed ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What `qemu-img check` says of an image: 0 for nothing, 2 for errors, 3 for leaks.
fn check(dir: &Dir, bytes: &[u8]) -> (i32, String) {
    let path = dir.file("checked.qcow2", bytes);
    let output = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output();
    let output = output.expect("qemu-img");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

/// A random change of the disk: it is made on the model and on the image.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write { offset: u64, length: u64, byte: u8 },
    Zero { offset: u64, length: u64 },
    Discard { offset: u64, length: u64 },
    Flush,
}

impl Change {
    fn random(rng: &mut Rng, size: u64, most: u64) -> Change {
        let bound = if rng.below(3) == 0 { most } else { 2000 };
        let length = 1 + rng.below(bound.min(size));
        let mut offset = rng.below(size - length + 1);
        if rng.below(3) == 0 {
            offset = offset / 512 * 512;
        }
        match rng.below(10) {
            0 => Change::Zero { offset, length },
            1 => Change::Discard { offset, length },
            2 => Change::Flush,
            _ => Change::Write { offset, length, byte: 1 + rng.below(255) as u8 },
        }
    }

    fn on_image(self, bench: &Bench) -> Result<(), Error> {
        match self {
            Change::Write { offset, length, byte } => bench.write(offset, &vec![byte; length as usize]),
            Change::Zero { offset, length } => bench.writer().unmap(offset, length, Unmap::Zero),
            Change::Discard { offset, length } => bench.writer().unmap(offset, length, Unmap::Discard),
            Change::Flush => bench.writer().flush(),
        }
    }

    /// The bytes that it may change.
    fn range(self) -> std::ops::Range<usize> {
        match self {
            Change::Write { offset, length, .. }
            | Change::Zero { offset, length }
            | Change::Discard { offset, length } => offset as usize..(offset + length) as usize,
            Change::Flush => 0..0,
        }
    }

    /// Makes it on a model, whose content after a discard is the image's.
    fn on_model(self, model: &mut [u8], bench: &Bench) {
        let range = self.range();
        match self {
            Change::Write { byte, .. } => model[range].fill(byte),
            Change::Zero { .. } => model[range].fill(0),
            Change::Discard { offset, length } => {
                let now = image::read(bench.writer(), offset, length as usize).expect("the disk");
                for (was, is) in model[range].iter_mut().zip(now) {
                    assert!(is == *was || is == 0, "{self:?} gives other bytes");
                    *was = is;
                }
            }
            Change::Flush => {}
        }
    }
}
