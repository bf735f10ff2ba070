//! Prefetches the whole disk, from its beginning to its end, while clients are connected.
//!
//! The host's prefetch workers do the work, and ask for the next range whenever they have nothing else to do. The scan's position is a slot of the
//! export, so that all connections carry on one scan.
#![deny(unsafe_code)]

mod course;

use course::Course;
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

/// How far the scan is, and where it began or was moved to last.
const POSITION: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// How many connections there are to the export.
const CONNECTIONS: u32 = 1;

/// The filter.
pub struct Scan {
    course: Course,
    clock: bool,
}

impl Scan {
    fn after_read(&self, end: u64) {
        let old = POSITION.get();
        let position = self.course.after_read(old.a, end);
        if position != old.a {
            // If somebody else moved it meanwhile, then further on than it was.
            POSITION.replace(old, [position, position, 0, 0]);
        }
    }

    /// The first client came, or came back.
    fn begin(&self) {
        loop {
            let old = POSITION.get();
            let position = if self.clock { self.course.resume(old.a, old.b) } else { 0 };
            if POSITION.replace(old, [position, old.b.min(position), 0, 0]) {
                return;
            }
        }
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
        if slots::add_until_close(Scope::Exportname, CONNECTIONS, 1) == 1 {
            self.begin();
        }
        Ok(())
    }
}

impl Reads for Scan {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.after_read(offset.saturating_add(length.into()));
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Background for Scan {
    fn next_range(&self) -> Option<(u64, u64)> {
        if request::handle() == 0 {
            return None;
        }
        let size = next::get_size().ok()?;
        loop {
            let old = POSITION.get();
            let (from, length) = self.course.next(old.a, size)?;
            // Otherwise another connection took it, or a read moved it.
            if POSITION.replace(old, [from + length, old.b.min(from), 0, 0]) {
                return Some((from, length));
            }
        }
    }
}

rbdkit_filter_sdk::export!(Scan: connection, reads, background);
