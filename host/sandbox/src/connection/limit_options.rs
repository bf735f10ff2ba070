//! Limits in the form of the command line (`--filter-limit RESOURCE=VALUE`).
//!
//! [`Limits::table`] is what `--help` and `rbdkit-filter inspect` print, so the text beside a limit
//! is written once, here.

use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, units};

use super::limits::{FilterLimits, ServerLimits};

/// Everything that `--filter-limit` can set: the limits of one filter, and those of the server.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The limits of one filter.
    pub filter: FilterLimits,
    /// The limits that all filters share.
    pub server: ServerLimits,
}

/// Where a limit is kept, by the form of its value.
enum Slot<'a> {
    Time(&'a mut Duration),
    Bytes(&'a mut u64),
    /// None is written as `auto`.
    Auto(&'a mut Option<u64>),
    Count(&'a mut u32),
}

/// Each resource's name and what it limits, in the order in which they are shown.
const RESOURCES: [(&str, &str); 20] = [
    ("cpu", "time that a guest may compute in one request"),
    ("wall", "elapsed time of one request in the filter, without waiting for others"),
    ("setup", "the same for configure, open, prepare, finalize and close"),
    ("waits", "times that one request may wait for the layers below, locks and sleep"),
    ("memory", "bytes of memory and tables of an instance"),
    ("memory-all", "bytes of memory of all instances of all filters together"),
    ("instances", "instances of the filter"),
    ("buffers", "bytes of the buffers that one call allocates"),
    ("buffers-total", "bytes of the buffers that all calls allocate"),
    ("transfer", "bytes of strings and lists that one call may pass out of the guest"),
    ("maps", "bytes of memory for block maps"),
    ("scratch", "bytes on the disk for one scratch file (auto: the export's size)"),
    ("scratch-total", "bytes on the disk for all scratch files of the filter"),
    ("exports", "disks with state besides the default export's"),
    ("prefetches", "prefetches of one connection under way at once"),
    ("prefetch-queue", "bytes in one connection's prefetch queue"),
    ("compile", "processor time for compiling one component"),
    ("compile-memory", "bytes of address space for compiling one component"),
    ("log-lines", "lines a second in the log"),
    ("log-line", "bytes of a line in the log"),
];

/// Whether one limit holds for all filters together.
fn is_of_the_server(resource: &str) -> bool {
    matches!(resource, "memory-all" | "compile" | "compile-memory")
}

impl Limits {
    fn slot(&mut self, resource: &str) -> Option<Slot<'_>> {
        let Limits { filter, server } = self;
        Some(match resource {
            "cpu" => Slot::Time(&mut filter.cpu),
            "wall" => Slot::Time(&mut filter.wall),
            "setup" => Slot::Time(&mut filter.setup),
            "waits" => Slot::Count(&mut filter.waits),
            "memory" => Slot::Bytes(&mut filter.memory),
            "memory-all" => Slot::Bytes(&mut server.memory),
            "instances" => Slot::Count(&mut filter.instances),
            "buffers" => Slot::Bytes(&mut filter.buffers),
            "buffers-total" => Slot::Bytes(&mut filter.buffers_total),
            "transfer" => Slot::Bytes(&mut filter.transfer),
            "maps" => Slot::Bytes(&mut filter.maps),
            "scratch" => Slot::Auto(&mut filter.scratch),
            "scratch-total" => Slot::Bytes(&mut filter.scratch_total),
            "exports" => Slot::Count(&mut filter.exports),
            "prefetches" => Slot::Count(&mut filter.prefetches),
            "prefetch-queue" => Slot::Bytes(&mut filter.prefetch_queue),
            "compile" => Slot::Time(&mut server.compile.time),
            "compile-memory" => Slot::Bytes(&mut server.compile.memory),
            "log-lines" => Slot::Count(&mut filter.log_lines),
            "log-line" => Slot::Count(&mut filter.log_line),
            _ => return None,
        })
    }

    /// Sets one limit from the command line: bytes as sizes (`64M`), times as durations (`500ms`),
    /// counts in decimal. `target` is the filter that the option names, if it names one.
    ///
    /// # Errors
    /// One line that names the filter and the resource and says what would be right.
    pub fn set(&mut self, target: Option<&str>, resource: &str, value: &str) -> Result<(), ConfigError> {
        let of = target.map(|name| format!("{name}:")).unwrap_or_default();
        let wrong = |what: String| ConfigError::new(format!("--filter-limit {of}{resource}={value}: {what}"));
        if is_of_the_server(resource) && target.is_some() {
            return Err(wrong("is one for all filters: leave their name out".into()));
        }
        if let Some((name, _)) = RESOURCES.iter().find(|(name, _)| *name == resource) {
            self.filter.set_by_operator.insert(name);
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
                let parsed = units::parse_whole(value, u32::MAX.into()).ok().filter(|n| *n > 0);
                *count = parsed.ok_or_else(|| wrong("is not a whole number from 1 on".into()))? as u32;
                Ok(())
            }
        }
    }

    /// Each resource, its value here and what it limits.
    pub fn table(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut limits = self.clone();
        RESOURCES
            .iter()
            .filter_map(|(name, what)| {
                let value = match limits.slot(name)? {
                    Slot::Time(time) => format!("{time:?}"),
                    Slot::Auto(None) => "auto".to_string(),
                    Slot::Bytes(bytes) | Slot::Auto(Some(bytes)) if *bytes == u64::MAX => "unlimited".to_string(),
                    Slot::Bytes(bytes) | Slot::Auto(Some(bytes)) => units::format_size(*bytes),
                    Slot::Count(count) => count.to_string(),
                };
                Some((*name, value, *what))
            })
            .collect()
    }
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
        assert_eq!(limits.filter.scratch, None);
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
