//! One connection to a store: TCP, and TLS over it.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use rbdkit_tls::{Handshake, Session};
use tokio::net::TcpStream;

/// What one call reads at most, in bytes: a record of TLS.
const READ: usize = 16 << 10;

/// The most bytes that are encrypted at a time: four records.
const ENCRYPTED_AT_A_TIME: usize = 64 << 10;

/// A connected stream.
pub(super) struct Stream {
    tcp: TcpStream,
    tls: Option<Session>,
    space: Box<[u8]>,
}

/// A socket that answers `WouldBlock` instead of waiting.
struct Wire<'a>(&'a TcpStream);

impl Read for Wire<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(to)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Takes over a connection and, with a session, agrees upon TLS.
    pub(super) async fn new(tcp: TcpStream, tls: Option<Session>) -> io::Result<Stream> {
        let mut stream = Stream { tcp, tls, space: vec![0; READ].into_boxed_slice() };
        if let Some(session) = &mut stream.tls {
            loop {
                match session.handshake(&mut Wire(&stream.tcp))? {
                    Handshake::Done => break,
                    Handshake::WantsRead => stream.tcp.readable().await?,
                    Handshake::WantsWrite => stream.tcp.writable().await?,
                }
            }
        }
        Ok(stream)
    }

    fn try_read(&mut self, room: usize) -> io::Result<usize> {
        let room = room.min(READ);
        let space = &mut self.space[..room];
        match &mut self.tls {
            Some(session) => Ok(session.read(&mut Wire(&self.tcp), space, &mut [])?.count),
            None => self.tcp.try_read(space),
        }
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            Some(session) => {
                let written = session.write(&mut Wire(&self.tcp), slices, ENCRYPTED_AT_A_TIME)?;
                written.ok_or_else(|| ErrorKind::WouldBlock.into())
            }
            None => self.tcp.try_write_vectored(slices),
        }
    }

    fn write_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.try_write(slices) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_write_ready(cx))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if to.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match stream.try_read(to.remaining()) {
                Ok(count) => {
                    to.put_slice(&stream.space[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(stream.tcp.poll_read_ready(cx))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write_slices(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back: a write returns when its bytes are sent.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if let Some(session) = &mut stream.tls {
            session.close(&mut Wire(&stream.tcp));
        }
        // The other side may have closed it already.
        let _ = rustix::net::shutdown(&stream.tcp, rustix::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
