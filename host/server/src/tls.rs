//! The TLS of one connection: what stands between the socket and the protocol.
//!
//! A reader and a writer share a [`TlsStream`], and each of them does its own part of the work: the
//! thread that writes replies encrypts them, and the one that reads requests decrypts them.
//! Connections share nothing, so that each can use a processor of its own.
//!
//! Encrypted bytes that the client has not taken are charged to an account ([`TlsMemory`]). The
//! plain bytes stay with their request until all of what they became is sent, so that nothing is
//! counted as written before.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{Held, Quota, TlsPeer, Usage, lock};
use rbdkit_tls::{Handshake, Session};
use rustix::net::{SendAncillaryBuffer, SendFlags};

/// What a session holds while it waits, in bytes: the state of the library, and a started record.
const IDLE: u64 = 32 << 10;

/// The most bytes of replies that are encrypted at a time: four records, which go to the socket in
/// one system call. They fit into a processor's own cache, and the client can decrypt them while
/// the next ones are encrypted. The allocator keeps 128 KiB for the next ones; it would give more
/// back to the system each time.
const LONG: usize = 64 << 10;

/// What may be added to the last piece, so that a reply's header does not make a piece of its own.
const REST: usize = 1024;

/// The same for a connection for which there is no more room in the account: a record.
const SHORT: usize = 16 << 10;

/// The account of encrypted bytes.
#[derive(Debug)]
pub(super) struct TlsMemory(Arc<Quota>);

impl TlsMemory {
    /// An account of this many bytes.
    pub fn new(bytes: u64) -> TlsMemory {
        TlsMemory(Arc::new(Quota::new(bytes)))
    }

    /// The charge for a session. None: too many clients use TLS.
    pub fn hold_session(&self) -> Option<Held> {
        self.0.hold(IDLE + (SHORT + REST) as u64)
    }

    /// What is used of the account.
    pub fn usage(&self) -> Usage {
        self.0.usage("tls")
    }
}

/// The socket, or the pair of files, under a session.
#[derive(Debug)]
struct Wire {
    input: Arc<OwnedFd>,
    output: Arc<OwnedFd>,
    output_is_socket: bool,
}

impl Read for &Wire {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.input, to)?)
    }
}

impl Write for &Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(match self.output_is_socket {
            true => {
                let mut nothing = SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.output, slices, &mut nothing, SendFlags::NOSIGNAL)?
            }
            false => rustix::io::writev(&self.output, slices)?,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Inner {
    session: Session,
    /// The charge for what is encrypted and not sent, if it is a long piece.
    unsent: Option<Held>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct TlsStream {
    wire: Wire,
    inner: Mutex<Inner>,
    memory: Arc<Quota>,
    _session: Held,
}

impl TlsStream {
    /// Over these files, with the charge for the session.
    pub fn new(
        session: Session,
        charge: Held,
        memory: &TlsMemory,
        input: &Arc<OwnedFd>,
        (output, output_is_socket): (&Arc<OwnedFd>, bool),
    ) -> TlsStream {
        TlsStream {
            wire: Wire { input: Arc::clone(input), output: Arc::clone(output), output_is_socket },
            inner: Mutex::new(Inner { session, unsent: None }),
            memory: Arc::clone(&memory.0),
            _session: charge,
        }
    }

    /// Goes on with the handshake.
    ///
    /// # Errors
    /// It has failed.
    pub fn handshake(&self) -> io::Result<Handshake> {
        lock(&self.inner).session.handshake(&mut &self.wire)
    }

    /// The names of the client, and the algorithms for the log.
    pub fn peer(&self) -> (TlsPeer, String) {
        let inner = lock(&self.inner);
        let names = inner.session.peer_names();
        (TlsPeer { subject: names.subject, issuer: names.issuer }, inner.session.algorithms())
    }

    /// Whether [`TlsStream::read`] may return something although the socket has nothing.
    pub fn has_input(&self) -> bool {
        lock(&self.inner).session.has_input()
    }

    /// Reads into two places. It returns the number of bytes, and more than that as the room if the
    /// socket is empty.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing yet.
    pub fn read(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<(usize, usize)> {
        let received = lock(&self.inner).session.read(&mut &self.wire, first, second)?;
        Ok((received.count, if received.more { received.count } else { received.count + 1 }))
    }

    /// Encrypts and writes what fits without waiting. None: the socket is full. Some of the bytes
    /// may be encrypted already then, so the next call has to begin with the same ones.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.try_encrypted(length, |session, wire, most| session.write(wire, slices, most))
    }

    /// Like [`TlsStream::try_write`], for bytes that nobody else needs: they may be encrypted where
    /// they are.
    pub fn try_write_in_place(&self, slices: &mut [&mut [u8]]) -> io::Result<Option<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.try_encrypted(length, |session, wire, most| session.write_in_place(wire, slices, most))
    }

    fn try_encrypted(
        &self,
        length: usize,
        write: impl FnOnce(&mut Session, &mut &Wire, usize) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let mut inner = lock(&self.inner);
        let most = if inner.session.has_unsent() {
            0
        } else {
            inner.unsent = self.memory.hold((LONG + REST) as u64);
            let most = if inner.unsent.is_some() { LONG } else { SHORT };
            if length <= most + REST { length } else { most }
        };
        let written = write(&mut inner.session, &mut &self.wire, most);
        if !matches!(written, Ok(None)) || !inner.session.has_unsent() {
            inner.unsent = None;
        }
        written
    }

    /// Tells the client that nothing more follows, if there is room to say so.
    pub fn close(&self) {
        lock(&self.inner).session.close(&mut &self.wire);
    }
}
