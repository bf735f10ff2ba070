//! Chooses the program for a method, and interprets its exit status and error output.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io, thread};

use rbdkit_plugin_api::{Abandoned, Client, ConfigError, Ending, Errno, Error, Shutdown, StopScope, ThreadModel, lock};
use rustix::io::Errno as Os;

use crate::process::{self, Conditions, Ended, Output, Problem};
use crate::running::Running;
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

    /// A file that `/bin/sh` runs, whatever its first line says.
    pub fn for_shell(path: PathBuf) -> Script {
        Script::Program { path, through_shell: AtomicBool::new(true) }
    }
}

/// Names the running script to what it starts. If it is this program with the same script again,
/// each process would start another one without end ([`is_running_script`]).
const RUNNING_SCRIPT: &str = "RBDKIT_RUNNING_SCRIPT";

/// Whether this process was started by a method of the script in this file.
pub fn is_running_script(path: &Path) -> bool {
    std::env::var_os(RUNNING_SCRIPT).is_some_and(|running| running == path)
}

/// The answer of a method that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit status 0; or 4 or 7, which also ask the server for something.
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
    /// Held while a program runs, if only one may run at a time.
    alone: Option<Mutex<()>>,
    running: Running,
    /// What ends the server, once the configuration is complete.
    shutdown: Option<Shutdown>,
    /// A script has asked for the server's end.
    wants_shutdown: AtomicBool,
}

impl Scripts {
    /// Makes the directory. Every method is missing at first.
    pub fn new(plugin: &'static str) -> Result<Scripts, ConfigError> {
        let tmpdir = ScriptDir::new()
            .map_err(|error| ConfigError::new(format!("{plugin}: cannot make a temporary directory: {error}")))?;
        Ok(Scripts {
            plugin,
            by_method: BTreeMap::new(),
            otherwise: Script::Missing,
            tmpdir,
            alone: Some(Mutex::new(())),
            running: Running::default(),
            shutdown: None,
            wants_shutdown: AtomicBool::new(false),
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

    /// Lets scripts end the server. One that asked for it before does so now.
    pub(crate) fn set_shutdown(&mut self, shutdown: Shutdown) {
        if *self.wants_shutdown.get_mut() {
            shutdown.request();
        }
        self.shutdown = Some(shutdown);
    }

    fn shut_down(&self) {
        self.wants_shutdown.store(true, Ordering::Relaxed);
        if let Some(shutdown) = &self.shutdown {
            shutdown.request();
        }
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

    /// Calls of methods while the server starts or ends: nobody can give them up.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller { scripts: self, abandoned: None, client: None }
    }

    /// Calls of methods that end when `abandoned` is set.
    pub(crate) fn caller_until<'a>(&'a self, abandoned: &'a Abandoned) -> Caller<'a> {
        Caller { scripts: self, abandoned: Some(abandoned), client: None }
    }

    /// Calls a method while the server starts, and discards its output.
    pub fn call(&self, method: &str, args: &[&OsStr]) -> Result<Answer, Failure> {
        self.caller().call(method, args)
    }

    /// What a method prints while the server starts; none if it is missing.
    pub fn read(&self, method: &str, args: &[&OsStr]) -> Result<Option<Vec<u8>>, Failure> {
        self.caller().read(method, args)
    }

    /// Kills the programs that a stop of this scope ends.
    pub(crate) fn stop(&self, scope: StopScope) {
        self.running.stop(scope);
    }

    /// Calls the last method and removes the directory. Errors have nobody to go to but the log.
    pub(crate) fn unload(&self) {
        self.running.resume();
        // It leads a process group, so that a stop kills what it has started too.
        let unloaded = match Abandoned::new() {
            Ok((abandoned, _waiting)) => self.caller_until(&abandoned).call("unload", &[]),
            Err(_) => self.call("unload", &[]),
        };
        if let Err(failure) = unloaded {
            tracing::error!("{failure}");
        }
        if let Err(error) = self.tmpdir.remove() {
            tracing::error!("{}: cannot remove {}: {error}", self.plugin, self.tmpdir.path().display());
        }
    }
}

/// The methods of [`Scripts`], for one caller.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    scripts: &'a Scripts,
    /// When to give up.
    abandoned: Option<&'a Abandoned>,
    /// Whom a script may disconnect.
    client: Option<&'a Client>,
}

impl<'a> Caller<'a> {
    /// The same for a client, which the script may disconnect.
    pub(crate) fn for_client<'b>(self, client: &'b Client) -> Caller<'b>
    where
        'a: 'b,
    {
        Caller { client: Some(client), ..self }
    }
}

impl Caller<'_> {
    /// See [`Scripts::fault`].
    pub(crate) fn fault(&self, method: &str, what: impl fmt::Display) -> Failure {
        self.scripts.fault(method, what)
    }

