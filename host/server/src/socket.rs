//! A client's bytes: a socket, or a pair of pipes, never blocking.
//!
//! Who reads may wait in two ways. A task waits by way of the runtime, which costs nothing while nothing comes. A thread that serves one busy
//! client waits itself: at first by looking again and again, because putting a processor to sleep and waking it costs several times what a request
//! does, and then in the kernel. While a thread waits the runtime must not watch the same socket, or each request would wake two. For the
//! same reason nobody watches for room to write until a write found none: a Unix socket tells of room after every answer that the client takes.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::Buffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use super::transmission::MAX_THREADS;

/// Lets tokio tell when something can be done with a file descriptor that `fd` owns or shares.
#[allow(unsafe_code, reason = "tokio has no safe way to wait for an arbitrary file descriptor")]
pub(super) fn watched<T: Owner>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor has to stay open, and the same, until it is deregistered. An `Owner` keeps it open, and the `AsyncFd` drops
    // that only after deregistering it; nothing here takes it out or replaces it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Keeps a file descriptor open as long as it lives.
pub(super) trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for Arc<OwnedFd> {}

/// A client's two directions.
pub(super) fn socket(socket: OwnedFd) -> io::Result<(Input, Output)> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let fd = Arc::new(socket);
    Ok((Input::new(&fd, true), Output { input: Arc::clone(&fd), fd, is_socket: true, restore: Vec::new() }))
}

/// Standard input and output, or what stands for them. They are not blocking until the output is dropped.
pub(super) fn pair(input: OwnedFd, output: OwnedFd) -> io::Result<(Input, Output)> {
    let mut restore = Vec::new();
    for fd in [&input, &output] {
        let flags = fcntl_getfl(fd)?;
        restore.push((fd.try_clone()?, flags));
        fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    }
    let input = Arc::new(input);
    let is_socket = rustix::net::sockopt::socket_type(&output).is_ok();
    let reads_socket = rustix::net::sockopt::socket_type(&input).is_ok();
    Ok((Input::new(&input, reads_socket), Output { input, fd: Arc::new(output), is_socket, restore }))
}

/// See [`Input::closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Nothing,
    /// It sends no more. That is all a TCP socket tells, and its client may still read.
    Input,
    /// It has gone.
    All,
}

