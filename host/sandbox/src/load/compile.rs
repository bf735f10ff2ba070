//! Compiles a component, in the server in a process of its own.
//!
//! A component may come from a stranger, and the compiler is a large program. Some hundred
//! kilobytes of nested blocks keep it busy for hours, other input fills the memory, and some input
//! may exploit a fault in it. So the program starts itself again with a hidden argument, writes the
//! component to the child's standard input, and reads the compiled code from its standard output.
//! The child can do little: its processor time, memory and descriptors are limited (rlimits), its
//! environment is empty, and before it reads a byte of the component it gives up its access to
//! files, sockets and other programs ([`rbdkit_confine`]). However the child ends, the parent has
//! compiled code, or one line that says why not.
//!
//! The server runs the code later, so a component that takes over the compiler could still return
//! bad code. That risk remains. Both processes make their engine with the same function and
//! settings, and wasmtime refuses code that was compiled with other settings.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::AssertUnwindSafe;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{find_own_program, own_program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, setrlimit};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::error::{LoadError, one_line};
use super::strip::stripped;
use crate::connection::engine;
use crate::connection::engine::CodeExtras;
use crate::connection::limits::CompileLimits;
use crate::connection::log::CAUSE;

/// The hidden argument. Three more follow it: seconds of processor time, bytes of memory, and the
/// word of [`CodeExtras`].
const ARGUMENT: &str = "--rbdkit-compile";

/// The child's exit status if it has written to standard error what is wrong with the component.
const REFUSED: i32 = 3;

/// The most compiled code, in bytes. Code is usually three to five times as large as its component,
/// and twenty times for tiny ones.
pub const MAX_CODE_BYTES: u64 = 1 << 30;

/// How many bytes of the child's standard error are read.
const MAX_COMPLAINT_BYTES: u64 = 4096;

/// Where compiling happens.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// In this process. For tests, and for programs that do not call [`serve_if_asked`].
    #[default]
    Here,
    /// In a child process. The program has to call [`serve_if_asked`] before anything else.
    Child(CompileLimits),
}

impl Compiler {
    /// Compiles a component.
    ///
    /// # Errors
    /// The compiler refuses it, or compiling reaches a limit.
    pub(crate) fn compile(
        &self,
        engine: &Engine,
        extras: CodeExtras,
        component: &[u8],
    ) -> Result<Component, LoadError> {
        let compiled = match self {
            Compiler::Here => compile_here(engine, extras, component),
            Compiler::Child(limits) => compile_in_child(engine, extras, component, *limits),
        };
        compiled.map_err(|why| LoadError::Compiler(format!("it cannot be compiled: {why}")))
    }
}

fn failed(why: impl Into<String>) -> LoadError {
    LoadError::Compiler(why.into())
}

fn compile_here(engine: &Engine, extras: CodeExtras, component: &[u8]) -> Result<Component, LoadError> {
    // A component that makes the compiler panic is refused like any other that cannot be compiled.
    let compile = || match stripped(component, extras) {
        Some(component) => Component::from_binary(engine, &component),
        None => Component::from_binary(engine, component),
    };
    let compiled = std::panic::catch_unwind(AssertUnwindSafe(compile));
    compiled.map_err(|_| failed("the compiler does not cope with it"))?.map_err(|error| failed(one_line(&error)))
}

fn compile_in_child(
    engine: &Engine,
    extras: CodeExtras,
    component: &[u8],
    limits: CompileLimits,
) -> Result<Component, LoadError> {
    let code = code_from_child(extras, component, limits)?;
    #[allow(unsafe_code, reason = "wasmtime cannot know where precompiled code comes from")]
    // SAFETY: deserializing trusts the bytes. This same program has just compiled them with the
    // same settings, in a process that could reach only its pipes.
    let compiled = unsafe { Component::deserialize(engine, code) };
    compiled.map_err(|error| failed(one_line(&error)))
}

/// A program calls this before anything else. If [`Compiler::Child`] started the program, this
/// compiles the component on standard input, and the program has to exit with the returned status.
pub fn serve_if_asked() -> Option<ExitCode> {
    find_own_program();
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (Some(seconds), Some(memory)) = (number(), number()) else { return Some(ExitCode::FAILURE) };
    let extras = args.next().and_then(|word| CodeExtras::from_word(word.to_str()?));
    let Some(extras) = extras else { return Some(ExitCode::FAILURE) };
    match child(seconds, memory, extras) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(why) => {
            // The parent shows it in its own message.
            let _ = io::stderr().write_all(why.to_string().as_bytes());
            Some(ExitCode::from(REFUSED as u8))
        }
    }
}