    /// Calls a method and discards its output.
    pub(crate) fn call(&self, method: &str, args: &[&OsStr]) -> Result<Answer, Failure> {
        self.invoke(method, args, &[], &mut Output::Ignored)
    }

    /// As [`Caller::call`], for methods that must not answer "false".
    pub(crate) fn call_plain(&self, method: &str, args: &[&OsStr]) -> Result<Answer, Failure> {
        self.not_false(method, self.call(method, args)?)
    }

    /// Calls a method that reads `input`.
    pub(crate) fn call_with_input(&self, method: &str, args: &[&OsStr], input: &[u8]) -> Result<Answer, Failure> {
        let answer = self.invoke(method, args, input, &mut Output::Ignored)?;
        self.not_false(method, answer)
    }

    /// What a method prints; none if it is missing.
    pub(crate) fn read(&self, method: &str, args: &[&OsStr]) -> Result<Option<Vec<u8>>, Failure> {
        let mut output = Output::Text(Vec::new());
        let answer = self.invoke(method, args, &[], &mut output)?;
        match (self.not_false(method, answer)?, output) {
            (Answer::Done, Output::Text(text)) => Ok(Some(text)),
            _ => Ok(None),
        }
    }

    /// Fills all of `bytes` with what a method prints.
    pub(crate) fn read_into(&self, method: &str, args: &[&OsStr], bytes: &mut [u8]) -> Result<(), Failure> {
        let mut output = Output::Exact { bytes, received: 0 };
        let answer = self.invoke(method, args, &[], &mut output)?;
        let answer = self.not_false(method, answer)?;
        self.all_there(method, answer, &output)
    }

    /// Reads as many bytes as `expected` from what a method prints, and discards them.
    pub(crate) fn read_and_discard(&self, method: &str, args: &[&OsStr], expected: u64) -> Result<(), Failure> {
        let mut output = Output::Counted { expected, received: 0 };
        let answer = self.invoke(method, args, &[], &mut output)?;
        let answer = self.not_false(method, answer)?;
        self.all_there(method, answer, &output)
    }

    /// Checks the amount of data that a method printed.
    fn all_there(&self, method: &str, answer: Answer, output: &Output<'_>) -> Result<(), Failure> {
        let (expected, received) = match output {
            _ if answer == Answer::Missing => {
                return Err(self.fault(method, format!("the {method} method is required")));
            }
            Output::Exact { bytes, received } => (bytes.len() as u64, *received),
            Output::Counted { expected, received } => (*expected, *received),
            Output::Ignored | Output::Text(_) => return Ok(()),
        };
        if expected == received {
            return Ok(());
        }
        let what = format!(
            "incorrect amount of data read: expecting {expected} bytes but received {received} bytes from the \
                script"
        );
        Err(self.fault(method, what))
    }

    fn not_false(&self, method: &str, answer: Answer) -> Result<Answer, Failure> {
        match answer {
            Answer::False => Err(self.fault(method, format!("{method} method returned unexpected code (3/false)"))),
            other => Ok(other),
        }
    }

    fn invoke(&self, method: &str, args: &[&OsStr], input: &[u8], output: &mut Output<'_>) -> Result<Answer, Failure> {
        let (path, through_shell) = match self.scripts.script(method) {
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
            command.arg(method).args(args).env("tmpdir", self.scripts.tmpdir.path()).env(RUNNING_SCRIPT, path);
            command
        };
        let _alone = self.scripts.alone.as_ref().map(lock);
        let label = self.scripts.label(method);
        let (abandoned, running, scope) = (self.abandoned, &self.scripts.running, scope(method));
        if abandoned.is_some_and(Abandoned::is_set) || running.is_stopped(scope) {
            return Err(given_up(&label, method));
        }
        let conditions = Conditions { abandoned, running, scope };
        let mut shell = through_shell.load(Ordering::Relaxed);
        let mut tries = 0;
        let ended = loop {
            match process::run(&mut command(shell), input, output, conditions) {
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
                Err(error) => return Err(Failure::io(&label, &error)),
                Ok(ended) => break ended,
            }
        };
        tracing::debug!("completed: {label} {method}: {}", ended.status);
        self.obey(ended.status.code());
        judge(&label, method, &ended, output)
    }
}

impl Caller<'_> {
    /// Does what an exit status asks for besides its answer.
    fn obey(&self, status: Option<i32>) {
        let ending = match status {
            Some(4 | 5) => return self.scripts.shut_down(),
            Some(6) => Ending::AtOnce,
            Some(7 | 8) => Ending::AfterAnswers,
            _ => return,
        };
        // Methods without a client, such as `list_exports`, disconnect nobody.
        if let Some(client) = self.client {
            client.end(ending);
        }
    }
}

