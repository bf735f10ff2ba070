//! Deflated data as a source. Reading it anywhere begins at the nearest checkpoint before.

use std::cell::RefCell;
use std::rc::Rc;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};
use rbdkit_filter_sdk::image::{Error, Source, TableCache, read};

/// Data is inflated in chunks of this many bytes.
const CHUNK: u64 = 256 << 10;

/// How much inflated data is kept, in bytes. An instance keeps four members open: 12 MiB.
const KEPT: usize = 3 << 20;

/// At most this many checkpoints are kept. Each takes 44 KiB: 3 MiB. If there are more, every
/// second one goes, and their distance doubles.
const MOST_POINTS: usize = 64;

/// The distance of checkpoints at first, in bytes of inflated data.
const STEP: u64 = 1 << 20;

/// How much deflated data is read at once, in bytes.
const PIECE: u64 = 128 << 10;

/// Deflate makes at most 1032 bytes of one.
pub const MOST_RATIO: u64 = 1032;

/// A decoder that has come to some place.
#[derive(Clone)]
struct Point {
    /// The offset in the inflated data.
    out: u64,
    /// The offset of the deflated byte that comes next.
    at: u64,
    state: Box<InflateState>,
}

/// Deflated data.
pub struct Inflated {
    stored: Rc<dyn Source>,
    size: u64,
    name: String,
    kept: TableCache<u64, Vec<u8>>,
    progress: RefCell<Progress>,
}

struct Progress {
    running: Option<Point>,
    /// In order.
    points: Vec<Point>,
    step: u64,
}

impl Inflated {
    /// `stored` gives `size` bytes. `name` names it in errors.
    pub fn new(stored: Rc<dyn Source>, size: u64, name: String) -> Inflated {
        let progress = RefCell::new(Progress { running: None, points: Vec::new(), step: STEP });
        Inflated { stored, size, name, kept: TableCache::new(KEPT), progress }
    }

    fn wrong(&self, why: String) -> Error {
        Error::image(format!("{}: its deflated data {why}", self.name))
    }

    fn chunk(&self, number: u64) -> Result<Rc<Vec<u8>>, Error> {
        if let Some(bytes) = self.kept.get(&number) {
            return Ok(bytes);
        }
        let start = number * CHUNK;
        let mut progress = self.progress.borrow_mut();
        let checkpoint = progress.points.partition_point(|point| point.out <= start).checked_sub(1);
        let checkpoint = checkpoint.map(|at| &progress.points[at]);
        let from = checkpoint.map_or(0, |point| point.out);
        let mut point = match &progress.running {
            Some(running) if (from..=start).contains(&running.out) => progress.running.take(),
            _ => checkpoint.cloned(),
        }
        .unwrap_or_else(|| Point { out: 0, at: 0, state: InflateState::new_boxed(DataFormat::Raw) });
        let mut input = Vec::new();
        loop {
            let here = point.out / CHUNK;
            let bytes = self.fill(&mut point, &mut input)?;
            progress.checkpoint(&point);
            let weight = bytes.len();
            let bytes = self.kept.get_or(here, || Ok::<_, Error>((bytes, weight)))?;
            if here == number {
                progress.running = Some(point);
                return Ok(bytes);
            }
        }
    }

    /// Inflates the chunk at which `point` is. `input` holds deflated bytes up to `point.at`.
    fn fill(&self, point: &mut Point, input: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; (self.size - point.out).min(CHUNK) as usize];
        let mut done = 0;
        while done < bytes.len() {
            if input.is_empty() {
                let length = PIECE.min(self.stored.size().saturating_sub(point.at));
                if length == 0 {
                    return Err(self.wrong(format!("ends after {} of {} bytes", point.out + done as u64, self.size)));
                }
                *input = read(&*self.stored, point.at, length as usize)?;
            }
            let result = inflate(&mut point.state, input, &mut bytes[done..], MZFlush::None);
            done += result.bytes_written;
            point.at += result.bytes_consumed as u64;
            input.drain(..result.bytes_consumed);
            let stuck = result.bytes_written == 0 && result.bytes_consumed == 0;
            match result.status {
                Ok(MZStatus::StreamEnd) if done < bytes.len() => {
                    return Err(self.wrong(format!(
                        "gives {} bytes, and {} are promised",
                        point.out + done as u64,
                        self.size
                    )));
                }
                Ok(_) if !stuck => {}
                Err(MZError::Buf) if !stuck => {}
                _ if done == bytes.len() => {}
                _ => return Err(self.wrong(format!("is wrong after {} bytes", point.out + done as u64))),
            }
        }
        point.out += done as u64;
        if point.out == self.size {
            self.check_end(point, input)?;
        }
        Ok(bytes)
    }

    /// Nothing may follow the last byte.
    fn check_end(&self, point: &Point, input: &[u8]) -> Result<(), Error> {
        let mut point = point.clone();
        let rest = self.stored.size().saturating_sub(point.at).min(PIECE);
        let input = if input.is_empty() { read(&*self.stored, point.at, rest as usize)? } else { input.to_vec() };
        let result = inflate(&mut point.state, &input, &mut [0], MZFlush::None);
        if result.bytes_written > 0 {
            return Err(self.wrong(format!("gives more than the {} bytes that are promised", self.size)));
        }
        Ok(())
    }
}

impl Progress {
    fn checkpoint(&mut self, point: &Point) {
        if point.out < self.points.last().map_or(0, |last| last.out) + self.step {
            return;
        }
        if self.points.len() == MOST_POINTS {
            let mut number = 0;
            self.points.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            self.step *= 2;
        }
        self.points.push(point.clone());
    }
}

impl Source for Inflated {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.size);
        if end.is_none() {
            return Err(Error::image(format!("{} bytes at {offset} are beyond the end, {}", into.len(), self.size)));
        }
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let chunk = self.chunk(at / CHUNK)?;
            let skip = (at % CHUNK) as usize;
            let length = (chunk.len() - skip).min(into.len() - done);
            into[done..done + length].copy_from_slice(&chunk[skip..skip + length]);
            done += length;
        }
        Ok(())
    }
}
