//! What a filter may take, by default and by option (`--filter-limit RESOURCE=VALUE`).
//!
//! All limits hold for one filter in one place of the chain. [`Limits::table`] is what `--help` and `rbdkit-filter inspect` print, so
//! the text beside a limit is written once, here.

use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, MAX_REQUEST, units};

use crate::guest::clock::Allowance;
use crate::load::compile::Bounds;
use crate::state;

/// `describe` answers constants. Interpreters start in some milliseconds; this is for a busy machine.
const DESCRIBE: Duration = Duration::from_secs(5);

/// The bounds on one filter.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time that a guest may compute in one data request; waiting for next, locks and sleep does not count.
    pub cpu: Duration,
    /// Time that one data request may take, less the same waiting: a guest that is not scheduled for long is ended as well.
    pub wall: Duration,
    /// As `cpu` and `wall`, for configure, get-ready, open, prepare, finalize and close: they may read a whole index. So long in all
    /// may finalize and close sleep, too, which no client is waiting for.
    pub setup: Duration,
    /// Times that one data request may wait for others. An honest one waits some times for each block; one that asks the layers below
    /// for ever ends here.
    pub waits: u32,
    /// Bytes of an instance's linear memory and tables together. Beyond it an allocation fails in the guest.
    pub memory: u64,
    /// The same of all instances of all filters of the server together. An instance that cannot be made for want of it fails its request.
    pub memory_all: u64,
    /// Instances of the filter. A request waits for a free one; those of one connection have half of them at most.
    pub instances: u32,
    /// Bytes of one call's own buffers.
    pub buffers: u64,
    /// Bytes of all calls' own buffers together.
    pub buffers_total: u64,
    /// Bytes that one import or result may bring out of the guest at once (strings, lists). What a request itself has always may, so that
    /// its payload can be written (`buffer.write`) in one piece.
    pub transfer: u64,
    /// Bytes of memory for block maps.
    pub maps: u64,
    /// Bytes on the disk for one scratch file. None: what the export below has, and something for a header.
    pub scratch: Option<u64>,
    /// Bytes on the disk for all scratch files of the filter together.
    pub scratch_total: u64,
    /// Exports that may have state.
    pub exports: u32,
    /// Prefetches of one connection under way at once.
    pub prefetches: u32,
    /// Bytes that one connection's prefetch queue holds.
    pub prefetch_queue: u64,
    /// Processor time for compiling a component that is not in the cache. For the whole server.
    pub compile: Duration,
    /// Bytes of address space for that. For the whole server.
    pub compile_memory: u64,
    /// Lines a second that the filter may log; ten times as many at once.
    pub log_lines: u32,
    /// Bytes of a line in the log.
    pub log_line: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cpu: Duration::from_secs(1),
            wall: Duration::from_secs(10),
            setup: Duration::from_secs(60),
            // A request of 64 MiB in blocks of 512 bytes, each read and written, waits 262144 times.
            waits: 1 << 20,
            memory: 64 << 20,
            memory_all: half_of_the_machine(),
            // Half of them, the share of a client that is alone, are as many as there are requests in flight where more are of no use.
            instances: 128,
            buffers: u64::from(MAX_REQUEST),
            // Four of the largest requests: more would let one filter outgrow what the server admits in payloads.
            buffers_total: 4 * u64::from(MAX_REQUEST),
            // The longest list that the host itself gives out, of extents, has 1.5 MiB.
            transfer: 4 << 20,
            maps: 128 << 20,
            scratch: None,
            scratch_total: u64::MAX,
            exports: 1024,
            // Four pieces hide a latency of 20 ms at 200 MB/s.
            prefetches: 12,
            prefetch_queue: 32 << 20,
            // The largest interpreters take 20 seconds where two processors compile at once.
            compile: Duration::from_secs(60),
            // Some 1.5 GiB for an interpreter of 18 MiB, and address space that is only reserved.
            compile_memory: 4 << 30,
            log_lines: 100,
            log_line: 1024,
        }
    }
}

/// Half of the machine's memory, but at most 4 GiB.
fn half_of_the_machine() -> u64 {
    let info = rustix::system::sysinfo();
    // The field's type is the C library's word.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    (bytes / 2).clamp(64 << 20, 4 << 30)
}

