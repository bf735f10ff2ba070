//! `header-script` and `cookie-script`: the output of a command goes into every request. The
//! command runs again when its output is too old.
//!
//! A confined server starts no commands, so [`start`] runs in its helper process.

use std::ffi::OsString;
use std::io::{self, PipeWriter};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbdkit_launcher::{Finished, Launcher, Order, RunError, RunLimits, Started, shell, start_shell};
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{Abandoned, Errno, Error, Result, lock, run_blocking};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::config::Settings;
use crate::line::Line;
use crate::secret::Secret;

/// The longest output of a script in bytes, and the longest time until its end. A program that asks
/// a service for a token takes some seconds.
const LIMITS: RunLimits = RunLimits { output: 64 << 10, time: Duration::from_secs(120) };

/// The longest line of a script's standard error in a message, in bytes.
const MAX_LINE: usize = 400;

/// The most such lines in the log, for each run.
const MAX_LINES: usize = 20;

/// How often servers can have a script run again at once. After that they can once a second.
const MAX_REFUSALS: u32 = 10;

/// A command whose output is used until it is too old.
pub(crate) struct Script {
    /// The parameter, for messages.
    key: &'static str,
    launcher: Arc<Launcher>,
    /// Its place among the launcher's scripts.
    which: u8,
    /// Limits how often servers that refuse every token can have it run again.
    refusals: Rate,
    /// The age at which the output is too old; zero: never.
    renew: Duration,
    last: Arc<Mutex<Last>>,
    /// Set when the server stops, by dropping the other end.
    stopped: Arc<Abandoned>,
    running: std::sync::Mutex<Option<PipeWriter>>,
}

#[derive(Default)]
struct Last {
    /// How often it has run.
    iteration: u64,
    output: Option<Output>,
    at: Option<Instant>,
}

/// What a script printed.
#[derive(Clone)]
pub(crate) struct Output {
    /// Its header lines.
    pub(crate) headers: Arc<[Line]>,
    /// Its first line.
    pub(crate) cookie: Option<Arc<Secret>>,
    /// The number of the run.
    iteration: u64,
}

/// The words that [`start`] takes: the URL, the header script and the cookie script. A script that
/// was not given is an empty word.
pub(crate) fn words(settings: &Settings) -> Vec<OsString> {
    let scripts = [&settings.header_script, &settings.cookie_script].map(|script| script.clone().unwrap_or_default());
    std::iter::once(OsString::from(&settings.url)).chain(scripts).collect()
}

/// The place of the header script among the launcher's scripts.
pub(crate) const HEADER_SCRIPT: u8 = 0;

/// The place of the cookie script among the launcher's scripts.
pub(crate) const COOKIE_SCRIPT: u8 = 1;

/// Starts a script. The first word is the URL, the others are the scripts. The number of the order
/// is that of the run. The ends are the script's standard output and standard error.
pub(crate) fn start(words: &[OsString], order: &Order) -> io::Result<Started> {
    let (url, scripts) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let script = scripts.get(usize::from(order.which)).ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = shell();
    command.env("url", url).env("iteration", order.number.to_string());
    start_shell(command, script)
}

