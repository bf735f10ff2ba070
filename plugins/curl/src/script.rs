//! `header-script` and `cookie-script`: what a command prints goes into every request, and the command runs again when that has become old.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Errno, Error, Result, run_blocking};
use tokio::sync::Mutex;

/// The longest output that is taken, in bytes.
const LONGEST_OUTPUT: u64 = 64 << 10;

/// A command whose output is used until it is old.
pub(crate) struct Script {
    /// The parameter, for messages.
    key: &'static str,
    command: String,
    url: String,
    /// Zero: the output never becomes old by itself.
    renew: Duration,
    last: Mutex<Last>,
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
    pub(crate) lines: Arc<Vec<String>>,
    /// Which run it is of.
    iteration: u64,
}

impl Script {
    pub(crate) fn new(key: &'static str, command: &str, url: &str, renew: Duration) -> Script {
        Script { key, command: command.into(), url: url.into(), renew, last: Mutex::default() }
    }

    /// What it printed last; runs it if it never did or what it printed is old. Meanwhile other requests wait for that too.
    pub(crate) async fn output(&self) -> Result<Output> {
        let mut last = self.last.lock().await;
        let old = !self.renew.is_zero() && last.at.is_some_and(|at| at.elapsed() >= self.renew);
        match last.output.clone().filter(|_| !old) {
            Some(output) => Ok(output),
            None => self.run(&mut last).await,
        }
    }

    /// Something newer than `refused`, which the server did not accept.
    pub(crate) async fn newer(&self, refused: &Output) -> Result<Output> {
        let mut last = self.last.lock().await;
        match last.output.clone().filter(|output| output.iteration > refused.iteration) {
            Some(output) => Ok(output),
            None => self.run(&mut last).await,
        }
    }

    async fn run(&self, last: &mut Last) -> Result<Output> {
        let iteration = last.iteration;
        let (command, url) = (self.command.clone(), self.url.clone());
        let printed = run_blocking(move || Ok(print(&command, &url, iteration)?)).await;
        let text = printed.map_err(|error| {
            Error::new(Errno::Eio, format!("curl: {}: {}", self.key, error.context().unwrap_or("failed")))
        })?;
        let lines = text.lines().filter(|line| !line.is_empty()).map(str::to_string).collect();
        let output = Output { lines: Arc::new(lines), iteration };
        *last = Last { iteration: iteration + 1, output: Some(output.clone()), at: Some(Instant::now()) };
        Ok(output)
    }
}

fn print(command: &str, url: &str, iteration: u64) -> std::io::Result<String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("url", url)
        .env("iteration", iteration.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LONGEST_OUTPUT + 1).read_to_end(&mut text)?;
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(std::io::Error::other(format!("the script failed ({status})")));
    }
    if text.len() as u64 > LONGEST_OUTPUT {
        return Err(std::io::Error::other("the script prints too much"));
    }
    let text =
        String::from_utf8(text).map_err(|_| std::io::Error::other("the script prints what is not UTF-8 text"))?;
    match text.bytes().any(|byte| byte < b' ' && !matches!(byte, b'\n' | b'\r' | b'\t') || byte == 0x7f) {
        true => Err(std::io::Error::other("the script prints control characters")),
        false => Ok(text),
    }
}
