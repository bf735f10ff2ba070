//! Chooses the program for a method, runs it, and does what its exit status asks for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io, thread};

use rbdkit_plugin_api::{Abandoned, Client, ConfigError, Errno, StopScope, ThreadModel, lock};
use rustix::io::Errno as Os;
use tokio::sync::Notify;

use crate::process::{self, Conditions, Output};
use crate::running::Running;
use crate::status::{self, Answer, Failure, Wish, given_up, judge};
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
    /// What is notified to end the server, once the configuration is complete.
    shutdown: Option<Arc<Notify>>,
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
    pub(crate) fn set_shutdown(&mut self, shutdown: Arc<Notify>) {
        if *self.wants_shutdown.get_mut() {
            shutdown.notify_one();
        }
        self.shutdown = Some(shutdown);
    }

    fn shut_down(&self) {
        self.wants_shutdown.store(true, Ordering::Relaxed);
        if let Some(shutdown) = &self.shutdown {
            shutdown.notify_one();
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
        match status::wish(status) {
            Some(Wish::Shutdown) => self.scripts.shut_down(),
            // Methods without a client, such as `list_exports`, disconnect nobody.
            Some(Wish::Disconnect(ending)) => self.client.into_iter().for_each(|client| client.end(ending)),
            None => {}
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