/// What the client sends. One task or thread has it.
#[derive(Debug)]
pub(super) struct Input {
    fd: Arc<OwnedFd>,
    is_socket: bool,
    /// While a task waits for it.
    watched: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl Input {
    fn new(fd: &Arc<OwnedFd>, is_socket: bool) -> Input {
        Input { fd: Arc::clone(fd), is_socket, watched: None }
    }

    /// How much the client has closed, whether or not all that it sent before was read.
    pub fn closed(&self) -> Closed {
        let mut fds = [PollFd::new(&self.fd, PollFlags::RDHUP)];
        let _ = poll(&mut fds, Some(&Timespec::default()));
        let closed = fds[0].revents();
        if self.is_socket && closed.intersects(PollFlags::HUP | PollFlags::ERR) {
            Closed::All
        } else if closed.intersects(PollFlags::RDHUP | PollFlags::HUP) {
            Closed::Input
        } else {
            Closed::Nothing
        }
    }

    /// Waits until there is something to read, then lets `attempt` read it. `attempt` answers how many bytes it read and how
    /// many it had room for; it is called again if there was nothing after all. May be dropped while it waits.
    pub async fn read(
        &mut self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> io::Result<usize> {
        let watched = match &mut self.watched {
            Some(watched) => watched,
            none => none.insert(watched(Arc::clone(&self.fd), Interest::READABLE)?),
        };
        loop {
            let mut ready = watched.readable().await?;
            match attempt(self.fd.as_fd()) {
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

    /// As [`Input::read`], but the thread waits, for [`Patience::LIMIT`] at most.
    ///
    /// # Errors
    /// `TimedOut`: nothing came.
    pub fn read_here(
        &mut self,
        patience: &mut Patience,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> io::Result<usize> {
        self.watched = None;
        let mut wait = Wait::Not;
        loop {
            match attempt(self.fd.as_fd()) {
                Ok((count, _)) => {
                    patience.learn(&wait);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    patience.wait(&mut wait, || wait_for(self.fd.as_fd(), PollFlags::IN, Patience::LIMIT))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits in the kernel. False: that long nothing happened.
fn wait_for(fd: BorrowedFd<'_>, what: PollFlags, limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, what)], Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// How a thread waits for one client, learnt from how long the client took so far.
///
/// A client that sends its next request within microseconds of an answer is waited for awake, for [`Patience::AWAKE`] at most. Each time it does not
/// come in that time, the next waits are asleep from their beginning: one, then two, four and so on up to [`Patience::MOST_ASLEEP`], until
/// waiting awake is tried again.
///
/// Nobody waits awake while more clients are busy than half of the processors: the clients have to run somewhere.
#[derive(Debug)]
pub(super) struct Patience {
    busy: Arc<Semaphore>,
    /// So many waits are asleep before the next try.
    asleep: u32,
    /// And so many after it if it is in vain.
    penalty: u32,
}

/// How far a wait has come.
#[derive(Debug)]
enum Wait {
    /// It did not have to wait.
    Not,
    /// Awake since then.
    Awake(Instant),
    /// In the kernel.
    Asleep,
}

fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

impl Patience {
    /// The longest wait in the kernel: then the caller looks whether the server stops.
    pub const LIMIT: Duration = Duration::from_millis(20);

    /// The longest wait awake. A client on the same machine that has one request in flight comes back within 10 to 30 us; waking a
    /// processor of a virtual machine takes as long.
    const AWAKE: Duration = Duration::from_micros(50);

    /// With one try in 64 waits, waiting awake in vain costs less than a microsecond a request.
    const MOST_ASLEEP: u32 = 64;

    /// `busy` counts the clients that have a thread, from [`MAX_THREADS`] down.
    pub fn new(busy: Arc<Semaphore>) -> Patience {
        Patience { busy, asleep: 0, penalty: 1 }
    }

    /// Whether there are processors for all who wait awake and for their clients.
    pub fn is_roomy(busy: &Semaphore) -> bool {
        2 * (MAX_THREADS - busy.available_permits().min(MAX_THREADS)) <= processors()
    }

    /// Called whenever there is nothing yet.
    fn wait(&mut self, wait: &mut Wait, asleep: impl FnOnce() -> io::Result<bool>) -> io::Result<()> {
        match wait {
            Wait::Not if self.asleep == 0 && Patience::is_roomy(&self.busy) => {
                *wait = Wait::Awake(Instant::now());
                return Ok(());
            }
            Wait::Not => self.asleep = self.asleep.saturating_sub(1),
            Wait::Awake(since) if since.elapsed() < Patience::AWAKE => {
                std::hint::spin_loop();
                return Ok(());
            }
            Wait::Awake(_) => {
                self.asleep = self.penalty;
                self.penalty = (2 * self.penalty).min(Patience::MOST_ASLEEP);
            }
            Wait::Asleep => {}
        }
        *wait = Wait::Asleep;
        if asleep()? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// The wait has ended.
    fn learn(&mut self, wait: &Wait) {
        if let Wait::Awake(_) = wait {
            self.penalty = 1;
        }
    }
}

/// What the client gets.
#[derive(Debug)]
pub(super) struct Output {
    fd: Arc<OwnedFd>,
    /// The other direction, often the same.
    input: Arc<OwnedFd>,
    is_socket: bool,
    /// What the files were like before, if others may share them.
    restore: Vec<(OwnedFd, OFlags)>,
}

impl Output {
    /// Writes what goes without waiting; `more`: something follows at once. None: nothing does.
    pub fn try_write(&self, slices: &[IoSlice<'_>], more: bool) -> io::Result<Option<usize>> {
        now(|| match self.is_socket {
            true => {
                let more = if more { SendFlags::MORE } else { SendFlags::empty() };
                rustix::net::sendmsg(&self.fd, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL | more)
            }
            false => rustix::io::writev(&self.fd, slices),
        })
    }

    /// Sends what is lent of a buffer, as far as it goes without waiting. None: nothing does.
    ///
    /// # Errors
    /// `InvalidInput`: nothing lent can be sent there.
    pub fn try_splice(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        let sent = buffer.send_lent(|output, left| {
            let spliced = now(|| splice(output, None, &self.fd, None, left, SpliceFlags::NONBLOCK))?;
            // The pipe is not empty, so it is the client who has no room.
            spliced.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        match sent {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        // The runtime may watch the input under its own descriptor; this is another one of the same socket.
        let Ok(fd) = self.fd.try_clone() else {
            // There are no more descriptors. The client should not pay for that with more than a little time.
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(());
        };
        watched(fd, Interest::WRITABLE)?.writable().await?.retain_ready();
        Ok(())
    }

    /// As [`Output::writable`], but the thread waits, for `limit` (less than a second) at most. False: in vain.
    pub fn writable_here(&self, limit: Duration) -> io::Result<bool> {
        wait_for(self.fd.as_fd(), PollFlags::OUT, limit)
    }

    /// Writes all of it.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)], false)? {
                Some(count) => bytes = &bytes[count..],
                None => self.writable().await?,
            }
        }
        Ok(())
    }

    /// Ends both directions of a socket, so that whoever waits for it wakes. Pipes end when they are closed.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.input, Shutdown::Both);
        if !Arc::ptr_eq(&self.input, &self.fd) {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
        }
    }
}

/// Calls until it is not interrupted. None: it would have to wait.
fn now(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Drop for Output {
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
