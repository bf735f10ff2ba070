//! The settings of wasmtime's engine, of which a process has one.
//!
//! **Features.** Everything that filters do not need is off: threads, 64-bit memories, custom page
//! sizes, GC, exceptions, relaxed SIMD (its results differ between machines), and the component
//! model's async. A component that uses one of them is refused when it is loaded. Modules with
//! several memories stay on: wasmtime itself makes such a module when a component contains others
//! (JavaScript's engine and its stub of WASI), and panics if the feature is off. The bytes of all
//! memories of an instance are counted together. Concurrency support makes a call three to five
//! times as expensive and is off, because a store serves one call at a time here.
//!
//! **Memory.** Instances live long (a pool of them for each filter, or one for each connection). So
//! making one quickly gains little, and reserving address space for the largest possible memory
//! costs much. Instances are allocated on demand, with memories that may move. A memory reserves 64
//! MiB of address space, which is what it may grow to by default, and has explicit bounds checks in
//! place of the usual 4 GiB of guard.
//!
//! **Epochs.** Compiled code reads an epoch counter at each loop and call.
//! [`Pulse`](super::pulse::Pulse) advances it.

use rbdkit_plugin_api::ConfigError;
use wasmtime::{Config, Engine, OptLevel, Strategy, WasmBacktraceDetails, WasmFeatures};

/// How much of its fiber's stack a guest's code may use, in bytes. Beyond it the code traps.
pub(crate) const WASM_STACK: usize = 512 << 10;

/// A fiber's stack, in bytes of address space. The host's frames come on top of the guest's: an
/// import polls the layers below on this stack, down to the next filter's own fiber. 1.5 MiB are
/// left for them. Only pages that were touched are resident.
const FIBER_STACK: usize = 2 << 20;

/// Address space that a linear memory reserves. A memory that grows beyond it (with a larger limit)
/// is moved.
const MEMORY_RESERVATION: u64 = 64 << 20;

/// An access less than this many bytes beyond a checked address needs no check of its own.
const MEMORY_GUARD: u64 = 64 << 10;

/// What compiled code has beyond what a server needs. Tools for authors ask for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodeExtras {
    /// Nothing: backtraces name functions.
    #[default]
    None,
    /// The component's DWARF, so that backtraces name files and lines. The machine code is the
    /// same. A trap parses the DWARF in this process. It comes from the component's author, so a
    /// server must not do this.
    Lines,
    /// The same, and code that counts the WebAssembly instructions that it executes. It is slower.
    LinesAndCount,
}

impl CodeExtras {
    const ALL: [CodeExtras; 3] = [CodeExtras::None, CodeExtras::Lines, CodeExtras::LinesAndCount];

    /// Its word on the command line of the child that compiles.
    pub(crate) fn word(self) -> &'static str {
        match self {
            CodeExtras::None => "none",
            CodeExtras::Lines => "lines",
            CodeExtras::LinesAndCount => "count",
        }
    }

    /// The one that has this word.
    pub(crate) fn from_word(word: &str) -> Option<CodeExtras> {
        CodeExtras::ALL.into_iter().find(|extras| extras.word() == word)
    }

    /// Whether the component's DWARF is kept.
    pub(crate) fn keeps_lines(self) -> bool {
        self != CodeExtras::None
    }
}

fn config(extras: CodeExtras) -> Config {
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
        // The component has the names of its functions. Its DWARF would be parsed during a request.
        .wasm_backtrace_details(match extras.keeps_lines() {
            true => WasmBacktraceDetails::Enable,
            false => WasmBacktraceDetails::Disable,
        })
        .consume_fuel(extras == CodeExtras::LinesAndCount)
        .native_unwind_info(false);
    config
}

/// Makes the engine.
///
/// # Errors
/// WebAssembly does not run on this machine.
pub(crate) fn engine(extras: CodeExtras) -> Result<Engine, ConfigError> {
    Engine::new(&config(extras)).map_err(|e| ConfigError::new(format!("cannot run WebAssembly on this machine: {e:#}")))
}