/// The stop that ends a method. What the methods that only read were doing is lost without harm.
fn scope(method: &str) -> StopScope {
    match method {
        "pwrite" | "zero" | "trim" | "flush" | "close" | "unload" => StopScope::Everything,
        _ => StopScope::Reads,
    }
}

fn is(error: &io::Error, os: Os) -> bool {
    error.raw_os_error() == Some(os.raw_os_error())
}

/// The failure of a method whose caller gave up, or that a stop of the server ended.
fn given_up(label: &str, method: &str) -> Failure {
    Failure::new(Errno::Eshutdown, format!("{label}: the {method} method was killed: nobody waits for it any more"))
}

/// The meaning of an exit status.
fn judge(label: &str, method: &str, ended: &Ended, output: &Output<'_>) -> Result<Answer, Failure> {
    let what = match (ended.problem, output) {
        (None, _) => None,
        (Some(Problem::Abandoned), _) => return Err(given_up(label, method)),
        (Some(Problem::OutputStaysOpen), _) => {
            Some(format!("the {method} method has ended, but a program that it started keeps its standard output open"))
        }
        (Some(Problem::TooMuch), Output::Exact { bytes, received }) => Some(too_much(bytes.len() as u64, *received)),
        (Some(Problem::TooMuch), Output::Counted { expected, received }) => Some(too_much(*expected, *received)),
        (Some(Problem::TooMuch), _) => Some(format!("the {method} method printed too much")),
    };
    if let Some(what) = what {
        return Err(Failure::new(Errno::Eio, format!("{label}: {what}")));
    }
    match ended.status.code() {
        Some(0 | 4 | 7) => Ok(Answer::Done),
        Some(2) => Ok(Answer::Missing),
        Some(3) => Ok(Answer::False),
        Some(5 | 6 | 8) => Err(said(label, method, &ended.errors, Errno::Eshutdown)),
        Some(_) => Err(said(label, method, &ended.errors, Errno::Eio)),
        None => {
            let signal = ended.status.signal().unwrap_or(0);
            Err(Failure::new(Errno::Eio, format!("{label}: script terminated by signal {signal}")))
        }
    }
}

fn too_much(expected: u64, received: u64) -> String {
    format!(
        "incorrect amount of data read: expecting {expected} bytes but received more than {received} bytes from the \
            script"
    )
}

/// The highest exit status with a meaning of its own.
pub(crate) const MAX_KNOWN_STATUS: i32 = 8;

/// The errno names that a script may begin its error message with.
const ERRNO_NAMES: [(&str, Errno); 13] = [
    ("EPERM", Errno::Eperm),
    ("ENOENT", Errno::Enoent),
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

/// Reads `ERRNO message` from a failed script's standard error. Without a name it is `unnamed`.
fn said(label: &str, method: &str, errors: &[u8], unnamed: Errno) -> Failure {
    let all = String::from_utf8_lossy(errors);
    let all = all.trim_end_matches('\n');
    if all.is_empty() {
        let what = "script exited with error, but did not print an error message on stderr";
        return Failure::new(unnamed, format!("{label}: {what}"));
    }
    let word_end = all.find(|c: char| c.is_ascii_whitespace()).unwrap_or(all.len());
    let (word, rest) = all.split_at(word_end);
    let named = ERRNO_NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    let (errno, message) = match named {
        Some((_, errno)) => (*errno, rest.trim_start_matches(|c: char| c.is_ascii_whitespace())),
        None => (unnamed, all),
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
        let failure = said("x", "pread", errors.as_bytes(), Errno::Eio);
        (failure.errno, failure.message)
    }

    #[test]
    fn an_errno_name_at_the_beginning_is_taken_off_the_message() {
        assert_eq!(parsed("ENOSPC Out of space\n"), (Errno::Enospc, "x: Out of space".into()));
        assert_eq!(parsed("enospc   hello\nsecond line\n"), (Errno::Enospc, "x: hello".into()));
        assert_eq!(parsed("EOPNOTSUPP"), (Errno::Enotsup, "x: the pread method failed".into()));
        assert_eq!(parsed("EDQUOT\tquota"), (Errno::Enospc, "x: quota".into()));
        assert_eq!(parsed("ENOENT no such export"), (Errno::Enoent, "x: no such export".into()));
    }

    #[test]
    fn anything_else_is_eio_and_the_whole_first_line() {
        assert_eq!(parsed("ENOSPCX hello"), (Errno::Eio, "x: ENOSPCX hello".into()));
        assert_eq!(parsed("  ENOSPC hello"), (Errno::Eio, "x:   ENOSPC hello".into()));
        assert_eq!(parsed("ENODEV no such"), (Errno::Eio, "x: ENODEV no such".into()));
        let silent = "x: script exited with error, but did not print an error message on stderr";
        assert_eq!(parsed("\n\n"), (Errno::Eio, silent.into()));
    }
}
