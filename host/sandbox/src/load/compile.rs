//! Compiling a stranger's component, in a process of its own.
//!
//! A compiler is a large program that a stranger's input goes through: some hundred kilobytes of nested blocks keep it busy for hours, some
//! others fill the memory, and perhaps some make it do what it should not. So the program starts itself once more with a hidden argument,
//! gives the component on standard input, and takes the compiled code from standard output. The child has little to work with: bounded processor
//! time, memory and descriptors (rlimits), an empty environment, and, before it has read a byte of the component, no way to a file, a socket or another
//! program ([`wall`](rbdkit_confine)). Whatever becomes of it, the parent has compiled code or one line that says why not.
//!
//! What comes back is run later, so a compiler that a component has taken over could still give bad code; that is what is left of the risk.
//! The child makes its engine of the same settings by the same function, and wasmtime refuses code made for others.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, setrlimit};

use rbdkit_plugin_api::text::one_line_within;

use crate::connection::engine;
use crate::connection::limits::CompileLimits;
use crate::connection::log::CAUSE;

/// The hidden argument. Behind it: seconds of processor time, bytes of memory.
const ARGUMENT: &str = "--rbdkit-compile";

/// The child's exit status if it says on standard error what is wrong with the component.
const REFUSED: i32 = 3;

/// Where compiling happens.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// In this process. For programs that do not call [`serve_if_asked`], and tests.
    #[default]
    Here,
    /// In a child of this program, which calls [`serve_if_asked`] first of all.
    Child(CompileLimits),
}

/// The compiled code is at most so much larger than the component... twenty times is usual for tiny ones, three to five times for large ones.
pub(crate) const LARGEST_CODE: u64 = 1 << 30;

/// What a program does first of all: if it was started by [`compile`] it compiles and ends with the answer's status.
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (Some(seconds), Some(memory)) = (number(), number()) else { return Some(ExitCode::FAILURE) };
    match child(seconds, memory) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(why) => {
            // The parent shows it, as a line of its own.
            let _ = std::io::stderr().write_all(why.as_bytes());
            Some(ExitCode::from(REFUSED as u8))
        }
    }
}

fn child(seconds: u64, memory: u64) -> Result<(), String> {
    // The exit status says enough.
    std::panic::set_hook(Box::new(|_| {}));
    limit(Resource::Cpu, seconds.max(1))?;
    limit(Resource::As, memory)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    // The engine asks for the processor's features; what is a stranger's comes after the wall.
    let engine = engine::engine().map_err(|e| e.to_string())?;
    rbdkit_confine::of_compiler();
    let mut component = Vec::new();
    std::io::stdin().lock().read_to_end(&mut component).map_err(|e| e.to_string())?;
    let code = engine.precompile_component(&component).map_err(|e| format!("{e:#}"))?;
    std::io::stdout().lock().write_all(&code).map_err(|e| e.to_string())
}

fn limit(resource: Resource, most: u64) -> Result<(), String> {
    // A harder limit that is there already stays.
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |there| there.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|e| format!("setrlimit: {e}"))
}

/// Compiles in a child.
///
/// # Errors
/// One line without the component's name.
pub(crate) fn compile(component: &[u8], bounds: CompileLimits) -> Result<Vec<u8>, String> {
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    // The link itself, in case the file was replaced by another version meanwhile.
    let mut child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .arg(bounds.time.as_secs().max(1).to_string())
        .arg(bounds.memory.to_string())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start {} to compile it: {e}", program.display()))?;
    let answer = converse(&mut child, component, bounds.time.saturating_mul(2));
    // Not there any more in most cases.
    let _ = child.kill();
    let status = child.wait().map_err(|e| e.to_string())?;
    let (code, said) = answer?;
    if status.success() && !code.is_empty() {
        return Ok(code);
    }
    use std::os::unix::process::ExitStatusExt as _;
    Err(match (status.code(), status.signal()) {
        (Some(REFUSED), _) => said,
        (_, Some(libc::SIGXCPU | libc::SIGKILL)) => {
            format!("compiling it took more than {:?} of processor time", bounds.time)
        }
        // A panic, an allocation that failed, or worse.
        _ => format!("the compiler does not cope with it, or needs more than {} MiB of memory", bounds.memory >> 20),
    })
}

/// Gives the component and takes the code and what was said, all at once: no pipe holds any of them whole.
fn converse(child: &mut Child, component: &[u8], most: Duration) -> Result<(Vec<u8>, String), String> {
    let (Some(mut input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("the compiler has no pipes".into());
    };
    let ended = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    std::thread::scope(|threads| {
        threads.spawn(move || {
            // A child that has refused it closes early.
            let _ = input.write_all(component);
        });
        let code = threads.spawn(move || read(output, LARGEST_CODE));
        let said = threads.spawn(move || read(errors, 4096));
        let over = ended.as_ref().is_none_or(|ended| wait(ended, most));
        if !over {
            // Ends the threads as well: their pipes close.
            let _ = child.kill();
        }
        let code = code.join().unwrap_or_default();
        let said = one_line_within(&String::from_utf8_lossy(&said.join().unwrap_or_default()), CAUSE);
        match over {
            true => Ok((code, said)),
            false => Err(format!("compiling it took longer than {most:?}")),
        }
    })
}

fn read(from: impl Read, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    match from.take(most + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 <= most => bytes,
        // What is not whole is not code.
        _ => Vec::new(),
    }
}

/// Whether a process ended in time. One that is not read from any more waits in a full pipe, so its output is read meanwhile.
fn wait(process: &std::os::fd::OwnedFd, most: Duration) -> bool {
    let timeout = Timespec { tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
