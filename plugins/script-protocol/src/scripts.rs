//! Chooses the program for a method, and interprets its exit status and error output.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io, thread};

use rbdkit_plugin_api::{ConfigError, Errno, Error, StopScope, ThreadModel, lock};
use rustix::io::Errno as Os;

use crate::process::{self, Ended, Leash, Output};
use crate::stop::Stop;
use crate::tmpdir::ScriptDir;

/// What answers a method.
#[derive(Debug)]
pub enum Script {
    /// A program.
    Program {
        /// Where it is.
        path: PathBuf,
        /// Whether the shell runs it, because it has no `#!` line. Known from the beginning, or
        /// since the kernel refused to run it.
        through_shell: AtomicBool,
    },
    /// No program: the method always succeeds and prints this.
    Prints(&'static str),
    /// No program: every method is missing.
    Missing,
}

impl Script {
    /// An executable file; the kernel decides how it is run.
    pub fn program(path: PathBuf) -> Script {
        Script::Program { path, through_shell: AtomicBool::new(false) }
    }
}

/// The answer of a method that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit status 0.
    Done,
    /// Exit status 2: there is no such method.
    Missing,
    /// Exit status 3.
    False,
}

/// A method that failed: the error number for the client, and the line for the log or the user.
#[derive(Debug)]
pub struct Failure {
    errno: Errno,
    message: String,
}

impl Failure {
    /// With a message that names the script.
    pub fn new(errno: Errno, message: impl Into<String>) -> Failure {
        Failure { errno, message: message.into() }
    }