enum Slot<'a> {
    Time(&'a mut Duration),
    Bytes(&'a mut u64),
    /// None is written as `auto`.
    Auto(&'a mut Option<u64>),
    Count(&'a mut u32),
}

/// Each resource's word and what it bounds, in the order of [`Limits::slot`].
const RESOURCES: [(&str, &str); 20] = [
    ("cpu", "time that a guest may compute in one request"),
    ("wall", "time that one request may take in a filter, waiting for others not counted"),
    ("setup", "the same for configure, open, prepare, finalize and close"),
    ("waits", "times that one request may wait for the layers below, locks and sleep"),
    ("memory", "bytes of memory and tables of an instance"),
    ("memory-all", "bytes of memory of all instances of all filters together"),
    ("instances", "instances of the filter"),
    ("buffers", "bytes of one request's further buffers"),
    ("buffers-total", "bytes of all requests' further buffers"),
    ("transfer", "bytes that one call may bring out of the guest"),
    ("maps", "bytes of memory for block maps"),
    ("scratch", "bytes on the disk for one scratch file (auto: the export's size)"),
    ("scratch-total", "bytes on the disk for all scratch files of the filter"),
    ("exports", "exports that may have state"),
    ("prefetches", "prefetches of one connection under way at once"),
    ("prefetch-queue", "bytes in one connection's prefetch queue"),
    ("compile", "processor time for compiling one component"),
    ("compile-memory", "bytes of address space for compiling one component"),
    ("log-lines", "lines a second in the log"),
    ("log-line", "bytes of a line in the log"),
];

/// Those that are one for all filters.
const OF_THE_SERVER: [&str; 3] = ["memory-all", "compile", "compile-memory"];

impl Limits {
    /// The bounds on compiling.
    pub fn of_compiling(&self) -> Bounds {
        Bounds { time: self.compile, memory: self.compile_memory }
    }

    fn slot(&mut self, resource: &str) -> Option<Slot<'_>> {
        Some(match resource {
            "cpu" => Slot::Time(&mut self.cpu),
            "wall" => Slot::Time(&mut self.wall),
            "setup" => Slot::Time(&mut self.setup),
            "waits" => Slot::Count(&mut self.waits),
            "memory" => Slot::Bytes(&mut self.memory),
            "memory-all" => Slot::Bytes(&mut self.memory_all),
            "instances" => Slot::Count(&mut self.instances),
            "buffers" => Slot::Bytes(&mut self.buffers),
            "buffers-total" => Slot::Bytes(&mut self.buffers_total),
            "transfer" => Slot::Bytes(&mut self.transfer),
            "maps" => Slot::Bytes(&mut self.maps),
            "scratch" => Slot::Auto(&mut self.scratch),
            "scratch-total" => Slot::Bytes(&mut self.scratch_total),
            "exports" => Slot::Count(&mut self.exports),
            "prefetches" => Slot::Count(&mut self.prefetches),
            "prefetch-queue" => Slot::Bytes(&mut self.prefetch_queue),
            "compile" => Slot::Time(&mut self.compile),
            "compile-memory" => Slot::Bytes(&mut self.compile_memory),
            "log-lines" => Slot::Count(&mut self.log_lines),
            "log-line" => Slot::Count(&mut self.log_line),
            _ => return None,
        })
    }

    /// Sets one limit from the command line: bytes as sizes (`64M`), times as durations (`500ms`), counts in decimal. `target` is the filter that it is
    /// said of, if it is not said of all.
    ///
    /// # Errors
    /// One line that names the filter and the resource and says what would be right.
    pub fn set(&mut self, target: Option<&str>, resource: &str, value: &str) -> Result<(), ConfigError> {
        let of = target.map(|name| format!("{name}:")).unwrap_or_default();
        let wrong = |what: String| ConfigError::new(format!("--filter-limit {of}{resource}={value}: {what}"));
        if OF_THE_SERVER.contains(&resource) && target.is_some() {
            return Err(wrong("is one for all filters: leave their name out".into()));
        }
        match self.slot(resource) {
            None => {
                let known: Vec<&str> = RESOURCES.iter().map(|(name, _)| *name).collect();
                Err(wrong(format!("there is no such resource: use one of {}", known.join(", "))))
            }
            Some(Slot::Time(time)) => {
                let nanoseconds = units::parse_duration(value).map_err(wrong)?;
                if nanoseconds == 0 {
                    return Err(wrong("has to be more than 0".into()));
                }
                *time = Duration::from_nanos(nanoseconds);
                Ok(())
            }
            Some(Slot::Bytes(bytes)) => {
                *bytes = units::parse_size(value).map_err(wrong)?;
                Ok(())
            }
            Some(Slot::Auto(bytes)) => {
                *bytes = match value {
                    "auto" => None,
                    value => Some(units::parse_size(value).map_err(wrong)?),
                };
                Ok(())
            }
            Some(Slot::Count(count)) => {
                let parsed = value.parse::<u32>().ok().filter(|n| *n > 0 && !value.starts_with('+'));
                *count = parsed.ok_or_else(|| wrong("is not a whole number from 1 on".into()))?;
                Ok(())
            }
        }
    }

    /// Each resource, its value here and what it bounds.
    pub fn table(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut limits = self.clone();
        RESOURCES
            .iter()
            .filter_map(|(name, what)| {
                let value = match limits.slot(name)? {
                    Slot::Time(time) => format!("{time:?}"),
                    Slot::Auto(None) => "auto".to_string(),
                    Slot::Bytes(bytes) | Slot::Auto(Some(bytes)) if *bytes == u64::MAX => "unlimited".to_string(),
                    Slot::Bytes(bytes) | Slot::Auto(Some(bytes)) => in_units(*bytes),
                    Slot::Count(count) => count.to_string(),
                };
                Some((*name, value, *what))
            })
            .collect()
    }

    /// What a data request may take.
    pub(crate) fn of_a_request(&self) -> Allowance {
        Allowance { compute: self.cpu, take: self.wall, waits: u64::from(self.waits) }
    }

    /// What opening, preparing and the like may take: a whole index may be read there.
    pub(crate) fn of_a_setup(&self) -> Allowance {
        Allowance { compute: self.setup, take: self.setup, waits: u64::from(self.waits) << 6 }
    }

    /// For asking a component what it is, before the operator has said anything about it.
    pub(crate) fn for_describing() -> Limits {
        Limits { setup: DESCRIBE, ..Limits::default() }
    }

    pub(crate) fn for_state(&self) -> state::Limits {
        state::Limits {
            exports: self.exports as usize,
            map_bytes: self.maps,
            scratch_bytes: self.scratch,
            scratch_total: self.scratch_total,
            ..state::Limits::default()
        }
    }
}

fn in_units(bytes: u64) -> String {
    for (suffix, scale) in [("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{suffix}", bytes / scale);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_can_be_set_and_is_shown() {
        let mut limits = Limits::default();
        for (name, _) in RESOURCES {
            limits.set(None, name, "7").unwrap();
        }
        assert_eq!(limits.table().len(), RESOURCES.len());
        limits.set(None, "memory", "16M").unwrap();
        limits.set(None, "cpu", "500ms").unwrap();
        assert_eq!(limits.table()[0].1, "500ms");
        assert_eq!(limits.table()[4].1, "16M");
        limits.set(Some("cow"), "scratch", "auto").unwrap();
        assert_eq!(limits.scratch, None);
    }

    #[test]
    fn a_wrong_limit_is_named_with_what_would_be_right() {
        let error = Limits::default().set(None, "memory", "lots").unwrap_err().to_string();
        assert!(error.starts_with("--filter-limit memory=lots: is not a size"), "{error}");
        let error = Limits::default().set(None, "speed", "1").unwrap_err().to_string();
        assert!(error.contains("no such resource: use one of cpu, wall"), "{error}");
        let error = Limits::default().set(Some("cow#2"), "log-line", "-1").unwrap_err().to_string();
        assert!(error.starts_with("--filter-limit cow#2:log-line=-1: is not"), "{error}");
        assert!(Limits::default().set(Some("cow"), "memory-all", "1G").is_err());
        assert!(Limits::default().set(None, "instances", "0").is_err());
        assert!(Limits::default().set(None, "cpu", "0").is_err());
    }
}
