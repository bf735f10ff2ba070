//! A client's bytes: a socket, or a pair of pipes.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets tokio tell when something can be read or written.
#[allow(unsafe_code, reason = "tokio has no safe way to wait for an arbitrary file descriptor")]
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor has to stay open, and the same, until it is deregistered. The `AsyncFd` owns it, closes it only after
    // deregistering it in its drop, and nothing here takes it out or replaces it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Both directions of a connection, not blocking.
#[derive(Debug)]
pub(super) struct Socket {
    input: AsyncFd<OwnedFd>,
    /// None: the same as `input`.
    output: Option<AsyncFd<OwnedFd>>,
    /// What the files were like before, if others may share them.
    restore: Vec<(OwnedFd, OFlags)>,
}

impl Socket {
    /// A socket of our own.
    pub fn new(socket: OwnedFd) -> io::Result<Socket> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Socket { input: watched(socket)?, output: None, restore: Vec::new() })
    }

    /// Standard input and output, or what stands for them. They are not blocking until the socket is dropped.
    pub fn pair(input: OwnedFd, output: OwnedFd) -> io::Result<Socket> {
        let mut restore = Vec::new();
        for fd in [&input, &output] {
            let flags = fcntl_getfl(fd)?;
            restore.push((fd.try_clone()?, flags));
            fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Socket { input: watched(input)?, output: Some(watched(output)?), restore })
    }

    fn output(&self) -> &AsyncFd<OwnedFd> {
        self.output.as_ref().unwrap_or(&self.input)
    }

    /// Waits until there is something to read, then lets `attempt` read it. `attempt` answers how many bytes it read and how
    /// many it had room for; it is called again if there was nothing after all.
    pub async fn read(
        &self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> io::Result<usize> {
        loop {
            let mut ready = self.input.readable().await?;
            match attempt(self.input.get_ref().as_fd()) {
                Ok((count, room)) => {
                    // A short read emptied the socket: the next one would only find that out by a system call.
                    if count < room {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what goes without waiting. None: nothing does.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        loop {
            match self.output().try_io(Interest::WRITABLE, |fd| Ok(rustix::io::writev(fd, slices)?)) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        self.output().writable().await?.retain_ready();
        Ok(())
    }

    /// Writes all of it.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)])? {
                Some(count) => bytes = &bytes[count..],
                None => self.writable().await?,
            }
        }
        Ok(())
    }

    /// Ends both directions of a socket, so that whoever waits for it wakes. Pipes end when they are closed.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(self.input.get_ref(), Shutdown::Both);
        if let Some(output) = &self.output {
            let _ = rustix::net::shutdown(output.get_ref(), Shutdown::Both);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        for (fd, flags) in &self.restore {
            let _ = fcntl_setfl(fd, *flags);
        }
    }
}

/// One `readv` into two places.
pub(super) fn read_into(fd: BorrowedFd<'_>, first: &mut [u8], second: &mut [u8]) -> io::Result<(usize, usize)> {
    let room = first.len() + second.len();
    let count = if second.is_empty() {
        rustix::io::read(fd, first)?
    } else {
        rustix::io::readv(fd, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])?
    };
    Ok((count, room))
}
