//! Runs the shell commands that the operator gave in parameters of one filter.
//!
//! A confined server starts no programs, so a helper process of the filter does
//! ([`rbdkit_launcher`]). A place belongs to a run until its process group has ended. So a guest
//! whose client leaves again and again has no more programs than its limit.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_launcher::{Finished, Launcher, Order, RunError, RunLimits, SHELL};
use rbdkit_plugin_api::{Abandoned, Errno};
use tokio::sync::Semaphore;

use super::limits::FilterLimits;
use super::log::{GuestLog, Level};

/// The most bytes of standard output, by the contract.
pub(crate) const MAX_OUTPUT: usize = 64 << 10;

/// The most lines of a run's standard error that go to the log.
const MAX_LINES: usize = 20;

/// The commands of one filter.
pub(crate) struct Scripts {
    launcher: Launcher,
    /// Whether there are commands. Without them the filter needs no helper.
    has_commands: bool,
    places: Arc<Semaphore>,
    time: Duration,
}

impl Scripts {
    /// The commands of a filter.
    pub(super) fn new(commands: &[OsString], limits: &FilterLimits) -> Arc<Scripts> {
        Arc::new(Scripts {
            launcher: Launcher::new(SHELL.0, SHELL.1, commands.to_vec()),
            has_commands: !commands.is_empty(),
            places: Arc::new(Semaphore::new(limits.scripts as usize)),
            time: limits.script_time,
        })
    }

    /// Starts the helper process, if there are commands. After this, the server may be confined.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub(crate) fn move_out(&self) -> io::Result<()> {
        if self.has_commands { self.launcher.move_out().map(drop) } else { Ok(()) }
    }

    /// Runs a command, once it has a place. `param` is its parameter, for messages. Dropping the
    /// future ends the command.
    ///
    /// # Errors
    /// Those of the contract's `scripts.run`.
    pub(crate) async fn run(
        self: Arc<Self>,
        param: &str,
        order: Order,
        log: &GuestLog,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Errno::Eshutdown)?;
        let (abandoned, waiting) = Abandoned::new().map_err(|_| Errno::Eio)?;
        let scripts = Arc::clone(&self);
        let run = tokio::task::spawn_blocking(move || {
            let limits = RunLimits { output: MAX_OUTPUT, time: scripts.time };
            let result = scripts.launcher.run_and_end("the script", &order, limits, &abandoned);
            drop(place);
            result
        });
        let result = run.await.map_err(|_| Errno::Eio)?;
        drop(waiting);
        let Finished { status, output, errors } = result.map_err(|error| {
            log.write(Level::Error, &format!("{param}: {error}"));
            match error {
                RunError::TooMuch => Errno::Eoverflow,
                RunError::TooLong(_) => Errno::Etimedout,
                RunError::Abandoned => Errno::Eshutdown,
                RunError::Io(_) => Errno::Eio,
            }
        })?;
        let errors = String::from_utf8_lossy(&errors);
        let lines = errors.lines().filter(|line| !line.trim().is_empty());
        lines.take(MAX_LINES).for_each(|line| log.write(Level::Warn, &format!("{param}: {line}")));
        Ok((code(status), output))
    }
}

/// A status as a shell shows it.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
