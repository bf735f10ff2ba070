//! What all instances know of a compressed file: its points, and decoded chunks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use rbdkit_filter_sdk::buffer::{Buffer, Bytes};
use rbdkit_filter_sdk::image::{Error, Source, read};
use rbdkit_filter_sdk::locks::{Held, Mode};
use rbdkit_filter_sdk::maps::Map;
use rbdkit_filter_sdk::slots::Slot;
use rbdkit_filter_sdk::{Errno, Scope, clock, scratch};

use super::codec::{CHUNK, Index, MAX_POINTS, Point, is_zero};

/// Where decoders keep what is shared.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In the host: slots, map 0 and the scratch file of the export. A filter that uses this must
    /// not use them for anything else.
    Host,
    /// In memory, at most so many bytes of chunks. It belongs to one opened file, and is for tests
    /// and for tools without a host.
    Memory(usize),
}

impl Default for Storage {
    /// The host's in a filter; otherwise 64 MiB of memory.
    fn default() -> Storage {
        if cfg!(target_arch = "wasm32") { Storage::Host } else { Storage::Memory(64 << 20) }
    }
}

/// Each file has a region of the scratch file. There are as many as slots, and together they stay
/// below the largest file of ext4, which is 16 TiB.
const REGION: u64 = 1 << 40;
/// One region for each slot.
const REGIONS: u32 = 16;
/// In a region the points come first, the windows next, and the chunks after that.
const WINDOWS_AT: u64 = 32 << 30;
const CHUNKS_AT: u64 = 64 << 30;
const CHUNKS: u64 = (REGION - CHUNKS_AT) / CHUNK;
/// Points go into the scratch file in pieces of this many.
const POINTS_AT_ONCE: usize = 16 << 10;

/// What is known of a chunk. The numbers are the states of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has to be decoded.
    Unknown = 0,
    /// Its bytes are in the storage.
    Stored = 1,
    /// All its bytes are zero.
    Zero = 2,
}

/// Bits of the word that says how far a region is.
const DONE: u64 = 1;
const COMPLETE: u64 = 2;

/// The part of the storage that belongs to one file.
pub struct Region {
    place: Place,
    window_size: u32,
    /// Whether the index has every unit.
    complete: Cell<bool>,
    /// Whether there is no room for more chunks.
    full: Cell<bool>,
}

enum Place {
    Host { index: u32, key: u64 },
    Memory { room: usize, kept: RefCell<Kept> },
}

#[derive(Default)]
struct Kept {
    chunks: BTreeMap<u64, Option<Rc<[u8]>>>,
    used: usize,
    windows: BTreeMap<usize, Vec<u8>>,
}

const MAP: Map = Map { scope: Scope::Exportname, id: 0 };

impl Storage {
    /// The region of a file. `name` is the name of the format, and `window` the most bytes that a
    /// decoder needs to begin at a point.
    ///
    /// # Errors
    /// Those of the source and the host, and a line if too many files need one.
    pub(super) fn region(&self, name: &str, window: u32, below: &dyn Source) -> Result<Region, Error> {
        let place = match self {
            Storage::Memory(room) => Place::Memory { room: *room, kept: RefCell::default() },
            Storage::Host => {
                MAP.resize(CHUNK as u32, u64::from(REGIONS) * REGION)?;
                let key = key_of(name, below)?;
                Place::Host { index: claim(key)?, key }
            }
        };
        Ok(Region { place, window_size: window, complete: Cell::new(false), full: Cell::new(false) })
    }
}

/// A number that tells a file from others: of its format, its size, its first and last bytes.
fn key_of(name: &str, below: &dyn Source) -> Result<u64, Error> {
    const HASH: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);
    const ENDS: u64 = 4096;
    let (size, piece) = (below.size(), below.size().min(ENDS));
    let mut hash = HASH.digest();
    hash.update(name.as_bytes());
    hash.update(&size.to_le_bytes());
    hash.update(&read(below, 0, piece as usize)?);
    hash.update(&read(below, size - piece, piece as usize)?);
    Ok(hash.finalize().max(1))
}

fn slot(index: u32) -> Slot {
    Slot { scope: Scope::Exportname, index }
}

/// The slot that has the key, or a free one, which gets it.
fn claim(key: u64) -> Result<u32, Error> {
    for index in 0..REGIONS {
        loop {
            let words = slot(index).get();
            if words.a == key {
                return Ok(index);
            }
            if words.a != 0 {
                break;
            }
            if slot(index).replace(words, [key, 0, 0, 0]) {
                return Ok(index);
            }
        }
    }
    Err(Error::image(format!("{REGIONS} compressed files of this export are known, and no more are possible")))
}

impl Region {
    /// Whether the index that is known has every unit of the file.
    pub fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// The index will have every unit.
    pub fn set_complete(&self) {
        self.complete.set(true);
    }

