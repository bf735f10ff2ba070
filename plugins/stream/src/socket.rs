//! The socket to the other server, and the buffer of its receiving side.
//!
//! [`Socket`] waits for readiness of a plain descriptor instead of using tokio's socket types. So
//! TCP, Unix and inherited sockets are one type, the bytes of a long answer go from the socket
//! straight into the request's buffer, and a header and its payload are written by one system call.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};

use rbdkit_plugin_api::{Buffer, Fill, Span, lock};
use rbdkit_tls::{Handshake, Session};
use rustix::net::{AddressFamily, Shutdown, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::wire::Wire;

/// Why a connection cannot be used any more: one line that names neither the server nor the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionError(String);

impl ConnectionError {
    /// `why` completes "PLUGIN: SERVER: ...".
    pub fn new(why: impl Into<String>) -> ConnectionError {
        ConnectionError(why.into())
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> ConnectionError {
        ConnectionError(match error.kind() {
            ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
            _ => format!("the connection is lost: {error}"),
        })
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The size of a Unix socket's send buffer, in bytes. A request of 256 KiB does not fit into the
/// default of 208 KiB, so its sender would wait until the other side has read a part of it. (TCP
/// adapts its buffers by itself.)
const SEND_BUFFER: usize = 1 << 20;

/// The most bytes of a request that are encrypted at a time, and then sent: four records, which fit
/// into a processor's own cache.
const ENCRYPTED_AT_A_TIME: usize = 64 << 10;

/// A connected stream socket.
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
    /// Set once everything is encrypted.
    tls: OnceLock<Mutex<Session>>,
}

impl Socket {
    /// Takes over a connected socket. Needs a tokio runtime.
    #[allow(unsafe_code, reason = "tokio has no safe way to wait for an arbitrary file descriptor")]
    pub fn new(fd: OwnedFd) -> io::Result<Socket> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        if sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err()
        {
            // Without the privilege the system's limit counts. What it does not give it does not
            // give.
            let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        }
        // SAFETY: the descriptor is open as long as the `OwnedFd` lives, and nobody replaces or
        // closes it in there: it is only lent out shared.
        Ok(Socket { fd: unsafe { AsyncFd::register(fd) }?, tls: OnceLock::new() })
    }

    /// Takes over what [`Socket::into_inner`] returned. Needs a tokio runtime.
    pub fn with_session(fd: OwnedFd, session: Option<Session>) -> io::Result<Socket> {
        let socket = Socket::new(fd)?;
        if let Some(session) = session {
            let _ = socket.tls.set(Mutex::new(session));
        }
        Ok(socket)
    }

    /// Removes the socket from the runtime.
    pub fn into_inner(self) -> (OwnedFd, Option<Session>) {
        let session =
            self.tls.into_inner().map(|session| session.into_inner().unwrap_or_else(|lost| lost.into_inner()));
        (self.fd.into_inner(), session)
    }

    /// Agrees upon TLS with the other side. From then on everything is encrypted. It returns
    /// version and cipher for the log.
    pub async fn start_tls(&self, mut session: Session) -> io::Result<String> {
        let mut step = session.handshake(&mut Wire(self.fd.get_ref()))?;
        while step != Handshake::Done {
            let waits_for = if step == Handshake::WantsRead { Interest::READABLE } else { Interest::WRITABLE };
            let before = step;
            step = self
                .fd
                .async_io(waits_for, |fd| match session.handshake(&mut Wire(fd))? {
                    same if same == before => Err(ErrorKind::WouldBlock.into()),
                    next => Ok(next),
                })
                .await?;
        }
        let algorithms = session.algorithms();
        let _ = self.tls.set(Mutex::new(session));
        Ok(algorithms)
    }

    /// Reads what is there into `bytes`, which is not empty; waits if there is nothing. An end is
    /// an error.
    async fn receive(&self, mut read: impl FnMut(&Socket) -> io::Result<(usize, usize)>) -> io::Result<usize> {
        // What TLS has read ahead does not make the socket readable.
        if self.tls.get().is_some_and(|tls| lock(tls).has_input()) {
            match read(self) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
                read => return read.map(|(count, _)| count),
            }
        }
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|_| read(self)) {
                Ok(Ok((0, _))) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(Ok((count, wanted))) => {
                    // The socket is empty now, so the next call waits before it reads.
                    if count < wanted {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Reads without waiting. It returns the number of bytes, and a higher number if the socket is
    /// empty.
    fn try_read(&self, to: &mut [u8]) -> io::Result<(usize, usize)> {
        let Some(tls) = self.tls.get() else {
            let wanted = to.len();
            return Ok((rustix::io::read(self.fd.get_ref(), to)?, wanted));
        };
        let received = lock(tls).read(&mut Wire(self.fd.get_ref()), to, &mut [])?;
        Ok((received.count, if received.more { received.count } else { received.count + 1 }))
    }

    /// Writes without waiting.
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls.get() {
            None => Ok(rustix::io::writev(self.fd.get_ref(), parts)?),
            Some(tls) => {
                let written = lock(tls).write(&mut Wire(self.fd.get_ref()), parts, ENCRYPTED_AT_A_TIME)?;
                written.ok_or_else(|| ErrorKind::WouldBlock.into())
            }
        }
    }

    /// Whether a part of a request is encrypted already and not sent.
    fn has_unsent(&self) -> bool {
        self.tls.get().is_some_and(|tls| lock(tls).has_unsent())
    }

    /// Writes both parts to the end.
    pub async fn send(&self, header: &[u8], payload: &[u8]) -> io::Result<()> {
        self.send_counted(header, payload, &mut 0).await
    }

    /// Writes both parts of a request to the end. Calls `end` if that fails. Calls it also if the
    /// future is dropped after a part was written: the server could not understand what follows.
    pub async fn send_or_end(&self, header: &[u8], payload: &[u8], end: impl FnMut(ConnectionError)) {
        let mut unfinished = Unfinished { socket: self, sent: 0, done: false, end };
        let written = self.send_counted(header, payload, &mut unfinished.sent).await;
        unfinished.done = true;
        if let Err(error) = written {
            (unfinished.end)(error.into());
        }
    }

    /// `sent`, 0 at first, counts the bytes that are written, also if the future is dropped.
    async fn send_counted(&self, header: &[u8], payload: &[u8], sent: &mut usize) -> io::Result<()> {
        while *sent < header.len() + payload.len() {
            let head = header.get(*sent..).unwrap_or_default();
            let rest = payload.get(sent.saturating_sub(header.len())..).unwrap_or_default();
            let parts = [IoSlice::new(head), IoSlice::new(rest)];
            let parts = if head.is_empty() { &parts[1..] } else { &parts };
            let written = self.fd.async_io(Interest::WRITABLE, |_| self.try_write(parts)).await;
            match written {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Shuts down both directions, which wakes every task that waits for the socket.
    pub fn shut(&self) {
        if let Some(tls) = self.tls.get() {
            lock(tls).close(&mut Wire(self.fd.get_ref()));
        }
        // The other side may have closed it already.
        let _ = rustix::net::shutdown(self.fd.get_ref(), Shutdown::Both);
    }
}

/// A request of which `sent` bytes are written and the rest is not.
struct Unfinished<'a, F: FnMut(ConnectionError)> {
    socket: &'a Socket,
    sent: usize,
    done: bool,
    end: F,
}

impl<F: FnMut(ConnectionError)> Drop for Unfinished<'_, F> {
    fn drop(&mut self) {
        if !self.done && (self.sent > 0 || self.socket.has_unsent()) {
            (self.end)(ConnectionError::new("a request was given up while it was sent"));
        }
    }
}

/// How many bytes one read may take beyond those asked for. 32 KiB hold the answers to seven
/// requests of 4 KiB. The part of a long answer that is buffered here costs a microsecond of
/// copying.
const READ_AHEAD: usize = 32 << 10;

/// The receiving side: bytes that were read and not yet asked for.
pub struct Input {
    socket: Arc<Socket>,
    space: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Input {
    /// The receiving side of a socket.
    pub fn new(socket: Arc<Socket>) -> Input {
        Input { socket, space: vec![0; READ_AHEAD].into_boxed_slice(), from: 0, to: 0 }
    }

    /// Ends the receiving side after a handshake. An error if the server sent more than was asked
    /// for.
    pub fn finish(self) -> Result<(), ConnectionError> {
        match self.from == self.to {
            true => Ok(()),
            false => Err(ConnectionError::new("the server spoke before it was asked")),
        }
    }

    fn buffered(&self) -> &[u8] {
        &self.space[self.from..self.to]
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.space.len() {
            self.space.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let space = &mut self.space[self.to..];
        self.to += self.socket.receive(|socket| socket.try_read(&mut *space)).await?;
        Ok(())
    }

    /// The next `N` bytes, at most [`READ_AHEAD`].
    pub async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        loop {
            if let Some(array) = self.buffered().first_chunk::<N>() {
                let array = *array;
                self.from += N;
                return Ok(array);
            }
            self.more().await?;
        }
    }

    /// The next `count` bytes. The caller has checked `count` against a limit.
    pub async fn vec(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            if self.from == self.to {
                self.more().await?;
            }
            let take = (count - bytes.len()).min(self.to - self.from);
            bytes.extend_from_slice(&self.space[self.from..self.from + take]);
            self.from += take;
        }
        Ok(bytes)
    }

    /// Reads and discards the next `count` bytes.
    pub async fn skip(&mut self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            if self.from == self.to {
                self.more().await?;
            }
            let take = count.min(self.to - self.from);
            self.from += take;
            count -= take;
        }
        Ok(())
    }

    /// Fills `span`, which must lie within the buffer, with the next bytes.
    pub async fn fill(&mut self, buffer: &mut Buffer, span: Span) -> io::Result<()> {
        let take = self.buffered().len().min(span.len as usize);
        buffer.put(span.at, &self.space[self.from..self.from + take]);
        self.from += take;
        let mut done = take as u32;
        while done < span.len {
            let rest = Span::new(span.at + done, span.len - done);
            let socket = Arc::clone(&self.socket);
            let count = socket.receive(|socket| {
                let mut read = (0, 0);
                buffer.fill_with(rest, |bytes| -> io::Result<()> {
                    read = socket.try_read(bytes)?;
                    Ok(())
                })?;
                Ok(read)
            });
            done += count.await? as u32;
            // The read may have filled only a part of `rest`.
            buffer.mark(Span::new(span.at + done, span.len - done), Fill::Unfilled);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_send_that_is_dropped_says_how_much_was_written() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = Socket::new(ours.into()).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        // From now on the socket is known to be ready.
        socket.send(b"first", &[]).await.unwrap();
        // More than the socket's buffer holds.
        let long = vec![1; 64 << 20];
        let mut sent = 0;
        assert!(std::pin::pin!(socket.send_counted(b"head", &long, &mut sent)).poll(&mut cx).is_pending());
        let mut sent_later = 0;
        assert!(std::pin::pin!(socket.send_counted(b"head", &[], &mut sent_later)).poll(&mut cx).is_pending());
        assert_eq!(sent_later, 0);
        drop(socket);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 5 + sent);
        assert!(sent > 0);
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_ends_the_connection_if_a_part_of_it_was_written() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = Socket::new(ours.into()).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        // From now on the socket is known to be ready.
        socket.send(b"first", &[]).await.unwrap();
        // More than the socket's buffer holds.
        let long = vec![1; 64 << 20];
        let ended = std::cell::Cell::new(0);
        let end = |_| ended.set(ended.get() + 1);
        assert!(std::pin::pin!(socket.send_or_end(b"head", &long, end)).poll(&mut cx).is_pending());
        assert_eq!(ended.get(), 1);
        assert!(std::pin::pin!(socket.send_or_end(b"head", &[], end)).poll(&mut cx).is_pending());
        assert_eq!(ended.get(), 1, "there was no room for it");
        drop(socket);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert!(received.len() > 5 && received.len() < long.len(), "{}", received.len());
    }
}