/// The child's part.
///
/// # Errors
/// One line that says what is wrong with the component, or with this process.
fn child(seconds: u64, memory: u64, extras: CodeExtras) -> Result<(), LoadError> {
    // The exit status tells the parent of a panic.
    std::panic::set_hook(Box::new(|_| {}));
    limit(Resource::Cpu, seconds.max(1))?;
    limit(Resource::As, memory)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    // It must not compile on for a helper that has ended.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // Making the engine reads files to find the processor's features. So the process is confined
    // after that, but before it reads the component.
    let engine = engine::engine(extras).map_err(|error| failed(error.to_string()))?;
    rbdkit_confine::confine_compiler();
    let mut component = Vec::new();
    io::stdin().lock().read_to_end(&mut component).map_err(|error| failed(error.to_string()))?;
    let component = stripped(&component, extras).unwrap_or(component);
    let code = engine.precompile_component(&component).map_err(|error| failed(format!("{error:#}")))?;
    io::stdout().lock().write_all(&code).map_err(|error| failed(error.to_string()))
}

fn limit(resource: Resource, limit: u64) -> Result<(), LoadError> {
    // An existing lower limit stays.
    let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |there| there.min(limit));
    setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
        .map_err(|error| failed(format!("setrlimit: {error}")))
}

/// The parent's part: runs the child and returns the compiled code.
fn code_from_child(extras: CodeExtras, component: &[u8], limits: CompileLimits) -> Result<Vec<u8>, LoadError> {
    let program = own_program().map_err(|error| failed(format!("cannot start a process to compile it: {error}")))?;
    let shown = std::fs::read_link(&program).unwrap_or_else(|_| program.clone());
    let mut child = Command::new(program)
        .arg(ARGUMENT)
        .arg(limits.time.as_secs().max(1).to_string())
        .arg(limits.memory.to_string())
        .arg(extras.word())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start {} to compile it: {error}", shown.display())))?;
    let output = exchange(&mut child, component, limits.time.saturating_mul(2));
    // It has usually ended already.
    let _ = child.kill();
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let ChildOutput { code, complaint } = output?;
    if status.success() && !code.is_empty() {
        return Ok(code);
    }
    Err(failed(why_it_failed(status, complaint, limits)))
}

fn why_it_failed(status: ExitStatus, complaint: String, limits: CompileLimits) -> String {
    match (status.code(), status.signal()) {
        (Some(REFUSED), _) => complaint,
        (_, Some(libc::SIGXCPU | libc::SIGKILL)) => {
            format!("compiling it took more than {:?} of processor time", limits.time)
        }
        // A panic, a failed allocation, or a crash.
        _ => format!("the compiler does not cope with it, or needs more than {} MiB of memory", limits.memory >> 20),
    }
}

/// What the child wrote.
struct ChildOutput {
    /// Standard output.
    code: Vec<u8>,
    /// Standard error, as one line.
    complaint: String,
}

/// Writes the component to the child and reads its output until it ends. All pipes are served at
/// the same time, because a component or its code does not fit into a pipe.
fn exchange(child: &mut Child, component: &[u8], timeout: Duration) -> Result<ChildOutput, LoadError> {
    let (Some(mut input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("the compiler has no pipes"));
    };
    let ended = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    std::thread::scope(|threads| {
        threads.spawn(move || {
            // A child that refuses the component closes the pipe early.
            let _ = input.write_all(component);
        });
        let code = threads.spawn(move || read(output, MAX_CODE_BYTES));
        let complaint = threads.spawn(move || read(errors, MAX_COMPLAINT_BYTES));
        let in_time = ended.as_ref().is_none_or(|ended| wait(ended, timeout));
        if !in_time {
            // This also ends the threads, because their pipes close.
            let _ = child.kill();
        }
        let code = code.join().unwrap_or_default();
        let complaint = complaint.join().unwrap_or_default();
        if !in_time {
            return Err(failed(format!("compiling it took longer than {timeout:?}")));
        }
        Ok(ChildOutput { code, complaint: one_line_within(&String::from_utf8_lossy(&complaint), CAUSE) })
    })
}

/// Reads all output, at most `limit` bytes. Empty if there is more or reading fails, because a part
/// of the code is useless.
fn read(from: impl Read, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    match from.take(limit + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 <= limit => bytes,
        _ => Vec::new(),
    }
}

/// Waits for a process to end. Returns whether it ended in time.
fn wait(process: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
