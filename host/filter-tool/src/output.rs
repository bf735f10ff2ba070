//! Lines on standard output and standard error.

use std::io::Write as _;
use std::sync::OnceLock;

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
