//! Non-blocking I/O with a client over a socket or a pair of pipes.
//!
//! A reader waits in one of two ways. A task waits through the runtime, which costs nothing while
//! nothing comes. A thread that serves one busy client waits itself ([`SpinWait`]). While it does,
//! the runtime must not watch the same socket: otherwise each request would wake two threads. For
//! the same reason the runtime watches for room to write only after a write found none: a Unix
//! socket reports room after every reply that the client takes.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rbdkit_plugin_api::Buffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::spin::{SpinWait, WaitPhase};
use super::tls::TlsStream;

/// The send buffer of a Unix socket, in bytes. A reply of 256 KiB does not fit into the default of
/// 208 KiB, so each such reply would have to wait for the client after its first part. The kernel
/// adapts the buffers of TCP sockets itself. A client that only negotiates keeps the default:
/// whatever it does not read takes kernel memory.
const SEND_BUFFER: usize = 1 << 20;

/// A client's two directions over one socket.
pub(super) fn socket(socket: OwnedFd) -> io::Result<(Input, Output)> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let fd = Arc::new(socket);
    let input = Input { fd: Arc::clone(&fd), is_socket: true, watched: None, tls: None };
    let tls = OnceLock::new();
    Ok((input, Output { input: Arc::clone(&fd), fd, is_socket: true, restore: Vec::new(), tls }))
}

/// A client's two directions over two files, usually standard input and output. They are
/// non-blocking until the output is dropped.
pub(super) fn pair(input: OwnedFd, output: OwnedFd) -> io::Result<(Input, Output)> {
    let mut restore = Vec::new();
    for fd in [&input, &output] {
        let flags = fcntl_getfl(fd)?;
        restore.push((fd.try_clone()?, flags));
        fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    }
    let input = Arc::new(input);
    let is_socket = |fd: &OwnedFd| rustix::net::sockopt::socket_type(fd).is_ok();
    let from_client = Input { fd: Arc::clone(&input), is_socket: is_socket(&input), watched: None, tls: None };
    let is_socket = is_socket(&output);
    Ok((from_client, Output { input, fd: Arc::new(output), is_socket, restore, tls: OnceLock::new() }))
}

/// How long a client that has closed its own direction may still take an answer. A TCP client that
/// has left looks the same.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// How often to check whether a client has gone that the runtime cannot watch.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What the client has closed: see [`Input::closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Nothing,
    /// The client sends no more. A TCP socket reports only this; its client may still read.
    Input,
    /// The client is gone.
    Both,
}

/// The direction from the client. One task or thread owns it.
#[derive(Debug)]
pub(super) struct Input {
    fd: Arc<OwnedFd>,
    is_socket: bool,
    /// The runtime's watch, while a task waits for the socket.
    watched: Option<AsyncFd<Arc<OwnedFd>>>,
    tls: Option<Arc<TlsStream>>,
}

/// What a read reads from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Plain(BorrowedFd<'a>),
    Tls(&'a TlsStream),
}

impl Input {
    /// The file.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// From now on everything is encrypted.
    pub fn begin_tls(&mut self, tls: Arc<TlsStream>) {
        self.tls = Some(tls);
    }

