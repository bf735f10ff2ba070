//! [`Interrupt`]: wakes threads that wait for a program.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// Wakes threads that wait for programs. Once raised, it stays raised.
#[derive(Debug)]
pub struct Interrupt(OwnedFd);

impl Interrupt {
    /// Not raised.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new() -> io::Result<Interrupt> {
        Ok(Interrupt(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes all threads that wait, and those that will. It may be called from any thread.
    pub fn raise(&self) {
        // Fails only if it was raised 2^64 times.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Reads at most `most` bytes, up to the end.
    ///
    /// # Errors
    /// Those of reading. `Interrupted`: it was raised.
    pub fn read_to_end(&self, mut from: File, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while bytes.len() < most {
            self.wait_for(from.as_fd())?;
            let room = piece.len().min(most - bytes.len());
            match from.read(&mut piece[..room]) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                // A signal, not this interrupt.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Waits until a descriptor is readable.
    ///
    /// # Errors
    /// `Interrupted`: it was raised.
    pub(crate) fn wait_for(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut fds = [fd, self.0.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [ready, raised] = fds.map(|fd| !fd.revents().is_empty());
            if ready {
                return Ok(());
            }
            if raised {
                return Err(ErrorKind::Interrupted.into());
            }
        }
    }
}
