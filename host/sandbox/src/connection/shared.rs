//! What all instances of one filter have in common: limits, counters, the log, what was said of its faults.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rbdkit_plugin_api::ThreadModel;
use wasmtime::Engine;

use super::engine::Pulse;
use crate::layer::breaker::OnFault;
use crate::state::{Files, FilterState, Quota};
use crate::{Host, Limits};
use rbdkit_plugin_api::rate::Rate;

/// What happened in one filter. Shown with `-v` when it ends; tests read it through [`crate::Host::statistics`].
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls of guest functions.
    pub calls: AtomicU64,
    /// Payload bytes that a guest took in (`buffer.read`).
    pub bytes_in: AtomicU64,
    /// Payload bytes that a guest gave out (`buffer.write`).
    pub bytes_out: AtomicU64,
    /// Calls that ended in a trap or at a limit.
    pub faults: AtomicU64,
    /// Instances made.
    pub instances: AtomicU64,
    /// Prefetches that were carried out.
    pub prefetches: AtomicU64,
    /// Of these, how many failed.
    pub prefetches_failed: AtomicU64,
    /// Ranges that were there or under way already.
    pub prefetches_merged: AtomicU64,
    /// Ranges for which the queue had no room.
    pub prefetches_dropped: AtomicU64,
    /// Operations below that went on without the call that had begun them, because its client had gone.
    pub left: AtomicU64,
}

impl Counters {
    /// Payload bytes that crossed into or out of the sandbox.
    pub fn bytes_crossed(&self) -> u64 {
        self.bytes_in.load(Relaxed) + self.bytes_out.load(Relaxed)
    }
}

/// How many of something there are, for as long as the guard lives.
pub(crate) struct Counted(Arc<AtomicU32>);

impl Counted {
    pub(crate) fn new(count: &Arc<AtomicU32>) -> Counted {
        count.fetch_add(1, Relaxed);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One filter in one place of the chain.
pub(crate) struct Shared {
    pub(crate) name: String,
    /// It is only asked what it is.
    pub(crate) describing: bool,
    pub(crate) limits: Limits,
    pub(crate) engine: Engine,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) log: GuestLog,
    pub(crate) faults: Faults,
    pub(crate) state: Arc<FilterState>,
    pub(crate) files: Files,
    pub(crate) own_buffers: Quota,
    /// Operations that go on without their call.
    pub(crate) strays: Quota,
    /// Memory of the instances of all filters.
    pub(crate) memory_all: Arc<Quota>,
    pub(crate) on_fault: OnFault,
    /// The strictest thread model of the layers below, known from get-ready on.
    pub(crate) below: OnceLock<ThreadModel>,
    /// Connections that are open in this layer.
    pub(crate) connections: Arc<AtomicU32>,
}

impl Shared {
    pub(crate) fn new(name: &str, describing: bool, limits: Limits, files: Files, host: &Host) -> Arc<Shared> {
        Arc::new(Shared {
            name: name.to_string(),
            describing,
            log: GuestLog::new(name, limits.log_lines, limits.log_line as usize),
            state: FilterState::new(limits.for_state()),
            own_buffers: Quota::new(limits.buffers_total),
            strays: Quota::new(super::stray::MOST),
            memory_all: Arc::clone(&host.memory),
            on_fault: host.on_fault.clone(),
            limits,
            engine: host.engine.clone(),
            pulse: Arc::clone(&host.pulse),
            counters: Arc::default(),
            faults: Faults::default(),
            files,
            below: OnceLock::new(),
            connections: Arc::default(),
        })
    }

    /// Says with -v what happened.
    pub(crate) fn log_counters(&self, when: &str) {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counters;
        tracing::debug!(
            "{}: {when}: {} calls, {} bytes crossed, {} faults, {} instances made; \
             prefetches: {} done, {} of them failed, {} merged, {} dropped",
            self.name,
            get(&c.calls),
            c.bytes_crossed(),
            get(&c.faults),
            get(&c.instances),
            get(&c.prefetches),
            get(&c.prefetches_failed),
            get(&c.prefetches_merged),
            get(&c.prefetches_dropped),
        );
    }
}

/// A line's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Debug,
}

/// A filter's way into the log: so many lines a second and ten times as many at once, each so long at most, nothing in it that could
/// pretend to be another line or command a terminal.
pub(crate) struct GuestLog {
    name: String,
    rate: Rate,
    longest: usize,
}

impl GuestLog {
    pub(crate) fn new(name: &str, rate: u32, longest: usize) -> GuestLog {
        GuestLog { name: name.to_string(), rate: Rate::new(rate, rate.saturating_mul(10)), longest }
    }

    /// Bytes of a line that are shown.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn write(&self, level: Level, message: &str) {
        if level == Level::Debug && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let Some(dropped) = self.rate.admit() else { return };
        if dropped > 0 {
            tracing::warn!("{}: {dropped} lines of this filter were dropped", self.name);
        }
        let line = printable(message, self.longest);
        match level {
            Level::Error => tracing::error!("{}: {line}", self.name),
            Level::Warn => tracing::warn!("{}: {line}", self.name),
            Level::Debug => tracing::debug!("{}: {line}", self.name),
        }
    }
}

/// Bytes that are shown of why something failed, where a guest or its compiler may have a say in it.
pub(crate) const CAUSE: usize = 400;

/// One line of text: control characters escaped, cut to `longest` bytes.
pub(crate) fn printable(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len().min(longest));
    for c in text.trim_end_matches('\n').chars() {
        if line.len() + c.len_utf8() > longest {
            line.push_str("...");
            break;
        }
        // Directions can hide text as well as control characters can.
        let hidden = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || hidden {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Kinds of faults that are told apart. More are counted as one.
const KINDS: usize = 64;

/// What was said of a filter's faults: each kind once, then when their number has grown tenfold.
#[derive(Default)]
pub(crate) struct Faults(Mutex<HashMap<String, u64>>);

impl Faults {
    /// Counts a fault of a kind. How many there were now, if that is to be said.
    pub(crate) fn count(&self, kind: &str) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if kinds.len() < KINDS || kinds.contains_key(kind) { kind } else { "" };
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
    fn a_line_cannot_pretend_to_be_another() {
        assert_eq!(printable("a\nrbdkit: error: b\u{1b}[2J\n", 100), "a\\nrbdkit: error: b\\u{1b}[2J");
        assert_eq!(printable("abcdef", 3), "abc...");
        assert_eq!(printable("äöü", 3), "ä...");
        assert_eq!(printable("a\u{202e}b", 100), "a\\u{202e}b");
    }

    #[test]
    fn the_log_is_limited_in_rate() {
        let log = GuestLog::new("f", 1, 100);
        let admitted = (0..1000).filter(|_| log.rate.admit().is_some()).count();
        assert!((10..100).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_kind_of_fault_is_said_once_and_then_tenfold() {
        let faults = Faults::default();
        let said: Vec<u64> = (0..1000).filter_map(|_| faults.count("trap")).collect();
        assert_eq!(said, [1, 10, 100, 1000]);
        assert_eq!(faults.count("other"), Some(1));
    }
}