    /// What another instance, or this one before, has found out.
    ///
    /// # Errors
    /// Those of the host.
    pub fn known(&self) -> Result<Option<Index>, Error> {
        let Place::Host { index, .. } = self.place else { return Ok(None) };
        let words = slot(index).get();
        if words.b & DONE == 0 {
            return Ok(None);
        }
        self.complete.set(words.b & COMPLETE != 0);
        let count = words.d as usize;
        let mut units = Vec::with_capacity(count);
        let base = u64::from(index) * REGION;
        while units.len() < count {
            let part = (count - units.len()).min(POINTS_AT_ONCE);
            let buffer = Buffer::new(16 * part as u32)?;
            scratch::pread(Scope::Exportname, base + 16 * units.len() as u64, 16 * part as u32, buffer.id(), 0)?;
            let bytes = buffer.read(..);
            let (points, _) = bytes.as_chunks::<16>();
            units.extend(points.iter().map(|point| {
                let number = |at| u64::from_le_bytes(std::array::from_fn(|n| point[at + n]));
                Point { out: number(0), at: number(8) }
            }));
        }
        Ok(Some(Index { units, size: words.c }))
    }

    /// Finds the index with `work`, unless another instance has done it by then. One instance at a
    /// time does it for an export.
    ///
    /// # Errors
    /// Those of `work` and of the host.
    pub fn once(&self, work: impl FnOnce(&Region) -> Result<Index, Error>) -> Result<Index, Error> {
        let Place::Host { index, key } = self.place else { return work(self) };
        // The host ends the lock with the call if this returns an error.
        let held = Held::new(Scope::Exportname, u64::from(index), 1, Mode::Exclusive)?;
        if let Some(known) = self.known()? {
            held.release();
            return Ok(known);
        }
        let found = work(self)?;
        let base = u64::from(index) * REGION;
        let mut is_known = true;
        for (n, points) in found.units.chunks(POINTS_AT_ONCE).enumerate() {
            let bytes: Vec<u8> =
                points.iter().flat_map(|point| [point.out.to_le_bytes(), point.at.to_le_bytes()]).flatten().collect();
            is_known &= write_scratch(base + (16 * n * POINTS_AT_ONCE) as u64, &bytes)?;
        }
        // Without room for its index, each instance finds it for itself.
        if is_known {
            let state = DONE | if self.complete.get() { COMPLETE } else { 0 };
            let words = slot(index).get();
            slot(index).replace(words, [key, state, found.size, found.units.len() as u64]);
        }
        held.release();
        Ok(found)
    }

    /// What is known of a chunk, and for how many chunks from there on, at most `limit`.
    ///
    /// # Errors
    /// Those of the host.
    pub fn state(&self, chunk: u64, limit: u64) -> Result<(State, u64), Error> {
        let of = |state| match state {
            1 => State::Stored,
            2 => State::Zero,
            _ => State::Unknown,
        };
        match &self.place {
            Place::Host { .. } if chunk >= CHUNKS => Ok((State::Unknown, limit)),
            Place::Host { index, .. } => {
                let run = MAP.run(map_block(*index, chunk), limit.min(CHUNKS - chunk));
                Ok((of(run.state), run.count))
            }
            Place::Memory { kept, .. } => {
                let kept = kept.borrow();
                let state = |chunk| match kept.chunks.get(&chunk) {
                    None => State::Unknown,
                    Some(None) => State::Zero,
                    Some(Some(_)) => State::Stored,
                };
                let first = state(chunk);
                let count = (1..limit.min(64)).take_while(|n| state(chunk + n) == first).count() as u64 + 1;
                Ok((first, count))
            }
        }
    }

    /// Keeps the bytes of a chunk, if there is room.
    ///
    /// # Errors
    /// Those of the host, but not that there is no room.
    pub fn put(&self, chunk: u64, bytes: &[u8]) -> Result<(), Error> {
        let zero = is_zero(bytes);
        if !zero && self.full.get() {
            return Ok(());
        }
        match &self.place {
            Place::Host { .. } if chunk >= CHUNKS => {}
            Place::Host { index, .. } => {
                let is_full = || -> Result<bool, Error> {
                    let points = MAX_POINTS as u64 * (16 + u64::from(self.window_size));
                    let at = scratch_at(*index, CHUNKS_AT + chunk * CHUNK);
                    Ok(!has_room(bytes, points) || !write_scratch(at, bytes)?)
                };
                if !zero && is_full()? {
                    self.full.set(true);
                    return Ok(());
                }
                let state = if zero { State::Zero } else { State::Stored };
                // Only a chunk of which nothing is known: a reader may have seen the other states.
                MAP.set(map_block(*index, chunk), 1, 1 << State::Unknown as u8, state as u8);
            }
            Place::Memory { room, kept } => {
                let mut kept = kept.borrow_mut();
                if zero {
                    kept.chunks.insert(chunk, None);
                } else if kept.used + bytes.len() <= *room {
                    kept.used += bytes.len();
                    kept.chunks.insert(chunk, Some(bytes.into()));
                } else {
                    self.full.set(true);
                }
            }
        }
        Ok(())
    }

