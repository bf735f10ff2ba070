//! Chains of clusters: the file allocation table has the number of the next cluster for each.
//!
//! A chain can only be walked forwards. The places of some clusters of it are kept, at equal
//! distances that double when there are too many. So a read walks a few clusters, and memory does
//! not grow with the file.

use std::cell::RefCell;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, quoted};

use crate::mapped::{Place, Run, Runs};

/// Places of a chain that are kept.
const MOST_MARKS: usize = 64 << 10;

/// Clusters of one piece, at most: 4096 of them take a few milliseconds.
const MOST_MERGED: u64 = 4096;

/// The width of an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// The file allocation table, and where clusters are.
pub struct Table {
    pub cache: BlockCache,
    pub width: Width,
    /// Where the table begins, in bytes.
    pub start: u64,
    /// Where cluster 2 begins, in bytes.
    pub data: u64,
    pub cluster_size: u64,
    /// Clusters are numbered from 2 to this, less 1.
    pub end: u32,
}

/// What the table says of a cluster.
enum Next {
    Cluster(u32),
    End,
}

impl Table {
    fn next(&self, cluster: u32) -> Result<Next, Error> {
        let n = u64::from(cluster);
        let (value, end) = match self.width {
            Width::Fat12 => {
                let pair = u16::from_le_bytes(self.cache.array(self.start + n * 3 / 2)?);
                (u32::from(if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            Width::Fat16 => (u16::from_le_bytes(self.cache.array(self.start + 2 * n)?).into(), 0xfff8),
            Width::Fat32 => (u32::from_le_bytes(self.cache.array(self.start + 4 * n)?) & 0x0fff_ffff, 0x0fff_fff8),
        };
        if value >= end {
            return Ok(Next::End);
        }
        self.check(value).map(|()| Next::Cluster(value))
    }

    fn check(&self, cluster: u32) -> Result<(), Error> {
        if (2..self.end).contains(&cluster) {
            return Ok(());
        }
        let last = self.end - 1;
        Err(Error::image(format!("a chain leads to cluster {cluster}, and clusters have the numbers 2 to {last}")))
    }
}

/// A file, or a directory.
pub struct Chain {
    table: Rc<Table>,
    /// For messages.
    name: Vec<u8>,
    size: u64,
    walk: RefCell<Walk>,
}

struct Walk {
    /// The cluster at each multiple of `distance`.
    marks: Vec<u32>,
    distance: u64,
    /// The last place that was reached: the cluster of this number in the file.
    far: (u64, u32),
    /// The place of the last question.
    last: (u64, u32),
    /// Brent's way to find a circle: a cluster that was passed when the number of steps was a power
    /// of two, and the steps since.
    passed: u32,
    steps: u64,
    power: u64,
}

impl Chain {
    /// `size` bytes in the chain that begins with `first`.
    pub fn new(table: Rc<Table>, name: &[u8], first: u32, size: u64) -> Result<Chain, Error> {
        table.check(first)?;
        let clusters = u64::from(table.end - 2);
        if size.div_ceil(table.cluster_size) > clusters {
            let room = clusters * table.cluster_size;
            let line = format!("{} has a size of {size}, and the file system has room for {room}", quoted(name));
            return Err(Error::image(line));
        }
        Ok(Chain::from(table, name, first, size))
    }

    /// A file of no bytes, which has no clusters.
    pub fn empty(table: Rc<Table>) -> Chain {
        Chain::from(table, b"", 0, 0)
    }

    fn from(table: Rc<Table>, name: &[u8], first: u32, size: u64) -> Chain {
        let start = (0, first);
        let walk = Walk { marks: vec![first], distance: 1, far: start, last: start, passed: first, steps: 0, power: 1 };
        Chain { table, name: name.to_vec(), size, walk: RefCell::new(walk) }
    }

    /// How many clusters the chain has, at most `most`. For directories, which have no size.
    pub fn count(&self, most: u64) -> Result<u64, Error> {
        let mut walk = self.walk.borrow_mut();
        while walk.far.0 + 1 < most {
            if !self.step(&mut walk)? {
                break;
            }
        }
        Ok(walk.far.0 + 1)
    }

    /// Goes on by one cluster. False at the end of the chain.
    fn step(&self, walk: &mut Walk) -> Result<bool, Error> {
        let Next::Cluster(next) = self.table.next(walk.far.1)? else { return Ok(false) };
        walk.steps += 1;
        if next == walk.passed {
            let line = format!("the chain of {} comes back to cluster {next}", quoted(&self.name));
            return Err(Error::image(line));
        }
        if walk.steps == walk.power {
            (walk.passed, walk.steps, walk.power) = (next, 0, walk.power * 2);
        }
        walk.far = (walk.far.0 + 1, next);
        if walk.far.0.is_multiple_of(walk.distance) {
            walk.marks.push(next);
            if walk.marks.len() > MOST_MARKS {
                let mut nth = 0;
                walk.marks.retain(|_| {
                    nth += 1;
                    nth % 2 == 1
                });
                walk.distance *= 2;
            }
        }
        Ok(true)
    }

    /// The cluster of this number in the file.
    fn cluster(&self, index: u64) -> Result<u32, Error> {
        let mut walk = self.walk.borrow_mut();
        while walk.far.0 < index {
            if !self.step(&mut walk)? {
                return Err(self.ends_early(walk.far.0 + 1));
            }
        }
        let mark = index / walk.distance;
        let from_mark = walk.marks.get(mark as usize).map(|cluster| (mark * walk.distance, *cluster));
        let mut place = from_mark.unwrap_or((0, walk.marks[0]));
        if (place.0..=index).contains(&walk.last.0) {
            place = walk.last;
        }
        while place.0 < index {
            // The chain was walked here before.
            let Next::Cluster(next) = self.table.next(place.1)? else { return Err(self.ends_early(place.0 + 1)) };
            place = (place.0 + 1, next);
        }
        walk.last = place;
        Ok(place.1)
    }

    fn ends_early(&self, clusters: u64) -> Error {
        let (name, needed) = (quoted(&self.name), self.size.div_ceil(self.table.cluster_size));
        Error::image(format!("the chain of {name} ends after {clusters} clusters, and its size needs {needed}"))
    }
}

impl Runs for Chain {
    fn size(&self) -> u64 {
        self.size
    }

    fn run(&self, offset: u64) -> Result<Run, Error> {
        let size = self.table.cluster_size;
        let (index, skip) = (offset / size, offset % size);
        let most = (self.size.div_ceil(size) - index).min(MOST_MERGED);
        let first = self.cluster(index)?;
        let mut count = 1;
        while count < most && self.cluster(index + count)? == first + count as u32 {
            count += 1;
        }
        let at = self.table.data + u64::from(first - 2) * size + skip;
        Ok(Run { length: count * size - skip, place: Place::At(at) })
    }
}
