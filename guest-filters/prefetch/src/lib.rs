//! Records which ranges the first client reads, and prefetches them in that order for the next.
//!
//! The list is in a file of the operator's. Everything else is in slots and a map of the export, so
//! any instance can serve any request. A list that cannot be read or written costs its use and
//! nothing more: the filter never fails a request for it.

mod list;

use std::time::Duration;

use list::LINE;
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

/// What is done with the list: one of the following.
const MODE: Slot = slot(0);
/// While recording: the number of lines (a), the last range (b, its end c), and when recording ends
/// (d). While prefetching: the number of the next line (a).
const POSITION: Slot = slot(1);
/// How many bytes were recorded.
const RECORDED: Slot = slot(2);
/// The slot that counts the connections to the export.
const CONNECTIONS: u32 = 3;
/// Whether an export has the file (of the filter), and whether it is this one (of the export).
const fn owner(scope: Scope) -> Slot {
    Slot { scope, index: 4 }
}

/// Nothing: the list is of another disk, or of another export, or the file fails.
const UNUSED: u64 = 0;
const RECORDING: u64 = 1;
const PREFETCHING: u64 = 2;

/// The map of the blocks that were recorded: state 1.
const MAP: maps::Map = maps::Map { scope: Scope::Exportname, id: 0 };
/// A range is at most so long: the host cuts prefetches to it.
const MAX_RANGE: u64 = 32 << 20;

const fn slot(index: u32) -> Slot {
    Slot { scope: Scope::Exportname, index }
}

params! {
    /// The parameters.
    pub struct Settings {
        /// The file with the list. It is made if it is missing; while it has no list, the ranges
        /// that clients read are recorded.
        trace_file: StorageFile,
        /// Bytes of a block: a power of two from 4k to 32M. Whole blocks are recorded.
        #[param(check = block_size)]
        trace_block: Size = Size(64 << 10),
        /// Record at most so many bytes.
        trace_limit: Size = Size(1 << 30),
        /// Record for so long after the first client has connected.
        trace_time: Duration = Duration::from_secs(120),
    }
}

fn block_size(size: &Size) -> Result<(), String> {
    match size.0.is_power_of_two() && (4096..=MAX_RANGE).contains(&size.0) {
        true => Ok(()),
        false => Err("not a power of two from 4k to 32M".into()),
    }
}

/// The filter.
pub struct Prefetch {
    settings: Settings,
}

fn put(slot: Slot, words: [u64; 4]) {
    while !slot.replace(slot.get(), words) {}
}

fn mode() -> u64 {
    MODE.get().a
}

fn set_mode(mode: u64) {
    put(MODE, [mode, 0, 0, 0]);
}

impl Prefetch {
    /// Decides what to do with the file: when the first client has connected. A lock is held.
    fn start(&self, size: u64) -> Result<(), Errno> {
        let (of_filter, of_export) = (owner(Scope::Server), owner(Scope::Exportname));
        if of_export.get().a == 0 && slots::add(of_filter.scope, of_filter.index, 1) > 1 {
            warn!("trace-file= is used for another export: nothing is prefetched for this one");
            set_mode(UNUSED);
            return Ok(());
        }
        put(of_export, [1, 0, 0, 0]);
        let file = &self.settings.trace_file;
        let first = file.read(0, LINE as u32)?;
        let found = list::size_of_disk(&first);
        if first.is_empty() || found == Some(size) && file.size()? <= LINE {
            MAP.resize(self.settings.trace_block.0 as u32, size)?;
            file.write(0, list::first_line(size).as_bytes())?;
            let end = clock::monotonic().saturating_add(self.settings.trace_time.as_nanos() as u64);
            put(POSITION, [0, 0, 0, end]);
            put(RECORDED, [0; 4]);
            set_mode(RECORDING);
            return Ok(());
        }
        match found {
            Some(of) if of == size => {
                put(POSITION, [0; 4]);
                set_mode(PREFETCHING);
            }
            found => {
                match found {
                    Some(of) => warn!(
                        "trace-file= has the list of a disk of {of} bytes, and this one has {size}: nothing is \
                         prefetched; an empty file is filled anew"
                    ),
                    None => warn!("trace-file= has no list: nothing is prefetched; an empty file is filled"),
                }
                set_mode(UNUSED);
            }
        }
        Ok(())
    }

    /// Notes what a read of a range needs.
    fn record(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let block = self.settings.trace_block.0;
        let (first, end) = (offset / block, (offset + length).div_ceil(block));
        let seen = MAP.run(first, end - first);
        if seen.state == 1 && seen.count >= end - first {
            return Ok(());
        }
        locks::lock(Scope::Exportname, 0, 1, locks::Mode::Exclusive)?;
        let noted = self.record_locked(first, end);
        locks::unlock();
        noted
    }

