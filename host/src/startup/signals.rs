//! The signals that end the server.

use rbdkit_plugin_api::ConfigError;
use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Receives SIGTERM, SIGINT, SIGQUIT and SIGHUP from its creation on. Rust's runtime ignores
/// SIGPIPE.
pub struct Signals {
    term: Stream,
    int: Stream,
    quit: Stream,
    hup: Stream,
}

impl Signals {
    /// Has to be called inside a runtime, before the first socket exists, so that no later signal
    /// is lost.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new() -> Result<Signals, ConfigError> {
        let stream = |kind| signal(kind).map_err(|error| ConfigError::new(format!("cannot wait for signals: {error}")));
        Ok(Signals {
            term: stream(SignalKind::terminate())?,
            int: stream(SignalKind::interrupt())?,
            quit: stream(SignalKind::quit())?,
            hup: stream(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. The future may be dropped and created again.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::TERM,
            _ = self.int.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.hup.recv() => Signal::HUP,
        }
    }
}