    /// Whether everything is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the client has sent something that is not read yet. True if the system does not say.
    pub fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.fd).map_or(true, |count| count > 0)
    }

    /// What the client has closed, even if earlier bytes are still unread.
    pub fn closed(&self) -> Closed {
        let mut fds = [PollFd::new(&self.fd, PollFlags::RDHUP)];
        let _ = poll(&mut fds, Some(&Timespec::default()));
        let closed = fds[0].revents();
        if self.is_socket && closed.intersects(PollFlags::HUP | PollFlags::ERR) {
            Closed::Both
        } else if closed.intersects(PollFlags::RDHUP | PollFlags::HUP) {
            Closed::Input
        } else {
            Closed::Nothing
        }
    }

    /// Returns once the client is gone: it has closed both directions, or only its own and some
    /// time has passed ([`HALF_CLOSED`]). Reads nothing. The future may be dropped while it waits.
    pub async fn until_gone(&self) {
        if self.until_closed().await == Closed::Input {
            tokio::time::sleep(HALF_CLOSED).await;
        }
    }

    /// Returns once the client has closed its direction, and says whether it has closed both. Reads
    /// nothing. The future may be dropped while it waits.
    pub async fn until_closed(&self) -> Closed {
        // A watch of its own: forgetting readiness must not affect `read`.
        let watch = self.fd.try_clone().and_then(|fd| watched(fd, Interest::READABLE));
        loop {
            let closed = self.closed();
            if closed != Closed::Nothing {
                return closed;
            }
            match &watch {
                Ok(watch) => match watch.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    // The runtime ends.
                    Err(_) => std::future::pending().await,
                },
                // The process has no descriptors left, or the runtime cannot watch this file.
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Waits until there is something to read, then lets `attempt` read it. `attempt` returns how
    /// many bytes it read and how many it had room for. It is called again if there was nothing to
    /// read after all. The future may be dropped while it waits.
    pub async fn read(
        &mut self,
        mut attempt: impl FnMut(Source<'_>) -> io::Result<(usize, usize)>,
    ) -> io::Result<usize> {
        let source = source(&self.fd, self.tls.as_ref());
        // What TLS has read ahead does not make the socket readable.
        if let Source::Tls(tls) = source
            && tls.has_input()
        {
            match attempt(source) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                attempted => return attempted.map(|(count, _)| count),
            }
        }
        let watched = match &mut self.watched {
            Some(watched) => watched,
            none => none.insert(watched(Arc::clone(&self.fd), Interest::READABLE)?),
        };
        loop {
            let mut ready = watched.readable().await?;
            match attempt(source) {
                Ok((count, room)) => {
                    // A short read emptied the socket. The next read would need a system call to
                    // find that out.
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

    /// Like [`Input::read`], but the thread itself waits, for a little longer than
    /// [`SpinWait::MAX_SLEEP`] at most.
    ///
    /// # Errors
    /// `TimedOut`: nothing came.
    pub fn read_blocking(
        &mut self,
        spin: &mut SpinWait,
        mut attempt: impl FnMut(Source<'_>) -> io::Result<(usize, usize)>,
    ) -> io::Result<usize> {
        self.watched = None;
        let source = source(&self.fd, self.tls.as_ref());
        let mut phase = WaitPhase::NotWaiting;
        loop {
            match attempt(source) {
                Ok((count, _)) => {
                    spin.learn(&phase);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    spin.wait(&mut phase, || block_until(self.fd.as_fd(), PollFlags::IN, SpinWait::MAX_SLEEP))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether more bytes follow a write at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MoreToCome {
    No,
    /// The kernel may keep a short packet back until the next write.
    Yes,
}

/// The direction to the client.
#[derive(Debug)]
pub(super) struct Output {
    fd: Arc<OwnedFd>,
    /// The other direction, often the same file.
    input: Arc<OwnedFd>,
    is_socket: bool,
    /// The files' original flags, if other processes may share the files.
    restore: Vec<(OwnedFd, OFlags)>,
    /// Set once everything is encrypted.
    tls: OnceLock<Arc<TlsStream>>,
}

impl Output {
    /// From now on everything is encrypted.
    pub fn begin_tls(&self, tls: Arc<TlsStream>) {
        let _ = self.tls.set(tls);
    }

    /// Whether the file is a socket.
    pub fn is_socket(&self) -> bool {
        self.is_socket
    }

    /// Writes what fits without waiting. None: nothing fits.
    pub fn try_write(&self, slices: &[IoSlice<'_>], more: MoreToCome) -> io::Result<Option<usize>> {
        if let Some(tls) = self.tls.get() {
            return tls.try_write(slices);
        }
        self.write_plain(slices, more)
    }

    /// The encryption of everything that is written, if there is one.
    pub fn tls(&self) -> Option<&TlsStream> {
        self.tls.get().map(|tls| &**tls)
    }

    fn write_plain(&self, slices: &[IoSlice<'_>], more: MoreToCome) -> io::Result<Option<usize>> {
        without_waiting(|| match self.is_socket {
            true => {
                let more = if more == MoreToCome::Yes { SendFlags::MORE } else { SendFlags::empty() };
                rustix::net::sendmsg(&self.fd, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL | more)
            }
            false => rustix::io::writev(&self.fd, slices),
        })
    }

    /// Sends as many of the buffer's spliced bytes as fit without waiting. None: nothing fits.
    ///
    /// # Errors
    /// `InvalidInput`: spliced bytes cannot be sent to this kind of file.
    pub fn try_splice(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        if self.tls.get().is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = buffer.splice_out(|output, left| {
            let spliced = without_waiting(|| splice(output, None, &self.fd, None, left, SpliceFlags::NONBLOCK))?;
            // The buffer's pipe is not empty, so the client's socket has no room.
            spliced.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        match sent {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits through the runtime until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        // The runtime may watch the input under its own descriptor; this is another descriptor of
        // the same socket.
        let Ok(fd) = self.fd.try_clone() else {
            // The process has no descriptors left. Retrying after 1 ms costs the client little.
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(());
        };
        watched(fd, Interest::WRITABLE)?.writable().await?.retain_ready();
        Ok(())
    }

    /// Like [`Output::writable`], but the thread itself waits, for `limit` (less than a second) at
    /// most. False: nothing can be written yet.
    pub fn block_until_writable(&self, limit: Duration) -> io::Result<bool> {
        block_until(self.fd.as_fd(), PollFlags::OUT, limit)
    }

    /// Writes all bytes, waiting through the runtime.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)], MoreToCome::No)? {
                Some(count) => bytes = &bytes[count..],
                None => self.writable().await?,
            }
        }
        Ok(())
    }

    /// The socket.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Sets the send buffer of a Unix socket for long replies, beyond the system's limit if the
    /// process may do that. If it fails, the socket is served with the buffer that it has.
    pub fn widen_send_buffer(&self) {
        if sockopt::set_socket_send_buffer_size_force(&self.fd, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&self.fd, SEND_BUFFER);
        }
    }

    /// Ends both directions of a socket, which wakes every thread and task that waits for it. Pipes
    /// end when they are closed.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.input, Shutdown::Both);
        if !Arc::ptr_eq(&self.input, &self.fd) {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(tls) = self.tls.get() {
            tls.close();
        }
        for (fd, flags) in &self.restore {
            let _ = fcntl_setfl(fd, *flags);
        }
    }
}

fn source<'a>(fd: &'a OwnedFd, tls: Option<&'a Arc<TlsStream>>) -> Source<'a> {
    match tls {
        Some(tls) => Source::Tls(tls),
        None => Source::Plain(fd.as_fd()),
    }
}

/// Reads into two places, with one system call if the connection is not encrypted.
pub(super) fn read_into(source: Source<'_>, first: &mut [u8], second: &mut [u8]) -> io::Result<(usize, usize)> {
    let fd = match source {
        Source::Plain(fd) => fd,
        Source::Tls(tls) => return tls.read(first, second),
    };
    let room = first.len() + second.len();
    let count = if second.is_empty() {
        rustix::io::read(fd, first)?
    } else {
        rustix::io::readv(fd, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])?
    };
    Ok((count, room))
}

/// Repeats a call while a signal interrupts it. None: the call would have to wait.
fn without_waiting(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits in the kernel, for `limit` (less than a second) at most. False: nothing happened.
fn block_until(fd: BorrowedFd<'_>, what: PollFlags, limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, what)], Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Has the runtime watch a file descriptor that `fd` owns or shares.
#[allow(unsafe_code, reason = "tokio has no safe way to wait for an arbitrary file descriptor")]
pub(super) fn watched<T: Owner>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor has to stay open, and the same, until it is deregistered. An `Owner`
    // keeps it open. The `AsyncFd` drops the owner only after deregistering, and nothing here takes
    // the owner out or replaces it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Keeps a file descriptor open as long as it lives.
pub(super) trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for Arc<OwnedFd> {}
