//! [`SpinWait`]: how a thread waits for the one client that it serves.
//!
//! Putting a processor to sleep and waking it costs several times as much as a request. So the
//! thread first spins: it tries to read again and again, for [`SpinWait::MAX_SPIN`] at most. Then
//! it waits in the kernel.
//!
//! Spinning only pays for a client whose next request follows a reply within microseconds. The
//! thread learns from each wait whether its client is like that. After a failed spin, the next wait
//! goes to the kernel at once, and then the thread spins again. After each further failed spin that
//! number of waits doubles, up to [`SpinWait::MAX_SLEEPS`]. A successful spin resets it to one.
//!
//! No thread spins while more clients have a thread than half the number of processors, because the
//! clients need processors too.

use std::io;
use std::time::{Duration, Instant};

use super::thread_permits::ThreadPermits;

/// What a thread has learnt about its client.
#[derive(Debug)]
pub(super) struct SpinWait {
    threads: ThreadPermits,
    /// How many more waits go to the kernel at once before the next spin.
    sleeps_left: u32,
    /// How many waits go to the kernel after the next failed spin.
    penalty: u32,
}

/// How far one wait has come.
#[derive(Debug)]
pub(super) enum WaitPhase {
    /// The thread did not have to wait yet.
    NotWaiting,
    /// Spinning since then.
    Spinning(Instant),
    /// In the kernel.
    Sleeping,
}

impl SpinWait {
    /// The longest wait in the kernel. After it the caller checks whether the server stops.
    pub const MAX_SLEEP: Duration = Duration::from_millis(20);

    /// The longest spin. A client on the same machine with one request in flight sends the next one
    /// within 10 to 30 us. Waking a processor of a virtual machine takes as long.
    const MAX_SPIN: Duration = Duration::from_micros(50);

    /// With one spin of 50 us in 64 waits, failed spins cost less than a microsecond per request.
    const MAX_SLEEPS: u32 = 64;

    /// For a client about which nothing is known yet.
    pub fn new(threads: ThreadPermits) -> SpinWait {
        SpinWait { threads, sleeps_left: 0, penalty: 1 }
    }

    /// Waits for a short time. Call it each time there is nothing to read yet. `sleep` waits in the
    /// kernel for [`SpinWait::MAX_SLEEP`] at most and returns false if nothing came.
    ///
    /// # Errors
    /// `TimedOut`: nothing came. Otherwise the error of `sleep`.
    pub fn wait(&mut self, phase: &mut WaitPhase, sleep: impl FnOnce() -> io::Result<bool>) -> io::Result<()> {
        match phase {
            WaitPhase::NotWaiting if self.sleeps_left == 0 && self.threads.processors_suffice() => {
                *phase = WaitPhase::Spinning(Instant::now());
                return Ok(());
            }
            WaitPhase::NotWaiting => self.sleeps_left = self.sleeps_left.saturating_sub(1),
            WaitPhase::Spinning(since) if since.elapsed() < SpinWait::MAX_SPIN => {
                std::hint::spin_loop();
                return Ok(());
            }
            WaitPhase::Spinning(_) => {
                self.sleeps_left = self.penalty;
                self.penalty = (2 * self.penalty).min(SpinWait::MAX_SLEEPS);
            }
            WaitPhase::Sleeping => {}
        }
        *phase = WaitPhase::Sleeping;
        if sleep()? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// The wait has ended: something was read.
    pub fn learn(&mut self, phase: &WaitPhase) {
        if let WaitPhase::Spinning(_) = phase {
            self.penalty = 1;
        }
    }
}
