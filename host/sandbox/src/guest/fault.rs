//! Why a call ended without an answer: a mistake of the guest, a trap, or a limit.

use std::fmt::Write as _;

use rbdkit_plugin_api::text::one_line_within;
use wasmtime::{FrameInfo, Trap, WasmBacktrace};

use super::clock::Overrun;
use super::memory::{MemoryLimit, MemoryLimiter};
use crate::connection::engine::WASM_STACK;
use crate::connection::log::CAUSE;
use crate::connection::shared::{FilterShared, Purpose};

/// A mistake of a guest: it called an import in a way that the contract forbids. The call traps.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Mistake(pub(crate) String);

/// A guest's mistake as the error that traps.
pub(crate) fn mistake(what: impl Into<String>) -> wasmtime::Error {
    wasmtime::Error::new(Mistake(what.into()))
}

/// Why an instance cannot be used any more.
#[derive(Debug)]
pub(crate) struct Fault {
    /// One line.
    pub(crate) cause: String,
    /// The guest's functions, innermost first, in one line.
    pub(crate) backtrace: Option<String>,
    pub(crate) kind: FaultKind,
}

/// Who is the cause of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The guest.
    Guest,
    /// Its client has gone. The guest did nothing wrong.
    Gone,
    /// All calls together use the filter's `buffers-total`. The guest did nothing wrong.
    NoBuffers,
}

impl Fault {
    pub(crate) fn new(error: &wasmtime::Error) -> Fault {
        let cause = if let Some(overrun) = error.downcast_ref::<Overrun>() {
            overrun.to_string()
        } else if let Some(mistake) = error.downcast_ref::<Mistake>() {
            mistake.to_string()
        } else if let Some(trap @ Trap::StackOverflow) = error.downcast_ref::<Trap>() {
            format!("{trap} (a guest has {} KiB)", WASM_STACK >> 10)
        } else if let Some(trap) = error.downcast_ref::<Trap>() {
            trap.to_string()
        } else {
            format!("{:#}", error.root_cause())
        };
        let backtrace = error.downcast_ref::<WasmBacktrace>().map(frames);
        let kind = match error.downcast_ref::<Overrun>() {
            Some(Overrun::Gone) => FaultKind::Gone,
            Some(Overrun::Buffers) => FaultKind::NoBuffers,
            _ => FaultKind::Guest,
        };
        Fault { cause: one_line_within(&cause, CAUSE), backtrace, kind }
    }

    /// [`Fault::new`] for a call in which the guest may have been refused memory. What a guest then
    /// does depends on its language: it exits, jumps to `unreachable` or uses a null pointer.
    pub(super) fn within(error: &wasmtime::Error, memory: &MemoryLimiter, shared: &FilterShared) -> Fault {
        let fault = Fault::new(error);
        match memory.reached().filter(|_| !error.is::<Overrun>()) {
            Some(limit) => {
                let limit = Fault::beyond(limit, shared).cause;
                Fault { cause: one_line_within(&format!("{limit}: {}", fault.cause), CAUSE), ..fault }
            }
            None => fault,
        }
    }

    /// The instance cannot be made within a limit.
    pub(super) fn beyond(limit: MemoryLimit, shared: &FilterShared) -> Fault {
        let name = (shared.purpose == Purpose::Serve).then_some(shared.name.as_str());
        Fault { cause: limit.words(name), backtrace: None, kind: FaultKind::Guest }
    }
}

/// How many frames a line shows at most.
const MAX_FRAMES: usize = 12;

/// The functions of a backtrace in one line, innermost first: with file and line if the component
/// has DWARF and the host keeps it, and else with the offset of the instruction in the function.
fn frames(backtrace: &WasmBacktrace) -> String {
    let all: Vec<String> = backtrace.frames().iter().flat_map(functions).take(MAX_FRAMES + 1).collect();
    let more = if all.len() > MAX_FRAMES { " < ..." } else { "" };
    format!("{}{more}", all[..all.len().min(MAX_FRAMES)].join(" < "))
}

/// The functions of one frame, innermost first. There are several if the compiler has put some into
/// their caller; DWARF tells them apart.
fn functions(frame: &FrameInfo) -> Vec<String> {
    let lines = frame.symbols().iter().filter_map(|symbol| {
        let name = symbol.name().map_or_else(|| name_of(frame), demangled);
        Some(format!("{name} ({}:{})", path(symbol.file()?), symbol.line()?))
    });
    let lines: Vec<String> = lines.take(MAX_FRAMES + 1).collect();
    if !lines.is_empty() {
        return lines;
    }
    let at = frame.func_offset().map(|offset| format!("+{offset:#x}")).unwrap_or_default();
    vec![format!("{}{at}", name_of(frame))]
}

/// The name of a frame's function, or its number if it has none.
pub(super) fn name_of(frame: &FrameInfo) -> String {
    frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), demangled)
}

/// How many components of a file's path a line shows: `src/lib.rs` with its project's name.
const MAX_COMPONENTS: usize = 3;

/// The end of a file's path. Compilers write whole paths of the machine that they ran on.
fn path(path: &str) -> String {
    let begin = path.rmatch_indices('/').nth(MAX_COMPONENTS - 1).map_or(0, |(at, _)| at + 1);
    one_line_within(&path[begin..], MAX_NAME)
}

/// The longest name of a function in a line, in bytes.
const MAX_NAME: usize = 100;

/// The name of a function, demangled if it is Rust's. A short name can stand for a very long one,
/// so demangling stops when enough is known.
fn demangled(name: &str) -> String {
    let mut start = Start(String::new());
    let _ = write!(start, "{:#}", rustc_demangle::demangle(name));
    one_line_within(&start.0, MAX_NAME)
}

/// The start of a text. Writing ends when there is more of it than a line shows.
struct Start(String);

impl std::fmt::Write for Start {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let left = (MAX_NAME + 1).saturating_sub(self.0.len());
        self.0.push_str(&text[..text.floor_char_boundary(left)]);
        if text.len() > left { Err(std::fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_demangled_as_far_as_it_is_shown() {
        assert_eq!(demangled("_ZN3foo3barE"), "foo::bar");
        assert_eq!(demangled("a\nb"), "a\\nb");
        assert_eq!(demangled(&"x".repeat(1000)), format!("{}...", "x".repeat(MAX_NAME)));
        // Each level of the tuple is twice the one before: 2^100 elements.
        let mut doubles = String::from("_RIC0");
        let mut last = "u".to_string();
        for _ in 0..100 {
            let at = doubles.len() - 2;
            doubles.push_str(&format!("T{last}"));
            last = format!("B{}_", base_62(at));
            doubles.push_str(&format!("{last}E"));
        }
        doubles.push('E');
        assert!(demangled(&doubles).len() <= MAX_NAME + 3);
    }

    #[test]
    fn a_path_is_shown_with_its_last_components() {
        assert_eq!(path("/home/me/filters/mine/src/lib.rs"), "mine/src/lib.rs");
        assert_eq!(path("mine/src/lib.rs"), "mine/src/lib.rs");
        assert_eq!(path("lib\n.rs"), "lib\\n.rs");
    }

    fn base_62(n: usize) -> String {
        let digits: Vec<u8> = (b'0'..=b'9').chain(b'a'..=b'z').chain(b'A'..=b'Z').collect();
        if n == 0 {
            return String::new();
        }
        let mut n = n - 1;
        let mut text = Vec::new();
        loop {
            text.push(digits[n % 62]);
            n /= 62;
            if n == 0 {
                break;
            }
        }
        text.reverse();
        String::from_utf8(text).unwrap()
    }
}
