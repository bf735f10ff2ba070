//! [`Stop`]: ends programs that run when the server stops.
//!
//! A program is ended in two ways at once. Its process group is killed, and an event wakes the
//! thread that waits for it, because a program that has left the group may still hold the pipes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_plugin_api::{StopScope, lock};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What the programs of a plugin share for their end.
#[derive(Debug)]
pub(crate) struct Stop {
    /// Readable once programs are to end that only read.
    reads: OwnedFd,
    /// Readable once all programs are to end.
    everything: OwnedFd,
    scope: Mutex<Option<StopScope>>,
    running: Mutex<Vec<Running>>,
    /// The server serves: programs get process groups of their own.
    serving: AtomicBool,
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    /// It is the leader of a process group.
    leads: bool,
    ends_with: StopScope,
}

/// A program among those that can be ended. It has to be dropped before the program is waited for,
/// because its process id may be another program's after that.
pub(crate) struct Registered<'a> {
    stop: &'a Stop,
    pid: Pid,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.stop.running).retain(|running| running.pid != self.pid);
    }
}

impl Stop {
    /// Nothing ends yet.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn new() -> io::Result<Stop> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Stop {
            reads: event()?,
            everything: event()?,
            scope: Mutex::default(),
            running: Mutex::default(),
            serving: AtomicBool::new(false),
        })
    }

    /// From now on a program gets a process group of its own: an end reaches all that it starts,
    /// and Control-C reaches only the server, whose requests in flight need the program. Before
    /// that, programs may ask questions on the terminal.
    pub(crate) fn begin_serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Prepares a program that is about to start.
    pub(crate) fn prepare(&self, command: &mut Command) {
        if self.serving.load(Ordering::Relaxed) {
            command.process_group(0);
        }
    }

    /// Whether programs that end with `scope` no longer start.
    pub(crate) fn refuses(&self, ends_with: StopScope) -> bool {
        lock(&self.scope).is_some_and(|scope| scope >= ends_with)
    }

    /// Readable once programs that end with `scope` are to end.
    pub(crate) fn event(&self, ends_with: StopScope) -> BorrowedFd<'_> {
        match ends_with {
            StopScope::Reads => self.reads.as_fd(),
            StopScope::Everything => self.everything.as_fd(),
        }
    }

    /// Adds a program that was started.
    pub(crate) fn register(&self, child: &Child, ends_with: StopScope) -> Registered<'_> {
        let (pid, leads) = (Pid::from_child(child), self.serving.load(Ordering::Relaxed));
        lock(&self.running).push(Running { pid, leads, ends_with });
        Registered { stop: self, pid }
    }

    /// Ends the programs that `scope` names. Later ones do not start.
    pub(crate) fn end(&self, scope: StopScope) {
        let mut now = lock(&self.scope);
        *now = (*now).max(Some(scope));
        drop(now);
        let running = lock(&self.running);
        for program in running.iter().filter(|program| program.ends_with <= scope) {
            // It may have ended already. Nobody has waited for it yet, so its id is still its own.
            let _ = match program.leads {
                true => kill_process_group(program.pid, Signal::KILL),
                false => kill_process(program.pid, Signal::KILL),
            };
        }
        drop(running);
        for ends_with in [StopScope::Reads, StopScope::Everything].into_iter().filter(|each| *each <= scope) {
            // Fails only if it is readable already.
            let _ = rustix::io::write(self.event(ends_with), &1_u64.to_ne_bytes());
        }
    }
}
