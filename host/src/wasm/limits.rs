//! What a filter may take, by default and by option (`--filter-limit RESOURCE=VALUE`).
//!
//! All limits hold for one filter in one place of the chain. [`Limits::table`] is what `--help` and `rbdkit-filter inspect` print, so
//! the text beside a limit is written once, here.

use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, MAX_REQUEST, units};

use super::state;

/// The bounds on one filter.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time that a guest may compute in one data request; waiting for next, locks and sleep does not count.
    pub cpu: Duration,
    /// Time that one data request may take, less the same waiting: a guest that is not scheduled for long is ended as well.
    pub wall: Duration,
    /// As `cpu` and `wall`, for configure, get-ready, open, prepare, finalize and close: they may read a whole index.
    pub setup: Duration,
    /// Bytes of an instance's linear memory and tables together. Beyond it an allocation fails in the guest.
    pub memory: u64,
    /// Instances of the filter. A request waits for a free one.
    pub instances: u32,
    /// Bytes of one call's own buffers.
    pub buffers: u64,
    /// Bytes of all calls' own buffers together.
    pub buffers_total: u64,
    /// Bytes that one import or result may bring out of the guest at once (strings, lists).
    pub transfer: u64,
    /// Bytes of memory for block maps.
    pub maps: u64,
    /// Bytes on the disk for one scratch file.
    pub scratch: u64,
    /// Exports that may have state.
    pub exports: u32,
    /// Prefetches of one connection under way at once.
    pub prefetches: u32,
    /// Bytes that one connection's prefetch queue holds.
    pub prefetch_queue: u64,
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
            memory: 64 << 20,
            instances: 64,
            buffers: u64::from(MAX_REQUEST),
            // Four of the largest requests: more would let one filter outgrow what the server admits in payloads.
            buffers_total: 4 * u64::from(MAX_REQUEST),
            transfer: u64::from(MAX_REQUEST),
            maps: 128 << 20,
            scratch: u64::MAX,
            exports: 1024,
            // Four pieces hide a latency of 20 ms at 200 MB/s.
            prefetches: 4,
            prefetch_queue: 32 << 20,
            log_lines: 100,
            log_line: 1024,
        }
    }
}

enum Slot<'a> {
    Time(&'a mut Duration),
    Bytes(&'a mut u64),
    Count(&'a mut u32),
}

/// Each resource's word and what it bounds, in the order of [`Limits::slot`].
const RESOURCES: [(&str, &str); 15] = [
    ("cpu", "time that a guest may compute in one request"),
    ("wall", "time that one request may take in a filter, waiting for others not counted"),
    ("setup", "the same for configure, open, prepare, finalize and close"),
    ("memory", "bytes of memory and tables of an instance"),
    ("instances", "instances of the filter"),
    ("buffers", "bytes of one request's further buffers"),
    ("buffers-total", "bytes of all requests' further buffers"),
    ("transfer", "bytes that one call may bring out of the guest"),
    ("maps", "bytes of memory for block maps"),
    ("scratch", "bytes on the disk for one scratch file"),
    ("exports", "exports that may have state"),
    ("prefetches", "prefetches of one connection under way at once"),
    ("prefetch-queue", "bytes in one connection's prefetch queue"),
    ("log-lines", "lines a second in the log"),
    ("log-line", "bytes of a line in the log"),
];

impl Limits {
    fn slot(&mut self, resource: &str) -> Option<Slot<'_>> {
        Some(match resource {
            "cpu" => Slot::Time(&mut self.cpu),
            "wall" => Slot::Time(&mut self.wall),
            "setup" => Slot::Time(&mut self.setup),
            "memory" => Slot::Bytes(&mut self.memory),
            "instances" => Slot::Count(&mut self.instances),
            "buffers" => Slot::Bytes(&mut self.buffers),
            "buffers-total" => Slot::Bytes(&mut self.buffers_total),
            "transfer" => Slot::Bytes(&mut self.transfer),
            "maps" => Slot::Bytes(&mut self.maps),
            "scratch" => Slot::Bytes(&mut self.scratch),
            "exports" => Slot::Count(&mut self.exports),
            "prefetches" => Slot::Count(&mut self.prefetches),
            "prefetch-queue" => Slot::Bytes(&mut self.prefetch_queue),
            "log-lines" => Slot::Count(&mut self.log_lines),
            "log-line" => Slot::Count(&mut self.log_line),
            _ => return None,
        })
    }

    /// Sets one limit from the command line: bytes as sizes (`64M`), times as durations (`500ms`), counts in decimal.
    ///
    /// # Errors
    /// One line that names the resource and says what would be right.
    pub fn set(&mut self, resource: &str, value: &str) -> Result<(), ConfigError> {
        let wrong = |what: String| ConfigError::new(format!("--filter-limit {resource}={value}: {what}"));
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
                    Slot::Bytes(bytes) if *bytes == u64::MAX => "unlimited".to_string(),
                    Slot::Bytes(bytes) => in_units(*bytes),
                    Slot::Count(count) => count.to_string(),
                };
                Some((*name, value, *what))
            })
            .collect()
    }

    pub(super) fn for_state(&self) -> state::Limits {
        state::Limits {
            exports: self.exports as usize,
            map_bytes: self.maps,
            scratch_bytes: self.scratch,
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
            limits.set(name, "7").unwrap();
        }
        assert_eq!(limits.table().len(), RESOURCES.len());
        limits.set("memory", "16M").unwrap();
        limits.set("cpu", "500ms").unwrap();
        assert_eq!(limits.table()[0].1, "500ms");
        assert_eq!(limits.table()[3].1, "16M");
    }

    #[test]
    fn a_wrong_limit_is_named_with_what_would_be_right() {
        let error = Limits::default().set("memory", "lots").unwrap_err().to_string();
        assert!(error.starts_with("--filter-limit memory=lots: is not a size"), "{error}");
        let error = Limits::default().set("speed", "1").unwrap_err().to_string();
        assert!(error.contains("no such resource: use one of cpu, wall"), "{error}");
        assert!(Limits::default().set("instances", "0").is_err());
        assert!(Limits::default().set("cpu", "0").is_err());
    }
}
