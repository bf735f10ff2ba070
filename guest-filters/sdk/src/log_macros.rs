//! Macros for the log, with the arguments of `format!`.

use std::fmt::Arguments;

/// Writes a line. A text without arguments needs no memory.
#[doc(hidden)]
pub fn write(level: fn(&str), text: Arguments<'_>) {
    match text.as_str() {
        Some(text) => level(text),
        None => level(&text.to_string()),
    }
}

/// Writes a line to the server's log: something failed. The arguments are those of `format!`.
#[macro_export]
macro_rules! error {
    ($($argument:tt)+) => { $crate::__log($crate::log::error, ::std::format_args!($($argument)+)) };
}

/// Writes a line to the server's log: something is not as it should be. The arguments are those of
/// `format!`.
#[macro_export]
macro_rules! warn {
    ($($argument:tt)+) => { $crate::__log($crate::log::warn, ::std::format_args!($($argument)+)) };
}

/// Writes a line to the server's log that the operator should see although nothing is wrong. The
/// arguments are those of `format!`.
#[macro_export]
macro_rules! info {
    ($($argument:tt)+) => { $crate::__log($crate::log::info, ::std::format_args!($($argument)+)) };
}

/// Writes a line to the server's log, which appears only with `-v`. The arguments are those of
/// `format!`.
///
/// The contract does not tell a filter whether the server runs with `-v`. So the text is made and
/// handed to the host each time. Do not use it for each request of a filter that has to be fast.
#[macro_export]
macro_rules! debug {
    ($($argument:tt)+) => { $crate::__log($crate::log::debug, ::std::format_args!($($argument)+)) };
}
