//! [`Session`]: one connection's TLS.
//!
//! A session never waits. What it reads from and writes to must not block: it answers with
//! `WouldBlock` instead.
//!
//! # Memory
//!
//! A session that waits holds no bytes of either direction, besides a started record. One that
//! reads holds up to [`Session::MAX_READ`] bytes, which it decrypts where they are. One that writes
//! holds a copy of what the caller lets it encrypt at a time, until the other end has taken it.
//! Long runs of bytes that the caller gives away are encrypted where they are
//! ([`Session::write_in_place`]).

use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;

use crate::cipher::{MAX_ENCRYPTED, RECORD};
use crate::error::TlsError;
use crate::outgoing::Plain;
use crate::taken::{PeerNames, Taken};
use crate::with_openssl::KeyEngine;
use crate::with_rustls::CertificateEngine;

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is over.
    Done,
    /// There is something to read first.
    WantsRead,
    /// There has to be room to write first.
    WantsWrite,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Decrypted bytes. 0: the other end has closed its side.
    pub count: usize,
    /// There may be more without another wait.
    pub more: bool,
}

enum Engine {
    Certificates(Box<CertificateEngine>),
    Keys(Box<KeyEngine>),
}

macro_rules! engine {
    ($self:expr, $engine:ident => $call:expr) => {
        match &mut $self.engine {
            Engine::Certificates($engine) => $call,
            Engine::Keys($engine) => $call,
        }
    };
}

/// One connection's TLS.
pub struct Session {
    engine: Engine,
    /// Bytes of the other end: `at..filled` is not used yet.
    input: Vec<u8>,
    at: usize,
    filled: usize,
    /// What of `input` is decrypted and not yet taken.
    data: Range<usize>,
    /// Bytes of the caller that are encrypted and not yet sent.
    unsent: usize,
    /// The last read filled all the room that it had, so there may be more.
    more: bool,
    /// The other end has closed its side.
    ended: bool,
}

impl Session {
    /// The most encrypted bytes that are read at a time: four records.
    pub const MAX_READ: usize = 4 * (16 << 10) + 1024;

    /// What is read at first. A request without a payload is shorter.
    const SHORT_READ: usize = 4096;

    pub(crate) fn with_certificates(engine: CertificateEngine) -> Session {
        Session::new(Engine::Certificates(Box::new(engine)))
    }

    pub(crate) fn with_keys(engine: KeyEngine) -> Session {
        Session::new(Engine::Keys(Box::new(engine)))
    }

    fn new(engine: Engine) -> Session {
        Session { engine, input: Vec::new(), at: 0, filled: 0, data: 0..0, unsent: 0, more: false, ended: false }
    }

