//! Lines on standard output and standard error.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rbdkit_plugin_api::lock;

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

/// The log lines since they are captured. None: they are not captured.
static CAPTURED: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// The most log lines that are captured.
const MAX_CAPTURED: usize = 1000;

/// Where the filter's log lines go: standard error, a list, or nowhere.
pub fn log() -> Box<dyn std::io::Write> {
    if LOG_IS_OFF.load(Ordering::Relaxed) {
        Box::new(std::io::sink())
    } else if lock(&CAPTURED).is_some() {
        Box::new(Capture)
    } else {
        Box::new(std::io::stderr())
    }
}

/// Adds lines to the list. Each log line is one write.
struct Capture;

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(lines) = &mut *lock(&CAPTURED)
            && lines.len() < MAX_CAPTURED
        {
            lines.push(String::from_utf8_lossy(bytes).trim_end().to_string());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps log lines for [`take_log`] from now on.
pub fn capture_log() {
    *lock(&CAPTURED) = Some(Vec::new());
}

/// The log lines since the last time.
pub fn take_log() -> Vec<String> {
    lock(&CAPTURED).as_mut().map(std::mem::take).unwrap_or_default()
}

/// The processor time of this thread, which other programs on the machine do not change.
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Runs something that repeats faults whose log lines were shown already.
pub async fn without_log<T>(work: impl Future<Output = T>) -> T {
    LOG_IS_OFF.store(true, Ordering::Relaxed);
    let result = work.await;
    LOG_IS_OFF.store(false, Ordering::Relaxed);
    result
}
