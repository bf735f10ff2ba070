//! A program that ends with the value.

use std::process::Child;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a program may take to end after SIGTERM, in seconds: one that serves a disk may have much to write back.
const TO_END: i64 = 30;

/// A program that we started. Dropping it sends SIGTERM and waits for its end, up to 30 s and then kills it: not for a task that others wait
/// for.
pub struct Program {
    child: Child,
    what: String,
}

impl Program {
    /// `what` names it in messages: "nbd: the server".
    pub fn new(child: Child, what: impl Into<String>) -> Program {
        Program { child, what: what.into() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // It may have ended already; it is not waited for yet, so the id is still its own.
        let _ = kill_process(pid, Signal::TERM);
        let patience = Timespec { tv_sec: TO_END, tv_nsec: 0 };
        let ended = pidfd_open(pid, PidfdFlags::empty())
            .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)));
        if ended == Ok(0) {
            tracing::warn!("{} does not end: killing it", self.what);
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