    /// Goes on with the handshake.
    ///
    /// # Errors
    /// The handshake fails; the other end was told if it could be told at once. Or an error of
    /// `wire`.
    pub fn handshake<W: Read + Write>(&mut self, wire: &mut W) -> io::Result<Handshake> {
        // Bytes behind the handshake may be decrypted with its last message.
        self.more = true;
        loop {
            if !self.flush(wire)? {
                return Ok(Handshake::WantsWrite);
            }
            if !engine!(self, engine => engine.is_handshaking()) {
                return Ok(Handshake::Done);
            }
            match self.feed() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    let _ = self.flush(wire);
                    return Err(error);
                }
            }
            match self.receive(wire) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::WantsRead),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the engine some of the bytes that were received. False: more are needed.
    fn feed(&mut self) -> io::Result<bool> {
        if self.at == self.filled {
            return Ok(false);
        }
        let fed = engine!(self, engine => engine.feed(&mut self.input[self.at..self.filled]))?;
        self.data = self.at + fed.data.start..self.at + fed.data.end;
        self.at += fed.used;
        Ok(fed.used > 0)
    }

    /// Reads more encrypted bytes. There are no decrypted ones left.
    fn receive(&mut self, wire: &mut dyn Read) -> io::Result<usize> {
        self.input.copy_within(self.at..self.filled, 0);
        (self.at, self.filled, self.data) = (0, self.filled - self.at, 0..0);
        if self.filled == 0 && self.input.len() < Session::MAX_READ {
            // Nothing may be there, and memory for much would be allocated and cleared in vain.
            let mut short = [0; Session::SHORT_READ];
            let received = wire.read(&mut short);
            let count = *received.as_ref().unwrap_or(&0);
            match count {
                0 => self.input = Vec::new(),
                _ => {
                    self.input.clear();
                    self.input.extend_from_slice(&short[..count]);
                }
            }
            self.filled = count;
            return received;
        }
        // A message of the handshake may be longer than what is read of data.
        let room = Session::MAX_READ.max(self.filled + MAX_ENCRYPTED);
        if room > MAX_HELD {
            return Err(TlsError::new("the other end sent a message that is too long").into());
        }
        if self.input.len() < room {
            self.input.resize(room, 0);
        }
        let received = wire.read(&mut self.input[self.filled..]);
        self.filled += *received.as_ref().unwrap_or(&0);
        if received.is_err() {
            // It waits now, and holds no more than it has to.
            self.input.truncate(self.filled);
            self.input.shrink_to_fit();
        }
        received
    }

    /// Whether [`Session::read`] may return something without reading from the wire.
    pub fn has_input(&self) -> bool {
        !self.data.is_empty() || self.more || self.ended
    }

    /// Reads decrypted bytes into `first` and then into `second`, `first` being not empty.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing yet. `InvalidData`: the other end violates the protocol.
    /// Otherwise an error of `wire`.
    pub fn read<W: Read + Write>(&mut self, wire: &mut W, first: &mut [u8], second: &mut [u8]) -> io::Result<Received> {
        let mut count = 0;
        let room = first.len() + second.len();
        while count < room && !self.ended {
            let to = if count < first.len() { &mut first[count..] } else { &mut second[count - first.len()..] };
            if !self.data.is_empty() {
                let taken = self.data.len().min(to.len());
                to[..taken].copy_from_slice(&self.input[self.data.start..][..taken]);
                self.data.start += taken;
                count += taken;
                continue;
            }
            match engine!(self, engine => engine.take(to))? {
                Taken::Bytes(taken) => {
                    count += taken;
                    continue;
                }
                Taken::End => self.ended = true,
                Taken::Nothing => {
                    let fed = self.feed().inspect_err(|_| self.flush_unless_unsent(wire).unwrap_or_default())?;
                    // An answer to the other end's messages, such as its new keys. libssl has it
                    // after `take`.
                    self.flush_unless_unsent(wire)?;
                    if fed {
                        continue;
                    }
                    match self.receive(wire) {
                        Ok(0) => self.ended = true,
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && count > 0 => {
                            self.more = false;
                            return Ok(Received { count, more: false });
                        }
                        Err(error) => {
                            self.more = false;
                            return Err(error);
                        }
                    }
                }
            }
        }
        self.more = true;
        Ok(Received { count, more: true })
    }

    /// Sends what the engine itself has to say, if there is room and nothing of the caller comes
    /// first.
    fn flush_unless_unsent(&mut self, wire: &mut dyn Write) -> io::Result<()> {
        match self.unsent {
            0 => self.flush(wire).map(drop),
            _ => Ok(()),
        }
    }

    /// Sends what the engine itself has to say. False: there is no room now.
    fn flush(&mut self, wire: &mut dyn Write) -> io::Result<bool> {
        self.send(wire, &Plain::NONE)
    }

    /// Sends what is encrypted. False: there is no room now.
    fn send(&mut self, wire: &mut dyn Write, plain: &Plain<'_, '_>) -> io::Result<bool> {
        while engine!(self, engine => engine.has_output()) {
            match engine!(self, engine => engine.send(wire, plain)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Encrypts and sends bytes off the front of `slices`, `most` at most. It returns their number
    /// once all of them are sent. None: there is no room now; the caller then calls again with
    /// slices that begin with the same bytes.
    ///
    /// # Errors
    /// Those of `wire`, or the session cannot go on.
    pub fn write(&mut self, wire: &mut dyn Write, slices: &[IoSlice<'_>], most: usize) -> io::Result<Option<usize>> {
        self.write_plain(wire, &mut Plain::Shared(slices), most)
    }

    /// Like [`Session::write`] for bytes that nobody else needs: they may be overwritten, which
    /// saves a copy of long slices. `most` counts for at least a record, 16 KiB. If it returns
    /// None, the caller calls again with slices that begin with the same bytes as they are then.
    ///
    /// # Errors
    /// Those of `wire`, or the session cannot go on.
    pub fn write_in_place(
        &mut self,
        wire: &mut dyn Write,
        slices: &mut [&mut [u8]],
        most: usize,
    ) -> io::Result<Option<usize>> {
        self.write_plain(wire, &mut Plain::Own(slices), most.max(RECORD))
    }

    fn write_plain(
        &mut self,
        wire: &mut dyn Write,
        plain: &mut Plain<'_, '_>,
        most: usize,
    ) -> io::Result<Option<usize>> {
        if self.unsent == 0 {
            if !self.flush(wire)? {
                return Ok(None);
            }
            self.unsent = engine!(self, engine => engine.encrypt(plain, most))?;
        }
        if !self.send(wire, plain)? {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.unsent)))
    }

    /// Whether bytes of the caller are encrypted and not sent.
    pub fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Tells the other end that nothing more follows, if there is room to say so.
    pub fn close(&mut self, wire: &mut dyn Write) {
        if self.unsent == 0 {
            engine!(self, engine => engine.end());
            let _ = self.flush(wire);
        }
    }

    /// For tests: a key may encrypt only so many records.
    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: u64) {
        let Engine::Certificates(engine) = &mut self.engine else { panic!("no certificates") };
        engine.set_limit(limit);
    }

    /// For tests: the memory for bytes of the other end.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.input.capacity()
    }

    /// For tests: the next record is of this kind.
    #[cfg(test)]
    pub(crate) fn put_record(&mut self, kind: u8, bytes: &[u8]) {
        let Engine::Certificates(engine) = &mut self.engine else { panic!("no certificates") };
        engine.put_record(kind, bytes);
    }

    /// What the other end's certificate says.
    pub fn peer_names(&self) -> PeerNames {
        match &self.engine {
            Engine::Certificates(engine) => engine.peer_names(),
            Engine::Keys(_) => PeerNames::default(),
        }
    }

    /// Version and cipher, for the log.
    pub fn algorithms(&self) -> String {
        match &self.engine {
            Engine::Certificates(engine) => engine.algorithms(),
            Engine::Keys(engine) => engine.algorithms(),
        }
    }
}

/// The most bytes of the other end that are held: the longest message of a handshake, and a record.
const MAX_HELD: usize = (64 << 10) + 2 * MAX_ENCRYPTED;

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}
