//! The server's limits in the form of the command line (`--limit RESOURCE=VALUE`).

use rbdkit_plugin_api::{ConfigError, units};

use super::connections::MAX_WAITING;
use super::options::ServerLimits;

/// File descriptors of one connection: its socket, the socket again while the server waits for the
/// client to take replies, and what the plugin opens for it.
const DESCRIPTORS_PER_CONNECTION: u64 = 3;

/// File descriptors for everything else: clients that wait for a place, pipes for long reads (64),
/// files of the plugin and of the filters' scratch, and the process's own.
const OTHER_DESCRIPTORS: u64 = MAX_WAITING as u64 + 160;

/// The most connections that leave file descriptors for everything else, if the process may have
/// `descriptors` of them. If there are few, half of them are for everything else.
pub fn connections_for(descriptors: u64) -> usize {
    let rest = descriptors - OTHER_DESCRIPTORS.min(descriptors / 2);
    let most = usize::try_from(rest / DESCRIPTORS_PER_CONNECTION).unwrap_or(usize::MAX);
    // An eighth of the limit may exist besides, on the way out.
    (most - most / 9).max(1)
}

/// Where a limit is kept, by the form of its value.
enum Slot<'a> {
    Bytes(&'a mut u64),
    Count(&'a mut usize),
}

/// Each resource's name and what it limits, in the order in which they are shown.
const RESOURCES: [(&str, &str); 6] = [
    ("connections", "clients at a time"),
    ("requests", "bytes of the requests of one client in flight"),
    ("requests-total", "bytes of the requests of all clients in flight"),
    ("receive", "bytes of the buffers that requests are received into"),
    ("handshakes", "bytes of long options of all clients that negotiate"),
    ("tls", "bytes of the TLS sessions of all clients"),
];

impl ServerLimits {
    fn slot(&mut self, resource: &str) -> Option<Slot<'_>> {
        Some(match resource {
            "connections" => Slot::Count(&mut self.connections),
            "requests" => Slot::Bytes(&mut self.bytes_per_connection),
            "requests-total" => Slot::Bytes(&mut self.bytes_in_all),
            "receive" => Slot::Bytes(&mut self.receive_bytes),
            "handshakes" => Slot::Bytes(&mut self.handshake_bytes),
            "tls" => Slot::Bytes(&mut self.tls_bytes),
            _ => return None,
        })
    }

    /// Sets one limit from the command line: bytes as sizes (`64M`), counts as whole numbers.
    ///
    /// # Errors
    /// One line that names the resource and says what would be right.
    pub fn set(&mut self, resource: &str, value: &str) -> Result<(), ConfigError> {
        let wrong = |what: String| ConfigError::new(format!("--limit {resource}={value}: {what}"));
        match self.slot(resource) {
            None => {
                let known: Vec<&str> = RESOURCES.iter().map(|(name, _)| *name).collect();
                Err(wrong(format!("there is no such resource: use one of {}", known.join(", "))))
            }
            Some(Slot::Bytes(bytes)) => {
                *bytes = units::parse_size(value).map_err(wrong)?;
                Ok(())
            }
            Some(Slot::Count(count)) => {
                let parsed = units::parse_whole(value, u32::MAX.into()).ok().filter(|n| *n > 0);
                *count = parsed.ok_or_else(|| wrong("is not a whole number from 1 on".into()))? as usize;
                Ok(())
            }
        }
    }

    /// Each resource, its value here and what it limits.
    pub fn table(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut limits = self.clone();
        let value = |slot: Slot<'_>| match slot {
            Slot::Bytes(bytes) => units::format_size(*bytes),
            Slot::Count(count) => count.to_string(),
        };
        RESOURCES.iter().filter_map(|(name, what)| Some((*name, value(limits.slot(name)?), *what))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set_and_is_shown() {
        let mut limits = ServerLimits::default();
        for (name, _) in RESOURCES {
            limits.set(name, "7").unwrap();
        }
        assert!(limits.table().iter().all(|(_, value, _)| value == "7"));
        limits.set("requests-total", "1G").unwrap();
        assert_eq!((limits.bytes_in_all, limits.table()[2].1.as_str()), (1 << 30, "1G"));
        // By the one rule for whole numbers.
        limits.set("connections", "0x10").unwrap();
        assert_eq!(limits.connections, 16);
    }

    #[test]
    fn a_wrong_limit_is_named_with_what_would_be_right() {
        for (resource, value, message) in [
            ("speed", "1", "--limit speed=1: there is no such resource: use one of connections, requests"),
            ("connections", "0", "--limit connections=0: is not a whole number from 1 on"),
            ("connections", "1M", "--limit connections=1M: is not a whole number from 1 on"),
            ("receive", "lots", "--limit receive=lots: is not a size"),
        ] {
            let error = ServerLimits::default().set(resource, value).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn connections_leave_descriptors_for_other_files() {
        for (descriptors, connections) in [(0, 1), (16, 2), (256, 38), (1024, 237), (1 << 20, 310_623)] {
            assert_eq!(connections_for(descriptors), connections, "{descriptors}");
            let most = super::super::connections::Connections::most(connections) as u64;
            assert!(descriptors < 16 || most * DESCRIPTORS_PER_CONNECTION <= descriptors, "{descriptors}");
        }
    }
}
