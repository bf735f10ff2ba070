//! Prefetches the whole disk, from its beginning to its end, while clients are connected.
//!
//! The host's prefetch queue does the work. It is filled when a client connects and again with each read; the scan's position is a slot of the
//! export, so that all connections carry on one scan.
#![deny(unsafe_code)]

mod course;

use course::Course;
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

/// How far the scan is.
const POSITION: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// How many connections there are to the export.
const CONNECTIONS: u32 = 1;

/// Prefetches that are asked for within one request at most: what it costs must stay small, and the queue is full sooner or later.
const MOST: u32 = 32;

/// The filter.
pub struct Scan {
    course: Course,
    clock: bool,
}

impl Scan {
    /// Fills the host's queue.
    fn fill(&self, size: u64) {
        for _ in 0..MOST {
            let old = POSITION.get();
            let Some((from, length)) = self.course.next(old.a, size) else { return };
            // Another connection is at it.
            if !POSITION.replace(old, [from + length, 0, 0, 0]) {
                return;
            }
            if !next::prefetch(from, length) {
                let now = POSITION.get();
                if now.a == from + length {
                    POSITION.replace(now, [from, 0, 0, 0]);
                }
                return;
            }
        }
    }

    fn after_read(&self, end: u64) -> Result<(), Errno> {
        if request::handle() == 0 {
            return Ok(());
        }
        let old = POSITION.get();
        let position = self.course.after_read(old.a, end);
        if position != old.a {
            POSITION.replace(old, [position, 0, 0, 0]);
        }
        self.fill(next::get_size()?);
        Ok(())
    }
}

impl Filter for Scan {
    fn describe() -> Description {
        Description::new("scan", env!("CARGO_PKG_VERSION"), "prefetches the whole disk while clients are connected")
            .help("Works if the plugin, or a filter after this one, can cache: use --filter=scan --filter=cache.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .state_version(1)
            .param(Param::bool("scan-ahead").default("true").help("Skips to where clients read."))
            .param(Param::bool("scan-clock").default("true").help("Goes on where it was when clients come back."))
            .param(Param::bool("scan-forever").default("false").help("Begins again when it is at the end."))
            .param(Param::size("scan-size").default("2M").help("Bytes of a prefetch: a power of two from 512 to 32M."))
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let step = params.size("scan-size")?.unwrap_or(2 << 20);
        if !step.is_power_of_two() || !(512..=32 << 20).contains(&step) {
            return Err(format!("scan-size={step}: not a power of two from 512 to 32M"));
        }
        let course = Course {
            step,
            ahead: params.bool("scan-ahead")?.unwrap_or(true),
            forever: params.bool("scan-forever")?.unwrap_or(false),
        };
        Ok(Scan { course, clock: params.bool("scan-clock")?.unwrap_or(true) })
    }
}

impl Connection for Scan {
    /// The handle says whether there is something to do.
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let works = next::can()?.cache == Support::Native;
        if !works && !replayed {
            log::warn("nothing below can cache, so that nothing is prefetched: add --filter=cache after --filter=scan");
        }
        Ok(works.into())
    }

    fn prepare(&self) -> Result<(), Errno> {
        let first = slots::add_until_close(Scope::Exportname, CONNECTIONS, 1) == 1;
        if first && !self.clock {
            while !POSITION.replace(POSITION.get(), [0; 4]) {}
        }
        if request::handle() != 0 {
            self.fill(next::get_size()?);
        }
        Ok(())
    }
}

impl Reads for Scan {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        // Advisory: what goes wrong with it must not fail the read.
        let _ = self.after_read(offset + u64::from(length));
        next::pread(offset, length, PAYLOAD, 0)
    }
}

rbdkit_filter_sdk::export!(Scan: connection, reads);
