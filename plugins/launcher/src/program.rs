//! A running program, which ends when its value is dropped.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use rbdkit_plugin_api::lock;

use crate::interrupt::Interrupt;
use crate::packet;

/// How long a program may take to end after SIGTERM, in seconds. A program that serves a disk may
/// have much to write back.
const END_TIMEOUT: i64 = 30;

/// How much longer the server waits for the helper to report the end, in seconds.
const REPORT_TIMEOUT: i64 = 5;

/// A program that was started. Dropping it sends SIGTERM, waits up to 30 s for the end, and then
/// kills it. So do not drop it in an async task.
pub struct Program {
    what: String,
    /// None once it has ended.
    kind: Option<Kind>,
}

enum Kind {
    Child(Child, Keep),
    /// The helper's program. The helper ends it when this socket is closed, and then reports how it
    /// ended.
    Leashed(OwnedFd),
}

type Keep = Mutex<Option<Box<dyn Any + Send>>>;

impl Program {
    pub(crate) fn of_child(child: Child, keep: Option<Box<dyn Any + Send>>, what: &str) -> Program {
        Program { what: what.to_owned(), kind: Some(Kind::Child(child, Mutex::new(keep))) }
    }

    pub(crate) fn leashed(leash: OwnedFd, what: &str) -> Program {
        Program { what: what.to_owned(), kind: Some(Kind::Leashed(leash)) }
    }

    /// Drops what was kept only for the start ([`crate::Started::keep`]).
    pub fn release(&self) {
        match &self.kind {
            Some(Kind::Child(_, keep)) => drop(lock(keep).take()),
            // An error means that the helper has ended, and then nothing is kept.
            Some(Kind::Leashed(leash)) => drop(packet::send(leash.as_fd(), &[0], &[])),
            None => {}
        }
    }

    /// Waits for the end of the program without asking it to end.
    ///
    /// # Errors
    /// It is not known how the program ended.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        match self.kind.take() {
            Some(Kind::Child(mut child, _keep)) => child.wait(),
            Some(Kind::Leashed(leash)) => reported_status(&leash),
            None => Err(io::Error::other("it has ended")),
        }
    }
}

impl Program {
    /// [`Program::wait`] that gives up when it is interrupted. Then the program is ended as if the
    /// value were dropped.
    ///
    /// # Errors
    /// It is not known how the program ended. `Interrupted`: it gave up.
    pub fn wait_interruptibly(self, interrupt: &Interrupt) -> io::Result<ExitStatus> {
        match &self.kind {
            Some(Kind::Child(child, _)) => {
                interrupt.wait_for(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?.as_fd())?;
            }
            Some(Kind::Leashed(leash)) => interrupt.wait_for(leash.as_fd())?,
            None => {}
        }
        self.wait()
    }
}

/// A program that an async task may drop: a thread of its own ends it.
pub struct TaskProgram(Option<Program>);

impl TaskProgram {
    /// See the type.
    pub fn new(program: Program) -> TaskProgram {
        TaskProgram(Some(program))
    }

    /// The program itself. None only while it is dropped.
    pub fn into_inner(mut self) -> Option<Program> {
        self.0.take()
    }
}

impl Drop for TaskProgram {
    fn drop(&mut self) {
        if let Some(program) = self.0.take() {
            // Without a thread the program is dropped here.
            let _ = std::thread::Builder::new().name("rbdkit-end".into()).spawn(move || drop(program));
        }
    }
}

/// Receives from the helper how its program ended.
fn reported_status(leash: &OwnedFd) -> io::Result<ExitStatus> {
    let mut status = [0; 4];
    match packet::receive(leash.as_fd(), &mut status)? {
        (4, _) => Ok(ExitStatus::from_raw(i32::from_be_bytes(status))),
        _ => Err(io::Error::other("the helper that started it is gone")),
    }
}

/// Asks a program to end, and kills it if it does not.
pub(crate) fn end(child: &mut Child, what: &str) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    // The program may have ended already. Nobody has waited for it yet, so its id is still its own.
    signal(pid, Signal::TERM);
    let patience = Timespec { tv_sec: END_TIMEOUT, tv_nsec: 0 };
    let ended = pidfd_open(pid, PidfdFlags::empty())
        .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)));
    if ended == Ok(0) {
        tracing::warn!("{what} does not end: killing it");
        signal(pid, Signal::KILL);
    }
    child.wait()
}

/// Sends a signal to a program, and to what it has started if it leads a process group.
fn signal(pid: Pid, signal: Signal) {
    if kill_process_group(pid, signal).is_err() {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        match &mut self.kind {
            Some(Kind::Child(child, _)) => drop(end(child, &self.what)),
            Some(Kind::Leashed(leash)) => {
                // The other direction stays open for the report.
                let _ = rustix::net::shutdown(&*leash, Shutdown::Write);
                let patience = Timespec { tv_sec: END_TIMEOUT + REPORT_TIMEOUT, tv_nsec: 0 };
                match poll(&mut [PollFd::new(&*leash, PollFlags::IN)], Some(&patience)) {
                    Ok(0) => tracing::warn!("{} does not end", self.what),
                    _ => drop(reported_status(leash)),
                }
            }
            None => {}
        }
    }
}