    fn io(label: &str, error: &io::Error) -> Failure {
        let errno = error.raw_os_error().map_or(Errno::Eio, Errno::from_raw);
        Failure::new(errno, format!("{label}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::new(failure.errno, failure.message)
    }
}

impl From<Failure> for ConfigError {
    fn from(failure: Failure) -> ConfigError {
        ConfigError::new(failure.message)
    }
}

/// The programs of one plugin, and the directory they share.
#[derive(Debug)]
pub struct Scripts {
    plugin: &'static str,
    by_method: BTreeMap<String, Script>,
    otherwise: Script,
    tmpdir: ScriptDir,
    stop: Stop,
    /// Held while a program runs, if only one may run at a time.
    alone: Option<Mutex<()>>,
}

impl Scripts {
    /// Makes the directory. Every method is missing at first.
    pub fn new(plugin: &'static str) -> Result<Scripts, ConfigError> {
        let tmpdir = ScriptDir::new()
            .map_err(|error| ConfigError::new(format!("{plugin}: cannot make a temporary directory: {error}")))?;
        let stop = Stop::new().map_err(|error| ConfigError::new(format!("{plugin}: {error}")))?;
        Ok(Scripts {
            plugin,
            stop,
            by_method: BTreeMap::new(),
            otherwise: Script::Missing,
            tmpdir,
            alone: Some(Mutex::new(())),
        })
    }

    /// Writes a program into the directory.
    pub fn write(&self, name: &str, text: &[u8]) -> Result<Script, ConfigError> {
        let path = self
            .tmpdir
            .add_script(name, text)
            .map_err(|error| ConfigError::new(format!("{}: cannot write the script {name}: {error}", self.plugin)))?;
        Ok(Script::Program { path, through_shell: AtomicBool::new(!text.starts_with(b"#!")) })
    }

    /// Sets the script of all methods that have none of their own.
    pub fn set_otherwise(&mut self, script: Script) {
        self.otherwise = script;
    }

    /// Sets the script of one method.
    pub fn set(&mut self, method: &str, script: Script) {
        self.by_method.insert(method.to_string(), script);
    }

    /// Whether the method has a script of its own.
    pub fn has(&self, method: &str) -> bool {
        self.by_method.contains_key(method)
    }

    /// Lets several programs run at the same time if the model allows it. Before this call only one
    /// runs at a time.
    pub(crate) fn set_thread_model(&mut self, model: ThreadModel) {
        let alone = matches!(model, ThreadModel::SerializeAllRequests | ThreadModel::SerializeConnections);
        self.alone = alone.then(|| Mutex::new(()));
    }

    fn script(&self, method: &str) -> &Script {
        self.by_method.get(method).unwrap_or(&self.otherwise)
    }

    /// What messages about a method begin with: its program, or the plugin if there is none.
    pub(crate) fn label(&self, method: &str) -> String {
        match self.script(method) {
            Script::Program { path, .. } => path.display().to_string(),
            Script::Prints(_) | Script::Missing => self.plugin.to_string(),
        }
    }

    /// A failure of a method that is the script's own fault.
    pub(crate) fn fault(&self, method: &str, what: impl fmt::Display) -> Failure {
        Failure::new(Errno::Eio, format!("{}: {what}", self.label(method)))
    }

    /// Calls a method and discards its output.
    pub fn call(&self, method: &str, args: &[&OsStr]) -> Result<Answer, Failure> {
        self.invoke(method, args, &[], &mut Output::Ignored)
    }

    /// As [`Scripts::call`], for methods that must not answer "false".
    pub(crate) fn call_plain(&self, method: &str, args: &[&OsStr]) -> Result<Answer, Failure> {
        self.not_false(method, self.call(method, args)?)
    }

    /// Calls a method that reads `input`.
    pub(crate) fn call_with_input(&self, method: &str, args: &[&OsStr], input: &[u8]) -> Result<Answer, Failure> {
        let answer = self.invoke(method, args, input, &mut Output::Ignored)?;
        self.not_false(method, answer)
    }

    /// What a method prints; none if it is missing.
    pub fn read(&self, method: &str, args: &[&OsStr]) -> Result<Option<Vec<u8>>, Failure> {
        let mut output = Output::Text(Vec::new());
        let answer = self.invoke(method, args, &[], &mut output)?;
        match (self.not_false(method, answer)?, output) {
            (Answer::Done, Output::Text(text)) => Ok(Some(text)),
            _ => Ok(None),
        }
    }

    /// Fills all of `bytes` with what a method prints.
    pub(crate) fn read_into(&self, method: &str, args: &[&OsStr], bytes: &mut [u8]) -> Result<(), Failure> {
        let expected = bytes.len();
        let mut output = Output::Exact { bytes, received: 0 };
        let answer = self.invoke(method, args, &[], &mut output)?;
        if self.not_false(method, answer)? == Answer::Missing {
            return Err(self.fault(method, format!("the {method} method is required")));
        }
        match output {
            Output::Exact { received, .. } if received != expected as u64 => Err(self.fault(
                method,
                format!(
                    "incorrect amount of data read: expecting {expected} bytes but received {received} \
                    bytes from the script"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn not_false(&self, method: &str, answer: Answer) -> Result<Answer, Failure> {
        match answer {
            Answer::False => Err(self.fault(method, format!("{method} method returned unexpected code (3/false)"))),
            other => Ok(other),
        }
    }

    fn invoke(&self, method: &str, args: &[&OsStr], input: &[u8], output: &mut Output<'_>) -> Result<Answer, Failure> {
        let (path, through_shell) = match self.script(method) {
            Script::Missing => return Ok(Answer::Missing),
            Script::Prints(words) => {
                if let Output::Text(text) = output {
                    text.extend_from_slice(words.as_bytes());
                }
                return Ok(Answer::Done);
            }
            Script::Program { path, through_shell } => (path, through_shell),
        };
        let command = |shell: bool| {
            let mut command = if shell { Command::new("/bin/sh") } else { Command::new(path) };
            if shell {
                command.arg(path);
            }
            command.arg(method).args(args).env("tmpdir", self.tmpdir.path());
            command
        };
        let _alone = self.alone.as_ref().map(lock);
        let label = self.label(method);
        let leash = Leash { stop: &self.stop, ends_with: ends_with(method) };
        if leash.stop.refuses(leash.ends_with) {
            return Err(stopped(&label, method));
        }
        let mut shell = through_shell.load(Ordering::Relaxed);
        let mut tries = 0;
        let ended = loop {
            match process::run(&mut command(shell), input, output, leash) {
                // There is no `#!` line. Runs the shell, as execvp and nbdkit do.
                Err(error) if !shell && is(&error, Os::NOEXEC) => {
                    shell = true;
                    through_shell.store(true, Ordering::Relaxed);
                }
                // Another thread started a program while this one was being written. The child's
                // copy of the open file is closed as soon as it has executed its program.
                Err(error) if is(&error, Os::TXTBSY) && tries < 1000 => {
                    tries += 1;
                    #[expect(clippy::disallowed_methods, reason = "no event tells that another process has run exec")]
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(stopped(&label, method)),
                Err(error) => return Err(Failure::io(&label, &error)),
                Ok(ended) => break ended,
            }
        };
        tracing::debug!("completed: {label} {method}: {}", ended.status);
        judge(&label, method, &ended, output)
    }

    /// The server serves from now on.
    pub(crate) fn begin_serving(&self) {
        self.stop.begin_serving();
    }

    /// Ends the programs that `scope` names, for a server that stops.
    pub(crate) fn stop(&self, scope: StopScope) {
        self.stop.end(scope);
    }

    /// Calls the last method and removes the directory. Nobody can use errors any more.
    pub(crate) fn unload(&self) {
        if let Err(failure) = self.call("unload", &[]) {
            tracing::debug!("{failure}");
        }
        self.tmpdir.remove();
    }
}

fn is(error: &io::Error, os: Os) -> bool {
    error.raw_os_error() == Some(os.raw_os_error())
}

/// When a method ends early. A write that is under way may still succeed, and what the script does
/// at an end should not be cut short.
fn ends_with(method: &str) -> StopScope {
    match method {
        "pwrite" | "zero" | "trim" | "flush" | "close" | "unload" => StopScope::Everything,
        _ => StopScope::Reads,
    }
}

/// The error of a method that the server does not wait for.
fn stopped(label: &str, method: &str) -> Failure {
    Failure::new(Errno::Eshutdown, format!("{label}: {method}: the server stops"))
}

/// The meaning of an exit status.
fn judge(label: &str, method: &str, ended: &Ended, output: &Output<'_>) -> Result<Answer, Failure> {
    if ended.too_much {
        let what = match output {
            Output::Exact { bytes, received } => format!(
                "incorrect amount of data read: expecting {} bytes but received more than {received} bytes \
                    from the script",
                bytes.len()
            ),
            _ => format!("the {method} method printed too much"),
        };
        return Err(Failure::new(Errno::Eio, format!("{label}: {what}")));
    }
    match ended.status.code() {
        Some(0) => Ok(Answer::Done),
        Some(2) => Ok(Answer::Missing),
        Some(3) => Ok(Answer::False),
        Some(_) => Err(said(label, method, &ended.errors)),
        None => {
            let signal = ended.status.signal().unwrap_or(0);
            Err(Failure::new(Errno::Eio, format!("{label}: script terminated by signal {signal}")))
        }
    }
}

/// The errno names that a script may begin its error message with. Any other is EIO.
const ERRNO_NAMES: [(&str, Errno); 12] = [
    ("EPERM", Errno::Eperm),
    ("EIO", Errno::Eio),
    ("ENOMEM", Errno::Enomem),
    ("EINVAL", Errno::Einval),
    ("ENOSPC", Errno::Enospc),
    ("EOVERFLOW", Errno::Eoverflow),
    ("ESHUTDOWN", Errno::Eshutdown),
    ("ENOTSUP", Errno::Enotsup),
    ("EOPNOTSUPP", Errno::Enotsup),
    ("EROFS", Errno::Erofs),
    ("EDQUOT", Errno::Enospc),
    ("EFBIG", Errno::Enospc),
];

/// Reads `ERRNO message` from a failed script's standard error.
fn said(label: &str, method: &str, errors: &[u8]) -> Failure {
    let all = String::from_utf8_lossy(errors);
    let all = all.trim_end_matches('\n');
    if all.is_empty() {
        let what = "script exited with error, but did not print an error message on stderr";
        return Failure::new(Errno::Eio, format!("{label}: {what}"));
    }
    let word_end = all.find(|c: char| c.is_ascii_whitespace()).unwrap_or(all.len());
    let (word, rest) = all.split_at(word_end);
    let named = ERRNO_NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    let (errno, message) = match named {
        Some((_, errno)) => (*errno, rest.trim_start_matches(|c: char| c.is_ascii_whitespace())),
        None => (Errno::Eio, all),
    };
    if all.contains('\n') {
        tracing::debug!("{label}: {all}");
    }
    match message.lines().next().unwrap_or("") {
        "" => Failure::new(errno, format!("{label}: the {method} method failed")),
        first => Failure::new(errno, format!("{label}: {first}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(errors: &str) -> (Errno, String) {
        let failure = said("x", "pread", errors.as_bytes());
        (failure.errno, failure.message)
    }

    #[test]
    fn an_errno_name_at_the_beginning_is_taken_off_the_message() {
        assert_eq!(parsed("ENOSPC Out of space\n"), (Errno::Enospc, "x: Out of space".into()));
        assert_eq!(parsed("enospc   hello\nsecond line\n"), (Errno::Enospc, "x: hello".into()));
        assert_eq!(parsed("EOPNOTSUPP"), (Errno::Enotsup, "x: the pread method failed".into()));
        assert_eq!(parsed("EDQUOT\tquota"), (Errno::Enospc, "x: quota".into()));
    }

    #[test]
    fn anything_else_is_eio_and_the_whole_first_line() {
        assert_eq!(parsed("ENOSPCX hello"), (Errno::Eio, "x: ENOSPCX hello".into()));
        assert_eq!(parsed("  ENOSPC hello"), (Errno::Eio, "x:   ENOSPC hello".into()));
        assert_eq!(parsed("ENOENT no such"), (Errno::Eio, "x: ENOENT no such".into()));
        let silent = "x: script exited with error, but did not print an error message on stderr";
        assert_eq!(parsed("\n\n"), (Errno::Eio, silent.into()));
    }
}
