//! What a filter may take, and what all filters of a server may take together.

use std::collections::BTreeSet;
use std::time::Duration;

use rbdkit_plugin_api::MAX_REQUEST;

use crate::state;

/// The most detached operations of one filter. This is half of the runtime's threads for blocking
/// operations (512), so that a plugin that hangs leaves the other half to requests with a client.
pub(super) const MAX_DETACHED_OPERATIONS: u64 = 256;

/// `describe` returns constants. Interpreters start in some milliseconds; 5 s are enough on a busy
/// machine.
const DESCRIBE: Duration = Duration::from_secs(5);

/// The limits of one filter at one position in the chain.
#[derive(Clone, Debug)]
pub struct FilterLimits {
    /// Time that a guest may compute in one data request. Waiting for next, locks and sleep does
    /// not count.
    pub cpu: Duration,
    /// Elapsed time that one data request may take, without the same waiting. It also ends a guest
    /// that the system does not schedule for a long time.
    pub wall: Duration,
    /// As `cpu` and `wall`, for configure, get-ready, open, prepare, finalize and close: they may
    /// read a whole index. This also limits all sleeps of finalize or close together, because no
    /// client waits for them.
    pub setup: Duration,
    /// Times that one data request may wait for others. A normal request waits a few times for each
    /// block. This ends a request that would call the layers below for ever.
    pub waits: u32,
    /// Bytes of an instance's linear memory and tables together. Beyond it an allocation fails in
    /// the guest.
    pub memory: u64,
    /// Instances of the filter. A request waits for a free one; one connection has at most half of
    /// them.
    pub instances: u32,
    /// Bytes of one call's own buffers.
    pub buffers: u64,
    /// Bytes of all calls' own buffers together.
    pub buffers_total: u64,
    /// Bytes that one import or result may pass out of the guest at once (strings, lists). A
    /// request may always pass out as many bytes as its payload has, so that `buffer.write` can
    /// write the payload in one piece.
    pub transfer: u64,
    /// Bytes of memory for block maps.
    pub maps: u64,
    /// Bytes on the disk for one scratch file. None: the size of the export below and some for a
    /// header.
    pub scratch: Option<u64>,
    /// Bytes on the disk for all scratch files of the filter together.
    pub scratch_total: u64,
    /// Disks for which the filter may keep state, besides the default export's.
    pub exports: u32,
    /// Prefetches of one connection under way at once.
    pub prefetches: u32,
    /// Bytes that one connection's prefetch queue holds.
    pub prefetch_queue: u64,
    /// Lines a second that the filter may log; ten times as many at once.
    pub log_lines: u32,
    /// Bytes of a line in the log.
    pub log_line: u32,
    /// The limits that the operator has set, by their names in `--filter-limit`. A filter's own
    /// wishes do not change them.
    pub set_by_operator: BTreeSet<&'static str>,
}

impl Default for FilterLimits {
    fn default() -> FilterLimits {
        FilterLimits {
            cpu: Duration::from_secs(1),
            wall: Duration::from_secs(10),
            setup: Duration::from_secs(60),
            // A request of 64 MiB in blocks of 512 bytes, each read and written, waits 262144
            // times.
            waits: 1 << 20,
            memory: 64 << 20,
            // A single client gets half of them: 64. More requests in flight than that gain
            // nothing.
            instances: 128,
            buffers: u64::from(MAX_REQUEST),
            // Four of the largest requests. With more, one filter could hold more than the server
            // admits in payloads.
            buffers_total: 4 * u64::from(MAX_REQUEST),
            // The longest list that the host gives to a guest, one of extents, has 1.5 MiB.
            transfer: 4 << 20,
            maps: 128 << 20,
            scratch: None,
            scratch_total: u64::MAX,
            exports: 1024,
            // Twelve pieces of 1 MiB are enough for 320 MB/s from a source that answers after 30
            // ms.
            prefetches: 12,
            prefetch_queue: 32 << 20,
            log_lines: 100,
            log_line: 1024,
            set_by_operator: BTreeSet::new(),
        }
    }
}

/// What one call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Time that the guest may compute.
    pub(crate) compute: Duration,
    /// Elapsed time that the call may take, without waiting for others.
    pub(crate) take: Duration,
    /// Times that it may wait for others.
    pub(crate) waits: u64,
}

impl FilterLimits {
    /// What a data request may take.
    pub(crate) fn of_a_request(&self) -> Allowance {
        Allowance { compute: self.cpu, take: self.wall, waits: u64::from(self.waits) }
    }

    /// What opening, preparing and the like may take: they may read a whole index.
    pub(crate) fn of_a_setup(&self) -> Allowance {
        Allowance { compute: self.setup, take: self.setup, waits: u64::from(self.waits) << 6 }
    }

    /// For `describe`, which runs before the operator's limits are known.
    pub(crate) fn for_describing() -> FilterLimits {
        FilterLimits { setup: DESCRIBE, ..FilterLimits::default() }
    }

    pub(super) fn for_state(&self) -> state::StateLimits {
        state::StateLimits {
            exports: self.exports as usize,
            map_bytes: self.maps,
            scratch_bytes: self.scratch,
            scratch_total: self.scratch_total,
            ..state::StateLimits::default()
        }
    }
}

/// The limits of all filters of a server together.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Bytes of linear memory and tables of all instances of all filters. A request that needs one
    /// more instance fails if there is no memory for it.
    pub memory: u64,
    /// For compiling one component.
    pub compile: CompileLimits,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits { memory: half_of_the_machine(), compile: CompileLimits::default() }
    }
}

/// What compiling one component that is not in the cache may take.
#[derive(Clone, Copy, Debug)]
pub struct CompileLimits {
    /// Processor time of all threads together. Twice as much elapsed time is allowed.
    pub time: Duration,
    /// Address space in bytes.
    pub memory: u64,
}

impl Default for CompileLimits {
    fn default() -> CompileLimits {
        CompileLimits {
            // The largest interpreters take 20 seconds on a machine with two processors.
            time: Duration::from_secs(60),
            // An interpreter of 18 MiB takes some 1.5 GiB. The rest is for address space that is
            // only reserved.
            memory: 4 << 30,
        }
    }
}

/// Half of the machine's memory, but at most 4 GiB.
fn half_of_the_machine() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the field's type is the C library's word")]
    let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    (bytes / 2).clamp(64 << 20, 4 << 30)
}