    fn record_locked(&self, mut first: u64, end: u64) -> Result<(), Errno> {
        let (block, size) = (self.settings.trace_block.0, next::get_size()?);
        while first < end && mode() == RECORDING {
            let run = MAP.run(first, end - first);
            let count = run.count.clamp(1, MAX_RANGE / block);
            if run.state == 0 {
                MAP.set(first, count, 1, 1);
                let from = first * block;
                self.append(from, (from + count * block).min(size) - from)?;
            }
            first += count;
        }
        Ok(())
    }

    /// Adds a range to the list. One that goes on where the last one ends makes that one longer.
    fn append(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let at = POSITION.get();
        if clock::monotonic() > at.d || RECORDED.get().a.saturating_add(length) > self.settings.trace_limit.0 {
            return self.finish();
        }
        let goes_on = at.a > 0 && at.c == offset && at.c - at.b + length <= MAX_RANGE;
        let (lines, from) = if goes_on { (at.a, at.b) } else { (at.a + 1, offset) };
        let end = offset + length;
        self.settings.trace_file.write(lines * LINE, list::line(from, end - from).as_bytes())?;
        put(POSITION, [lines, from, end, at.d]);
        slots::add(RECORDED.scope, RECORDED.index, length as i64);
        Ok(())
    }

    /// Ends the recording. The clients that connect from now on prefetch.
    fn finish(&self) -> Result<(), Errno> {
        set_mode(PREFETCHING);
        let recorded = POSITION.get().a;
        put(POSITION, [u64::MAX / LINE, 0, 0, 0]);
        info!("recorded in trace-file=: ranges {recorded}, bytes {}", RECORDED.get().a);
        self.settings.trace_file.flush()
    }

    /// The file fails. That is said once.
    fn give_up(errno: Errno) {
        if mode() != UNUSED {
            set_mode(UNUSED);
            warn!("trace-file= is not used any more: {}", errno.name());
        }
    }
}

impl Filter for Prefetch {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("prefetch", env!("CARGO_PKG_VERSION"), "records what a client reads and prefetches it later")
            .help("The plugin or a filter after this one must be able to cache: use --filter=prefetch --filter=cache.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .state_version(1)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Prefetch { settings })
    }
}

impl Connection for Prefetch {
    /// The handle is 1 if something below can cache, else 0.
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let can_cache = next::can()?.cache == Support::Native;
        if !can_cache && !replayed {
            warn!("nothing below can cache, so nothing is prefetched: add --filter=cache after --filter=prefetch");
        }
        Ok(can_cache.into())
    }

    fn prepare(&self) -> Result<(), Errno> {
        let size = next::get_size()?;
        locks::lock(Scope::Exportname, 0, 1, locks::Mode::Exclusive)?;
        let is_first = slots::add_until_close(Scope::Exportname, CONNECTIONS, 1) == 1;
        let started = if is_first { self.start(size) } else { Ok(()) };
        locks::unlock();
        started.unwrap_or_else(Self::give_up);
        Ok(())
    }

    /// The recording ends with the last client.
    fn finalize(&self) -> Result<(), Errno> {
        if mode() == RECORDING && slots::add(Scope::Exportname, CONNECTIONS, 0) == 1 {
            locks::lock(Scope::Exportname, 0, 1, locks::Mode::Exclusive)?;
            let finished = if mode() == RECORDING { self.finish() } else { Ok(()) };
            locks::unlock();
            finished.unwrap_or_else(Self::give_up);
        }
        Ok(())
    }
}

impl Reads for Prefetch {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        if length > 0 && mode() == RECORDING {
            match self.record(offset, length.into()) {
                // The client leaves, or the server stops.
                Ok(()) | Err(Errno::Eshutdown) => {}
                Err(errno) => Self::give_up(errno),
            }
        }
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Background for Prefetch {
    fn next_range(&self) -> Option<(u64, u64)> {
        if request::handle() == 0 || mode() != PREFETCHING {
            return None;
        }
        let line = slots::add(POSITION.scope, POSITION.index, 1);
        if line >= u64::MAX / LINE {
            return None;
        }
        let found = match self.settings.trace_file.read(line * LINE, LINE as u32) {
            Ok(line) => line,
            Err(errno) => {
                Self::give_up(errno);
                return None;
            }
        };
        if found.is_empty() {
            return None;
        }
        let size = next::get_size().ok()?;
        let range = list::range(&found).filter(|(offset, length)| offset + length <= size);
        if range.is_none() {
            warn!("line {} of trace-file= is no range of this disk: the list ends there", line + 1);
            put(POSITION, [u64::MAX / LINE, 0, 0, 0]);
        }
        range
    }
}

rbdkit_filter_sdk::export!(Prefetch: connection, reads, background);

#[cfg(test)]
mod tests;
