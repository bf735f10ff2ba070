//! What a filter may put into the log, and how often its faults are reported.

use std::collections::HashMap;
use std::sync::Mutex;

use rbdkit_plugin_api::lock;
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::text::one_line_within;

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Writes the lines of a filter into the log. It limits the number of lines a second and their
/// length. It escapes characters that could start another line or control a terminal.
pub(crate) struct GuestLog {
    name: String,
    rate: Rate,
    longest: usize,
}

impl GuestLog {
    /// `rate` lines a second and ten times as many at once, each of at most `longest` bytes.
    pub(crate) fn new(name: &str, rate: u32, longest: usize) -> GuestLog {
        GuestLog { name: name.to_string(), rate: Rate::new(rate, rate.saturating_mul(10)), longest }
    }

    /// How many bytes of a line are shown at most.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Writes a line, unless too many came lately.
    pub(crate) fn write(&self, level: Level, message: &str) {
        if level == Level::Debug && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let Some(dropped) = self.rate.admit() else { return };
        if dropped > 0 {
            tracing::warn!("{}: {dropped} lines of this filter were dropped", self.name);
        }
        let line = one_line_within(message, self.longest);
        match level {
            Level::Error => tracing::error!("{}: {line}", self.name),
            Level::Warn => tracing::warn!("{}: {line}", self.name),
            Level::Info => tracing::info!("{}: {line}", self.name),
            Level::Debug => tracing::debug!("{}: {line}", self.name),
        }
    }
}

/// How many bytes of a failure's cause are shown at most, because a guest or its compiler may have
/// made the text.
pub(crate) const CAUSE: usize = 400;

/// How many kinds of faults are counted separately. All further kinds are counted as one.
const MAX_KINDS: usize = 64;

/// Decides which faults of a filter are reported: the first of each kind, and then each time the
/// count has grown tenfold.
#[derive(Default)]
pub(crate) struct Faults(Mutex<HashMap<String, u64>>);

impl Faults {
    /// Counts a fault of a kind. Returns how many there were, if this one is to be reported.
    pub(crate) fn count(&self, kind: &str) -> Option<u64> {
        let mut kinds = lock(&self.0);
        let kind = if kinds.len() < MAX_KINDS || kinds.contains_key(kind) { kind } else { "" };
        let count = kinds.entry(kind.to_string()).or_default();
        *count += 1;
        let mut round = 1u64;
        while round < *count {
            round = round.saturating_mul(10);
        }
        (round == *count).then_some(*count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_limited_in_rate() {
        let log = GuestLog::new("f", 1, 100);
        let admitted = (0..1000).filter(|_| log.rate.admit().is_some()).count();
        assert!((10..100).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_kind_of_fault_is_reported_once_and_then_tenfold() {
        let faults = Faults::default();
        let reported: Vec<u64> = (0..1000).filter_map(|_| faults.count("trap")).collect();
        assert_eq!(reported, [1, 10, 100, 1000]);
        assert_eq!(faults.count("other"), Some(1));
    }
}