    /// Reads stored bytes into the guest.
    ///
    /// # Errors
    /// Those of the host.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        match &self.place {
            Place::Host { index, .. } => {
                let mut at = scratch_at(*index, CHUNKS_AT + offset);
                for part in into.chunks_mut(CHUNK as usize) {
                    let buffer = Buffer::new(part.len() as u32)?;
                    scratch::pread(Scope::Exportname, at, part.len() as u32, buffer.id(), 0)?;
                    part.copy_from_slice(&buffer.read(..));
                    at += part.len() as u64;
                }
            }
            Place::Memory { kept, .. } => {
                let kept = kept.borrow();
                let mut done = 0;
                while done < into.len() {
                    let at = offset + done as u64;
                    let chunk = kept.chunks.get(&(at / CHUNK)).and_then(Option::as_ref);
                    let rest = chunk.map_or(&[][..], |chunk| &chunk[(at % CHUNK) as usize..]);
                    let count = rest.len().min(into.len() - done);
                    if count == 0 {
                        return Err(Error::image(format!("the chunk at {at} is not stored")));
                    }
                    into[done..done + count].copy_from_slice(&rest[..count]);
                    done += count;
                }
            }
        }
        Ok(())
    }

    /// Reads stored bytes into a buffer of the host.
    ///
    /// # Errors
    /// Those of the host.
    pub fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, to: u32) -> Result<(), Error> {
        match &self.place {
            Place::Host { index, .. } => {
                let at = scratch_at(*index, CHUNKS_AT + offset);
                Ok(scratch::pread(Scope::Exportname, at, length, buffer.id(), to)?)
            }
            Place::Memory { .. } => {
                let mut bytes = vec![0; length as usize];
                self.read(offset, &mut bytes)?;
                buffer.write(to, &bytes);
                Ok(())
            }
        }
    }

    /// The bytes that a decoder needs to begin at point `n`.
    ///
    /// # Errors
    /// Those of the host.
    pub fn window(&self, n: usize) -> Result<Vec<u8>, Error> {
        match &self.place {
            Place::Host { index, .. } if self.window_size > 0 && !self.complete.get() => {
                let buffer = Buffer::new(self.window_size)?;
                scratch::pread(Scope::Exportname, self.window_at(*index, n), self.window_size, buffer.id(), 0)?;
                Ok(buffer.read(..))
            }
            Place::Host { .. } => Ok(Vec::new()),
            Place::Memory { kept, .. } => Ok(kept.borrow().windows.get(&n).cloned().unwrap_or_default()),
        }
    }

    /// Keeps the bytes that a decoder needs to begin at point `n`. False if there is no room.
    ///
    /// # Errors
    /// Those of the host.
    pub fn put_window(&self, n: usize, window: &[u8]) -> Result<bool, Error> {
        match &self.place {
            Place::Host { .. } if window.is_empty() => Ok(true),
            Place::Host { index, .. } => {
                Ok(has_room(window, MAX_POINTS as u64 * 16) && write_scratch(self.window_at(*index, n), window)?)
            }
            Place::Memory { kept, .. } => {
                kept.borrow_mut().windows.insert(n, window.to_vec());
                Ok(true)
            }
        }
    }

    /// Where the window of point `n` is in the scratch file.
    fn window_at(&self, index: u32, n: usize) -> u64 {
        scratch_at(index, WINDOWS_AT + n as u64 * u64::from(self.window_size))
    }

    /// Nanoseconds, if there is a host that has a clock.
    pub fn time(&self) -> Option<u64> {
        matches!(self.place, Place::Host { .. }).then(clock::monotonic)
    }
}

fn map_block(index: u32, chunk: u64) -> u64 {
    scratch_at(index, CHUNKS_AT) / CHUNK + chunk
}

fn scratch_at(index: u32, at: u64) -> u64 {
    u64::from(index) * REGION + at
}

/// Whether the quota has room for these bytes, and then for `others` more, which take at most half
/// of it. Chunks must not take the room of the points that lead to the chunks without room.
fn has_room(bytes: &[u8], others: u64) -> bool {
    let quota = scratch::quota(Scope::Exportname);
    let free = quota.saturating_sub(scratch::allocated(Scope::Exportname));
    (bytes.len() as u64).saturating_add(others.min(quota / 2)) <= free
}

/// False if the quota or the disk is used up.
fn write_scratch(at: u64, bytes: &[u8]) -> Result<bool, Error> {
    let buffer = Buffer::new(bytes.len() as u32)?;
    buffer.write(0, bytes);
    match scratch::pwrite(Scope::Exportname, at, bytes.len() as u32, buffer.id(), 0) {
        Ok(()) => Ok(true),
        Err(Errno::Enospc) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
