//! The thread that advances wasmtime's epoch, and the clock that its ticks make.
//!
//! Compiled code reads the epoch at each loop and call, so at each tick the host can end a guest
//! that runs too long. The thread ticks every 5 ms while guests run, and every 50 ms when none ran
//! for a second. At each tick it publishes the time, so reading this clock costs one load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use wasmtime::Engine;

/// The time between two ticks while guests run. A guest that computes yields its thread at most
/// this much later.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// The time between two ticks while no guest runs. A guest that starts then may get its first tick
/// this late.
const IDLE_TICK: Duration = Duration::from_millis(50);

/// After this number of ticks without a guest (1 s) the pulse slows down.
const IDLE_AFTER: u32 = 200;

/// The clock, and the thread that advances the epoch.
pub(crate) struct Pulse {
    origin: Instant,
    /// Nanoseconds since `origin` at the last tick. 0 while the pulse is slow, because the last
    /// tick is then too long ago.
    coarse: AtomicU64,
    /// A guest was entered since the last tick.
    busy: AtomicBool,
    start: Once,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Pulse> {
        // The process has one origin, so that `clock.monotonic` counts from the start of the
        // server.
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let origin = *ORIGIN.get_or_init(Instant::now);
        Arc::new(Pulse { origin, coarse: AtomicU64::new(0), busy: AtomicBool::new(false), start: Once::new() })
    }

    /// Nanoseconds since the server started.
    pub(crate) fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The same at the time of the last tick. Costs one load.
    #[inline]
    pub(crate) fn coarse(&self) -> u64 {
        match self.coarse.load(Ordering::Relaxed) {
            0 => self.now(),
            time => time,
        }
    }

    /// The time of the last tick, to find out later whether another tick has passed. 0 while the
    /// pulse is slow.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        self.coarse.load(Ordering::Relaxed)
    }

    /// A guest is about to run. The first guest starts the thread, so the thread starts after the
    /// server has forked.
    #[inline]
    pub(crate) fn enter(self: &Arc<Self>, engine: &Engine) {
        if !self.busy.load(Ordering::Relaxed) {
            self.busy.store(true, Ordering::Relaxed);
            self.start.call_once(|| self.run(engine));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this thread exists to tick")]
    fn run(self: &Arc<Self>, engine: &Engine) {
        let (pulse, engine) = (Arc::clone(self), engine.weak());
        let thread = std::thread::Builder::new().name("rbdkit-epoch".into()).stack_size(64 << 10).spawn(move || {
            let mut idle_ticks = 0;
            loop {
                // This thread was started before the process was confined, so it has to confine
                // itself.
                rbdkit_confine::confine_thread();
                std::thread::sleep(if idle_ticks < IDLE_AFTER { TICK } else { IDLE_TICK });
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
                idle_ticks = if pulse.busy.swap(false, Ordering::Relaxed) { 0 } else { idle_ticks.saturating_add(1) };
                let time = if idle_ticks < IDLE_AFTER { pulse.now() } else { 0 };
                pulse.coarse.store(time, Ordering::Relaxed);
            }
        });
        if let Err(error) = thread {
            // Without this thread nothing would end a guest that loops. A server that a filter can
            // hang must not run.
            tracing::error!("cannot start the thread that limits filters: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_ticks_once_a_guest_was_entered() {
        let engine = super::super::engine::engine(Default::default()).unwrap();
        let pulse = Pulse::new();
        assert_eq!(pulse.tick(), 0);
        pulse.enter(&engine);
        let started = Instant::now();
        while pulse.tick() == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "still waiting for the first tick");
            std::thread::yield_now();
        }
        assert!(pulse.coarse() <= pulse.now());
    }
}
