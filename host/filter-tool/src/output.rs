//! Lines on standard output and standard error.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a line could not be written to standard output.
static UNSAID: OnceLock<std::io::Error> = OnceLock::new();

/// Writes a line to standard output. A reader that stops early (`| head`) is no error.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::line(format_args!($($text)*))
    };
}

/// Writes a line. If that fails, [`unsaid`] says why at the end.
pub fn line(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = UNSAID.set(error);
    }
}

/// Why not all lines were written.
pub fn unsaid() -> Option<&'static std::io::Error> {
    UNSAID.get()
}

/// Prints an error as one line, even if a file's name or a component's text has control characters.
pub fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "rbdkit-filter: error: {}", rbdkit_plugin_api::text::one_line(what));
}

/// Prints a line that belongs to an error.
pub fn note(what: &str) {
    let _ = writeln!(std::io::stderr(), "{}", rbdkit_plugin_api::text::one_line(what));
}

/// Whether log lines are dropped.
static LOG_IS_OFF: AtomicBool = AtomicBool::new(false);

/// Where the filter's log lines go: standard error, or nowhere.
pub fn log() -> Box<dyn std::io::Write> {
    if LOG_IS_OFF.load(Ordering::Relaxed) { Box::new(std::io::sink()) } else { Box::new(std::io::stderr()) }
}

/// Runs something that repeats faults whose log lines were shown already.
pub async fn without_log<T>(work: impl Future<Output = T>) -> T {
    LOG_IS_OFF.store(true, Ordering::Relaxed);
    let result = work.await;
    LOG_IS_OFF.store(false, Ordering::Relaxed);
    result
}
