//! `header-script` and `cookie-script`: the output of a command goes into every request. The
//! command runs again when its output is too old.
//!
//! A confined server starts no commands, so [`start`] runs in its helper process.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbdkit_launcher::{Interrupt, Launcher, Order, Started};
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::{Errno, Error, Result, run_blocking};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::config::Settings;
use crate::line::Line;
use crate::secret::Secret;

/// The longest output of a script, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;

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
    /// Raised when the server stops.
    interrupt: Arc<Interrupt>,
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
/// is that of the run. The end is the script's standard output.
pub(crate) fn start(words: &[OsString], order: Order) -> io::Result<Started> {
    let (url, scripts) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let script = scripts.get(usize::from(order.which)).ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).env("url", url).env("iteration", order.number.to_string());
    // An end of the script reaches what it has started, and Control-C reaches only the server.
    command.process_group(0);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let ends = child.stdout.take().map(OwnedFd::from).into_iter().collect();
    Ok(Started { child, ends, keep: None })
}

impl Script {
    /// The script of the parameter `key`, at the place `which` among the launcher's scripts.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn new(key: &'static str, launcher: Arc<Launcher>, which: u8, renew: Duration) -> io::Result<Script> {
        let (interrupt, refusals) = (Arc::new(Interrupt::new()?), Rate::new(1, MAX_REFUSALS));
        Ok(Script { key, launcher, which, refusals, renew, last: Arc::default(), interrupt })
    }

    /// The server stops: a script that runs is ended, and later ones as soon as they start.
    pub(crate) fn stop(&self) {
        self.interrupt.raise();
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
        let order = Order { which: self.which, number: iteration };
        let (key, interrupt) = (self.key, Arc::clone(&self.interrupt));
        let run = tokio::spawn(async move {
            let printed = run_blocking(move || {
                print(&launcher, order, &interrupt).map_err(|error| match error {
                    ScriptError::Io(error) if error.kind() == io::ErrorKind::Interrupted => {
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
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the script failed ({0})")]
    Failed(ExitStatus),
    #[error("the script prints too much")]
    TooMuch,
    #[error("line {0} of its output contains control characters")]
    ControlCharacters(usize),
}

/// Runs a script and returns the lines of its output that are not empty.
fn print(launcher: &Launcher, order: Order, interrupt: &Interrupt) -> Result<Vec<Secret>, ScriptError> {
    let (ends, program) = launcher.launch("curl: the script", order)?;
    let mut text = Vec::new();
    for end in ends {
        text.extend(interrupt.read_to_end(end.into(), MAX_OUTPUT as usize + 1)?);
    }
    let status = program.wait_interruptibly(interrupt)?;
    if !status.success() {
        return Err(ScriptError::Failed(status));
    }
    if text.len() as u64 > MAX_OUTPUT {
        return Err(ScriptError::TooMuch);
    }
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
