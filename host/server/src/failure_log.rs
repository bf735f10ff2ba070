//! The log lines about a connection's failed requests.
//!
//! A client that keeps sending failing requests gets its errors at full speed. The log gets the
//! first lines at once, then a few each second with the number of lines that were left out. So a
//! client cannot fill a disk with log lines. With `-v` every line is logged.

use rbdkit_plugin_api::rate::Rate;

/// Lines of one connection that may be logged at once.
const BURST: u32 = 100;

/// Lines of one connection that may be logged each second after the burst.
const PER_SECOND: u32 = 5;

/// Writes a connection's failures to the log, at a limited rate.
pub(super) struct FailureLog {
    connection: u64,
    rate: Rate,
}

impl FailureLog {
    /// A log for the connection with this number.
    pub fn new(connection: u64) -> FailureLog {
        FailureLog { connection, rate: Rate::new(PER_SECOND, BURST) }
    }

    /// Logs the line, or counts it.
    pub fn log(&self, line: impl FnOnce() -> String) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::error!("{}", line());
        } else if let Some(dropped) = self.rate.admit() {
            self.log_count(dropped);
            tracing::error!("{}", line());
        }
    }

    fn log_count(&self, dropped: u64) {
        if dropped > 0 {
            tracing::error!("connection {}: {dropped} more requests failed", self.connection);
        }
    }
}

impl Drop for FailureLog {
    fn drop(&mut self) {
        self.log_count(self.rate.take_dropped());
    }
}
