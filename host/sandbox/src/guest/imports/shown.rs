//! How arguments and answers of imports are shown in a record.

use wasmtime::Result;

use crate::connection::bindings::host;
use crate::connection::bindings::host::types as wit;
use crate::connection::import_error::ImportError;

/// An argument with its name in the contract.
pub(super) fn argument(name: &str, value: &impl Shown) -> String {
    format!("{}={}", name.replace('_', "-"), value.shown())
}

/// How a value is shown.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

macro_rules! shown_as_debug {
    ($($type:ty),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                format!("{self:?}")
            }
        })*
    };
}

shown_as_debug!(
    u8,
    u32,
    u64,
    i64,
    bool,
    Option<u32>,
    Option<u64>,
    Option<String>,
    String,
    (i64, i64, i64),
    host::client::Peer,
    host::maps::Run,
    host::slots::Words,
    wit::BlockSizes,
    wit::Capabilities
);

/// An enumeration by its word in the contract.
macro_rules! shown_as_word {
    ($($type:ty),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                let path = format!("{self:?}");
                let word = path.rsplit("::").next().unwrap_or_default();
                let mut shown = String::new();
                for letter in word.chars() {
                    if letter.is_ascii_uppercase() && !shown.is_empty() {
                        shown.push('-');
                    }
                    shown.push(letter.to_ascii_lowercase());
                }
                shown
            }
        })*
    };
}

shown_as_word!(wit::Scope, wit::ThreadModel, host::locks::Mode, host::maps::When, host::client::Ending);

impl Shown for wit::CommandFlags {
    fn shown(&self) -> String {
        flags(*self)
    }
}

/// The flags of a command by their names in the contract.
pub(crate) fn flags(set: wit::CommandFlags) -> String {
    let names = [
        (wit::CommandFlags::FUA, "fua"),
        (wit::CommandFlags::MAY_TRIM, "may-trim"),
        (wit::CommandFlags::FAST_ZERO, "fast-zero"),
        (wit::CommandFlags::REQ_ONE, "req-one"),
    ];
    let set: Vec<&str> = names.iter().filter(|(flag, _)| set.contains(*flag)).map(|(_, name)| *name).collect();
    if set.is_empty() { "none".to_string() } else { set.join("+") }
}

impl Shown for () {
    fn shown(&self) -> String {
        "ok".to_string()
    }
}

/// How many bytes of a payload are shown.
const FIRST_BYTES: usize = 16;

impl Shown for Vec<u8> {
    fn shown(&self) -> String {
        payload(self)
    }
}

/// A payload: its length and first bytes.
pub(super) fn payload(bytes: &[u8]) -> String {
    let first: Vec<String> = bytes.iter().take(FIRST_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > FIRST_BYTES { " ..." } else { "" };
    format!("[{} bytes: {}{more}]", bytes.len(), first.join(" "))
}

/// How many items of a list are shown.
const FIRST_ITEMS: usize = 4;

pub(super) fn list<T>(items: &[T], shown: impl Fn(&T) -> String) -> String {
    let first: Vec<String> = items.iter().take(FIRST_ITEMS).map(shown).collect();
    let more = if items.len() > FIRST_ITEMS { ", ..." } else { "" };
    format!("[{} items: {}{more}]", items.len(), first.join(", "))
}

impl Shown for Vec<wit::Extent> {
    fn shown(&self) -> String {
        list(self, |extent| format!("{extent:?}"))
    }
}

impl Shown for Vec<(u64, u64)> {
    fn shown(&self) -> String {
        list(self, |pair| format!("{pair:?}"))
    }
}

impl Shown for Vec<(String, String)> {
    fn shown(&self) -> String {
        list(self, |(name, value)| format!("{name}={value:?}"))
    }
}

/// The exit status and the output of a script.
impl Shown for (i32, Vec<u8>) {
    fn shown(&self) -> String {
        format!("status {}, {}", self.0, payload(&self.1))
    }
}

impl Shown for Vec<wit::ExportEntry> {
    fn shown(&self) -> String {
        list(self, |entry| format!("{entry:?}"))
    }
}

/// How an answer is shown.
pub(super) fn answer<T: Shown, E: Failure>(answer: &Result<T, E>) -> String {
    match answer {
        Ok(value) => value.shown(),
        Err(error) => error.shown(),
    }
}

/// How a failure is shown.
pub(super) trait Failure {
    fn shown(&self) -> String;
}

impl Failure for wasmtime::Error {
    fn shown(&self) -> String {
        format!("ends the guest: {}", self.root_cause())
    }
}

impl Failure for ImportError {
    fn shown(&self) -> String {
        match self {
            ImportError::Errno(errno) => errno.name().to_string(),
            ImportError::Trap(error) => error.shown(),
        }
    }
}
