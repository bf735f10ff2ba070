//! A program that ends with the value.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use rbdkit_plugin_api::lock;

use crate::packet;

/// How long a program may take to end after SIGTERM, in seconds: one that serves a disk may have much to write back.
const TO_END: i64 = 30;

/// How much longer its end is waited for where another process sees to it.
const TO_TELL: i64 = 5;

/// A program that we started. Dropping it sends SIGTERM and waits for its end, up to 30 s and then kills it: not for a task that others wait
/// for.
pub struct Program {
    what: String,
    /// None once it has ended.
    kind: Option<Kind>,
}

enum Kind {
    Child(Child, Keep),
    /// The helper's, which ends it when this socket is closed and says then how it ended.
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

    /// Drops what was only kept for its start ([`crate::Started::keep`]).
    pub fn release(&self) {
        match &self.kind {
            Some(Kind::Child(_, keep)) => drop(lock(keep).take()),
            // If nobody is there any more, nothing is kept either.
            Some(Kind::Leashed(leash)) => drop(packet::send(leash.as_fd(), &[0], &[])),
            None => {}
        }
    }

    /// Waits for its end without asking for it.
    ///
    /// # Errors
    /// If nobody can tell how it ended.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        match self.kind.take() {
            Some(Kind::Child(mut child, _keep)) => child.wait(),
            Some(Kind::Leashed(leash)) => told(&leash),
            None => Err(io::Error::other("it has ended")),
        }
    }
}

/// How the helper's program ended.
fn told(leash: &OwnedFd) -> io::Result<ExitStatus> {
    let mut status = [0; 4];
    match packet::receive(leash.as_fd(), &mut status)? {
        (4, _) => Ok(ExitStatus::from_raw(i32::from_be_bytes(status))),
        _ => Err(io::Error::other("the helper that started it is gone")),
    }
}

/// Asks a program to end, and sees to it.
pub(crate) fn end(child: &mut Child, what: &str) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    // It may have ended already; it is not waited for yet, so the id is still its own.
    let _ = kill_process(pid, Signal::TERM);
    let patience = Timespec { tv_sec: TO_END, tv_nsec: 0 };
    let ended = pidfd_open(pid, PidfdFlags::empty())
        .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)));
    if ended == Ok(0) {
        tracing::warn!("{what} does not end: killing it");
        let _ = child.kill();
    }
    child.wait()
}

impl Drop for Program {
    fn drop(&mut self) {
        match &mut self.kind {
            Some(Kind::Child(child, _)) => drop(end(child, &self.what)),
            Some(Kind::Leashed(leash)) => {
                // The other direction stays: it brings the end.
                let _ = rustix::net::shutdown(&*leash, Shutdown::Write);
                let patience = Timespec { tv_sec: TO_END + TO_TELL, tv_nsec: 0 };
                match poll(&mut [PollFd::new(&*leash, PollFlags::IN)], Some(&patience)) {
                    Ok(0) => tracing::warn!("{} does not end", self.what),
                    _ => drop(told(leash)),
                }
            }
            None => {}
        }
    }
}
