//! A record of what guests did: each call of a guest, with the calls of the host that it made.
//! Tools for authors ask for it; a server makes none.
//!
//! The record of a guest that runs belongs to its instance ([`Recorder`]). It joins the [`Trace`]
//! of the host when the guest returns.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::lock;
use rbdkit_plugin_api::text::one_line_within;

/// The most calls of guests that a trace keeps until it is taken.
const MAX_GUEST_CALLS: usize = 1000;

/// The most calls of the host that are kept of one call of a guest. The rest is counted.
const MAX_HOST_CALLS: usize = 1000;

/// The most bytes of the text of arguments and of a result.
const MAX_TEXT: usize = 400;

/// A call of the host by a guest.
#[derive(Clone, Debug)]
pub struct HostCall {
    /// The interface and the function, as the contract or WASI names them.
    pub name: String,
    /// The arguments with their names. Payloads are shown as their length and their first bytes.
    pub arguments: String,
    /// The result: a value, an errno, or why the call ended the guest.
    pub result: String,
    /// When it began, counted from the beginning of the guest's call.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
}

/// A call of a function of a guest.
#[derive(Clone, Debug)]
pub struct GuestCall {
    /// The function, as the contract names it, or `instantiate` for what a guest does when its
    /// instance is made.
    pub name: &'static str,
    /// The arguments that say what the call is about.
    pub arguments: String,
    /// `ok`, an errno, or why the call ended in a fault.
    pub outcome: String,
    /// How long it took, with the calls of the host.
    pub took: Duration,
    /// WebAssembly instructions that the guest executed. None if the code does not count them.
    pub instructions: Option<u64>,
    /// Bytes of memory and tables of the instance at the end of the call.
    pub memory: u64,
    /// The calls of the host, in their order.
    pub host_calls: Vec<HostCall>,
    /// How many more calls of the host there were, which are not in the list.
    pub left_out: u64,
}

/// What the guests of a host did since the trace was last taken.
#[derive(Debug, Default)]
pub struct Trace(Mutex<Vec<GuestCall>>);

impl Trace {
    /// The calls of guests that have ended since the last time, in the order of their ends. The
    /// first thousand are kept.
    pub fn take(&self) -> Vec<GuestCall> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// Whether the calls of guests are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recording {
    Off,
    On,
}

/// A guest's call that has not ended.
#[derive(Debug)]
struct Running {
    call: GuestCall,
    began: Instant,
    /// The fuel that the store had at the beginning.
    fuel: Option<u64>,
}

/// Records the calls of one instance.
#[derive(Debug)]
pub(crate) struct Recorder {
    trace: Arc<Trace>,
    running: Mutex<Option<Running>>,
}

impl Recorder {
    pub(crate) fn new(trace: &Arc<Trace>) -> Arc<Recorder> {
        Arc::new(Recorder { trace: Arc::clone(trace), running: Mutex::default() })
    }

    /// The guest's function `name` is about to run.
    pub(crate) fn begin(&self, name: &'static str, arguments: String, fuel: Option<u64>) {
        let call = GuestCall {
            name,
            arguments,
            outcome: String::new(),
            took: Duration::ZERO,
            instructions: None,
            memory: 0,
            host_calls: Vec::new(),
            left_out: 0,
        };
        *lock(&self.running) = Some(Running { call, began: Instant::now(), fuel });
    }

    /// The guest has called a function of the host, which began at `began`.
    pub(crate) fn host_call(&self, name: &str, arguments: &str, result: &str, began: Instant) {
        let took = began.elapsed();
        let mut running = lock(&self.running);
        let Some(Running { call, began: start, .. }) = &mut *running else { return };
        if call.host_calls.len() >= MAX_HOST_CALLS {
            call.left_out += 1;
            return;
        }
        call.host_calls.push(HostCall {
            name: one_line_within(name, MAX_TEXT),
            arguments: one_line_within(arguments, MAX_TEXT),
            result: one_line_within(result, MAX_TEXT),
            began: began.saturating_duration_since(*start),
            took,
        });
    }

    /// The guest's function has ended.
    pub(crate) fn end(&self, outcome: String, fuel: Option<u64>, memory: u64) {
        let Some(Running { mut call, began, fuel: before }) = lock(&self.running).take() else { return };
        call.took = began.elapsed();
        call.outcome = outcome;
        call.memory = memory;
        call.instructions = before.zip(fuel).map(|(before, after)| before.saturating_sub(after));
        let mut calls = lock(&self.trace.0);
        if calls.len() < MAX_GUEST_CALLS {
            calls.push(call);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_bounded() {
        let trace = Arc::new(Trace::default());
        let recorder = Recorder::new(&trace);
        for _ in 0..MAX_GUEST_CALLS + 1 {
            recorder.begin("pread", String::new(), Some(100));
            recorder.end("ok".into(), Some(90), 1);
        }
        assert_eq!(trace.take().len(), MAX_GUEST_CALLS);
        // No call runs.
        recorder.host_call("next.pread", "", "ok", Instant::now());
        recorder.begin("pread", String::new(), Some(100));
        for _ in 0..MAX_HOST_CALLS + 7 {
            recorder.host_call("next.pread", &"x".repeat(10_000), "ok", Instant::now());
        }
        recorder.end("ok".into(), Some(58), 1);
        let calls = trace.take();
        assert_eq!((calls.len(), calls[0].host_calls.len(), calls[0].left_out), (1, MAX_HOST_CALLS, 7));
        assert_eq!(calls[0].instructions, Some(42));
        assert_eq!(calls[0].host_calls[0].arguments.len(), MAX_TEXT + 3);
        assert!(trace.take().is_empty());
    }
}