impl Script {
    /// The script of the parameter `key`, at the place `which` among the launcher's scripts.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn new(key: &'static str, launcher: Arc<Launcher>, which: u8, renew: Duration) -> io::Result<Script> {
        let (stopped, running) = Abandoned::new()?;
        let (stopped, running) = (Arc::new(stopped), std::sync::Mutex::new(Some(running)));
        let refusals = Rate::new(1, MAX_REFUSALS);
        Ok(Script { key, launcher, which, refusals, renew, last: Arc::default(), stopped, running })
    }

    /// The server stops: a script that runs is ended, and later ones as soon as they start.
    pub(crate) fn stop(&self) {
        *lock(&self.running) = None;
    }

    /// The last output. Runs the script if it has not run yet or if its output is too old; other
    /// requests wait meanwhile.
    pub(crate) async fn output(&self) -> Result<Output> {
        let last = Arc::clone(&self.last).lock_owned().await;
        let old = !self.renew.is_zero() && last.at.is_some_and(|at| at.elapsed() >= self.renew);
        match last.output.clone().filter(|_| !old) {
            Some(output) => Ok(output),
            None => self.run(last).await,
        }
    }

    /// An output that is newer than `refused`, which the server did not accept. None if servers
    /// have refused so many that the script is not run again now.
    pub(crate) async fn newer(&self, refused: &Output) -> Result<Option<Output>> {
        let last = Arc::clone(&self.last).lock_owned().await;
        match last.output.clone().filter(|output| output.iteration > refused.iteration) {
            Some(output) => Ok(Some(output)),
            None if self.refusals.admit().is_none() => Ok(None),
            None => self.run(last).await.map(Some),
        }
    }

    /// Runs the script. The run keeps the lock until it has ended, even if the request that began
    /// it is dropped: so a script that hangs runs only once.
    async fn run(&self, mut last: OwnedMutexGuard<Last>) -> Result<Output> {
        let iteration = last.iteration;
        let launcher = Arc::clone(&self.launcher);
        let order = Order { which: self.which, number: iteration, ..Order::default() };
        let (key, stopped) = (self.key, Arc::clone(&self.stopped));
        let run = tokio::spawn(async move {
            let printed = run_blocking(move || {
                print(key, &launcher, &order, &stopped).map_err(|error| match error {
                    ScriptError::Run(RunError::Abandoned) => {
                        Error::new(Errno::Eshutdown, format!("{key}: the server stops"))
                    }
                    error => Error::new(Errno::Eio, format!("{key}: {error}")),
                })
            });
            let lines = printed.await?;
            let cookie = lines.first().cloned().map(Arc::new);
            let output = Output { headers: lines.into_iter().filter_map(Line::new).collect(), cookie, iteration };
            *last = Last { iteration: iteration + 1, output: Some(output.clone()), at: Some(Instant::now()) };
            Ok(output)
        });
        run.await.unwrap_or_else(|_| Err(Errno::Eshutdown.into()))
    }
}

/// Why what a script printed cannot be used.
#[derive(Debug, thiserror::Error)]
enum ScriptError {
    #[error("{0}")]
    Run(RunError),
    #[error("the script failed ({0})")]
    Failed(ExitStatus),
    #[error("the script failed ({0}): {1}")]
    FailedWith(ExitStatus, String),
    #[error("line {0} of its output contains control characters")]
    ControlCharacters(usize),
}

/// Runs a script and returns the lines of its output that are not empty. What it says on standard
/// error goes into the error and the log.
fn print(key: &str, launcher: &Launcher, order: &Order, stopped: &Abandoned) -> Result<Vec<Secret>, ScriptError> {
    let finished = launcher.run("curl: the script", order, LIMITS, stopped).map_err(ScriptError::Run)?;
    let Finished { status, output: text, errors } = finished;
    let errors = String::from_utf8_lossy(&errors);
    let mut said = errors.lines().filter(|line| !line.trim().is_empty()).map(|line| one_line_within(line, MAX_LINE));
    if !status.success() {
        let first = said.next();
        said.take(MAX_LINES).for_each(|line| tracing::error!("curl: {key}: {line}"));
        return Err(first.map_or(ScriptError::Failed(status), |line| ScriptError::FailedWith(status, line)));
    }
    said.take(MAX_LINES).for_each(|line| tracing::warn!("curl: {key}: {line}"));
    let mut lines = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let wrong = || ScriptError::ControlCharacters(number + 1);
        if line.iter().any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 0x7f) {
            return Err(wrong());
        }
        if !line.is_empty() {
            lines.push(Secret::new(line).map_err(|_| wrong())?);
        }
    }
    Ok(lines)
}
