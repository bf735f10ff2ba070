//! The one wasmtime engine of the process, and the pulse that ends what runs too long.
//!
//! **Settings.** What a filter does not need is off: threads, 64-bit memories, custom page sizes, GC, exceptions, relaxed
//! SIMD (its results differ between machines), the component model's async. Modules with several memories stay on: wasmtime itself makes
//! one where a component is composed of others (JavaScript's engine and its stub of WASI), and panics without; their bytes are counted together. A component that uses one of them is refused when it is
//! loaded. Concurrency support costs three to five times a call and is off: a store serves one call at a time here.
//!
//! **Memory.** Instances live long (a pool of them a filter, or one a connection), so making one fast is worth little and
//! reserving address space for the most there could be costs much: instances are allocated on demand, with memories that may move. A
//! memory reserves 64 MiB of address space, what it may grow to by default, and explicit bounds checks in place of the usual 4 GiB of guard.
//!
//! **Pulse.** Compiled code looks at an epoch counter at each loop and call. A thread of its own advances it, every 5 ms while guests run and
//! less often when none did, and publishes the time it did so: a clock that costs one load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::ConfigError;
use wasmtime::{Config, Engine, OptLevel, Strategy, WasmBacktraceDetails, WasmFeatures};

/// A guest's code may use so much of its fiber's stack, in bytes. Beyond it traps.
const WASM_STACK: usize = 512 << 10;

/// A fiber's stack, in bytes of address space. On top of the guest's frames come the host's: an import polls the layers below on this
/// stack, down to the next filter's own fiber. 1.5 MiB is what is left to them; only pages that were touched are resident.
const FIBER_STACK: usize = 2 << 20;

/// Address space a linear memory reserves. One that grows beyond it (a larger limit) moves.
const MEMORY_RESERVATION: u64 = 64 << 20;

/// An address that is off by less than this from a checked one needs no check of its own.
const MEMORY_GUARD: u64 = 64 << 10;

fn config() -> Config {
    let mut config = Config::new();
    let off = WasmFeatures::THREADS
        | WasmFeatures::SHARED_EVERYTHING_THREADS
        | WasmFeatures::MEMORY64
        | WasmFeatures::CUSTOM_PAGE_SIZES
        | WasmFeatures::GC
        | WasmFeatures::GC_TYPES
        | WasmFeatures::FUNCTION_REFERENCES
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::STACK_SWITCHING
        | WasmFeatures::WIDE_ARITHMETIC
        | WasmFeatures::CM_ASYNC
        | WasmFeatures::CM_ASYNC_STACKFUL
        | WasmFeatures::CM_MORE_ASYNC_BUILTINS
        | WasmFeatures::CM_THREADING
        | WasmFeatures::CM_ERROR_CONTEXT
        | WasmFeatures::CM_GC
        | WasmFeatures::CM64;
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .concurrency_support(false)
        .wasm_features(off, false)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(FIBER_STACK)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_reservation_for_growth(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .memory_may_move(true)
        // Names of functions come with the component; reading its DWARF as well would be done in the middle of a request.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .native_unwind_info(false);
    config
}

/// Makes the engine.
pub(crate) fn engine() -> Result<Engine, ConfigError> {
    Engine::new(&config()).map_err(|e| ConfigError::new(format!("cannot run WebAssembly on this machine: {e:#}")))
}

/// How far apart the ticks are while guests run. A guest that computes yields its thread at most this much later.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// The same while no guest was entered. It is also how late the first tick may come for a guest that wakes the pulse.
const IDLE_TICK: Duration = Duration::from_millis(50);

/// Ticks without a guest after which the pulse slows down.
const IDLE_AFTER: u32 = 200;

/// The clock and the epoch's thread.
pub(crate) struct Pulse {
    origin: Instant,
    /// Nanoseconds since `origin` at the last tick; 0 while the pulse is slow, because then it says too little.
    coarse: AtomicU64,
    /// A guest was entered since the last tick.
    busy: AtomicBool,
    start: Once,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Pulse> {
        // One origin for the process, so that `clock.monotonic` counts from the start of the server.
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let origin = *ORIGIN.get_or_init(Instant::now);
        Arc::new(Pulse { origin, coarse: AtomicU64::new(0), busy: AtomicBool::new(false), start: Once::new() })
    }

    /// Nanoseconds since the server started.
    pub(crate) fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The same, up to a tick ago, for the price of a load.
    pub(crate) fn coarse(&self) -> u64 {
        match self.coarse.load(Ordering::Relaxed) {
            0 => self.now(),
            time => time,
        }
    }

    /// The last tick, for telling whether one went by.
    pub(crate) fn tick(&self) -> u64 {
        self.coarse.load(Ordering::Relaxed)
    }

    /// A guest is about to run. The thread is made by the first one: after the server has forked, and never in a program that only
    /// asks a filter's name.
    pub(crate) fn enter(self: &Arc<Self>, engine: &Engine) {
        if !self.busy.load(Ordering::Relaxed) {
            self.busy.store(true, Ordering::Relaxed);
            self.start.call_once(|| self.run(engine));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "beating in time is what this thread is for")]
    fn run(self: &Arc<Self>, engine: &Engine) {
        let (pulse, engine) = (Arc::clone(self), engine.weak());
        let thread = std::thread::Builder::new().name("rbdkit-epoch".into()).stack_size(64 << 10).spawn(move || {
            let mut idle_ticks = 0;
            loop {
                // It is older than the wall.
                rbdkit_confine::enter();
                std::thread::sleep(if idle_ticks < IDLE_AFTER { TICK } else { IDLE_TICK });
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
                idle_ticks = if pulse.busy.swap(false, Ordering::Relaxed) { 0 } else { idle_ticks.saturating_add(1) };
                let time = if idle_ticks < IDLE_AFTER { pulse.now() } else { 0 };
                pulse.coarse.store(time, Ordering::Relaxed);
            }
        });
        if let Err(error) = thread {
            // Nothing would ever end a guest that loops: better no server than one that a filter can hang.
            tracing::error!("cannot start the thread that limits filters: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_beats_once_a_guest_was_entered() {
        let engine = engine().unwrap();
        let pulse = Pulse::new();
        assert_eq!(pulse.tick(), 0);
        pulse.enter(&engine);
        while pulse.tick() == 0 {
            std::thread::yield_now();
        }
        assert!(pulse.coarse() <= pulse.now());
    }
}
