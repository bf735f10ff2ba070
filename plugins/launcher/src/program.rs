//! A running program, which ends when its value is dropped.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process, kill_process_group, pidfd_open};

use rbdkit_plugin_api::lock;

use crate::packet;

/// How long a program may take to end after SIGTERM if the server does not say: a program that
/// serves a disk may have much to write back, and nobody waits for it.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(30);

/// How much longer the server waits for the helper to report the end.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// A program that was started.
///
/// Dropping it sends SIGTERM and does not wait. The program is killed if it does not end within 30
/// s, or within the time that was set with [`Program::allow`]. Both signals go to its whole process
/// group if it leads one.
pub struct Program {
    what: String,
    /// None once it has ended.
    kind: Option<Kind>,
    /// How long it may take to end after SIGTERM.
    allowed: Duration,
}

enum Kind {
    Child(Child, Keep),
    /// The helper's program. The helper ends it when this socket is closed, and then reports how it
    /// ended.
    Leashed(OwnedFd),
}

type Keep = Mutex<Option<Box<dyn Any + Send>>>;

/// The first byte of a packet from the server to the helper, on a program's leash.
pub(crate) mod word {
    /// Drops what was kept for the start.
    pub(crate) const RELEASE: u8 = 0;
    /// Is followed by the milliseconds that the program may take to end, as 32 bits.
    pub(crate) const ALLOW: u8 = 1;
}

impl Program {
    pub(crate) fn of_child(child: Child, keep: Option<Box<dyn Any + Send>>, what: &str) -> Program {
        let kind = Some(Kind::Child(child, Mutex::new(keep)));
        Program { what: what.to_owned(), kind, allowed: END_TIMEOUT }
    }

    pub(crate) fn leashed(leash: OwnedFd, what: &str) -> Program {
        Program { what: what.to_owned(), kind: Some(Kind::Leashed(leash)), allowed: END_TIMEOUT }
    }

    /// Drops what was kept only for the start ([`crate::Started::keep`]).
    pub fn release(&self) {
        match &self.kind {
            Some(Kind::Child(_, keep)) => drop(lock(keep).take()),
            // An error means that the helper has ended, and then nothing is kept.
            Some(Kind::Leashed(leash)) => drop(packet::send(leash.as_fd(), &[word::RELEASE], &[])),
            None => {}
        }
    }

    /// Sets how long the program may take to end after SIGTERM.
    #[must_use]
    pub fn allow(mut self, allowed: Duration) -> Program {
        self.allowed = allowed;
        self
    }

    /// A descriptor that has an event once the program has ended.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub(crate) fn ended(&self) -> io::Result<EndEvent<'_>> {
        match &self.kind {
            Some(Kind::Child(child, _)) => {
                Ok(EndEvent::Pidfd(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?))
            }
            Some(Kind::Leashed(leash)) => Ok(EndEvent::Leash(leash.as_fd())),
            None => Err(io::Error::other("it has ended")),
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

    /// Asks the program to end, kills it if it does not, and waits for its end. Blocks a second
    /// longer than was allowed ([`Program::allow`]) at most.
    ///
    /// # Errors
    /// It is not known how the program ended.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        match self.kind.take() {
            Some(Kind::Child(mut child, _keep)) => end(&mut child, &self.what, self.allowed),
            Some(Kind::Leashed(leash)) => {
                let_go(&leash, self.allowed);
                let patience = Timespec::try_from(self.allowed + REPORT_TIMEOUT).unwrap_or_default();
                match poll(&mut [PollFd::new(&leash, PollFlags::IN)], Some(&patience)) {
                    Ok(0) => Err(io::Error::other("the helper does not report its end")),
                    _ => reported_status(&leash),
                }
            }
            None => Err(io::Error::other("it has ended")),
        }
    }
}

/// What [`Program::ended`] returns.
pub(crate) enum EndEvent<'a> {
    Pidfd(OwnedFd),
    Leash(BorrowedFd<'a>),
}

impl AsFd for EndEvent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            EndEvent::Pidfd(fd) => fd.as_fd(),
            EndEvent::Leash(fd) => fd.as_fd(),
        }
    }
}

/// Tells the helper to end a program. The other direction stays open for its report.
fn let_go(leash: &OwnedFd, allowed: Duration) {
    let milliseconds = u32::try_from(allowed.as_millis()).unwrap_or(u32::MAX);
    let mut bytes = [word::ALLOW; 5];
    bytes[1..].copy_from_slice(&milliseconds.to_be_bytes());
    // Errors mean that the helper has ended, and it ends its programs first.
    let _ = packet::send(leash.as_fd(), &bytes, &[]);
    let _ = rustix::net::shutdown(leash, Shutdown::Write);
}

/// Receives from the helper how its program ended.
fn reported_status(leash: &OwnedFd) -> io::Result<ExitStatus> {
    let mut status = [0; 4];
    match packet::receive(leash.as_fd(), &mut status)? {
        (4, _) => Ok(ExitStatus::from_raw(i32::from_be_bytes(status))),
        _ => Err(io::Error::other("the helper that started it is gone")),
    }
}

/// Sends a signal to a child that nobody has waited for, and to the programs that it has started if
/// it leads a process group.
fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    // The child may have ended already. Its id is still its own.
    let _ = match getpgid(Some(pid)) {
        Ok(group) if group == pid => kill_process_group(pid, signal),
        _ => kill_process(pid, signal),
    };
}

/// Asks a program to end, and kills it if it does not. In the end it kills what is left of its
/// process group.
pub(crate) fn end(child: &mut Child, what: &str, allowed: Duration) -> io::Result<ExitStatus> {
    signal(child, Signal::TERM);
    reap_within(child, what, allowed)
}

/// The second half of [`end`].
fn reap_within(child: &mut Child, what: &str, allowed: Duration) -> io::Result<ExitStatus> {
    let patience = Timespec::try_from(allowed).unwrap_or_default();
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)));
    if ended == Ok(0) {
        tracing::warn!("{what} does not end: killing it");
    }
    signal(child, Signal::KILL);
    child.wait()
}

impl Drop for Program {
    fn drop(&mut self) {
        match self.kind.take() {
            Some(Kind::Child(mut child, keep)) => {
                let (what, allowed) = (std::mem::take(&mut self.what), self.allowed);
                // Without a thread it is not reaped, but it is asked to end.
                signal(&child, Signal::TERM);
                let _ = std::thread::Builder::new().spawn(move || {
                    drop(keep);
                    let _ = reap_within(&mut child, &what, allowed);
                });
            }
            Some(Kind::Leashed(leash)) => let_go(&leash, self.allowed),
            None => {}
        }
    }
}
