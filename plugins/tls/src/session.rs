//! [`Session`]: one connection's TLS.
//!
//! A session never waits. What it reads from and writes to must not block: it answers with
//! `WouldBlock` instead.
//!
//! # Memory
//!
//! A session that waits holds no bytes of either direction, besides a started record. One that
//! reads holds up to [`Session::MAX_READ`] encrypted bytes and two records of decrypted ones. One
//! that writes holds what the caller lets it encrypt at a time, until the other end has taken it.

use std::io::{self, IoSlice, Read, Write};

use crate::error::TlsError;
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
    /// Encrypted bytes of the other end, used up to `at`.
    input: Vec<u8>,
    at: usize,
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

    /// What is read at a time for a caller that wants little.
    const SHORT_READ: usize = 4096;

    pub(crate) fn with_certificates(engine: CertificateEngine) -> Session {
        Session::new(Engine::Certificates(Box::new(engine)))
    }

    pub(crate) fn with_keys(engine: KeyEngine) -> Session {
        Session::new(Engine::Keys(Box::new(engine)))
    }

    fn new(engine: Engine) -> Session {
        Session { engine, input: Vec::new(), at: 0, unsent: 0, more: false, ended: false }
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
            let fed = match self.feed() {
                Ok(true) => continue,
                Ok(false) => self.receive(wire, Session::SHORT_READ),
                Err(error) => {
                    let _ = self.flush(wire);
                    return Err(error.into());
                }
            };
            match fed {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::WantsRead),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the engine some of the bytes that were received. False: there are none.
    fn feed(&mut self) -> Result<bool, TlsError> {
        if self.at == self.input.len() {
            return Ok(false);
        }
        let input = &self.input[self.at..];
        self.at += engine!(self, engine => engine.feed(input))?;
        Ok(true)
    }

    /// Reads encrypted bytes from `wire`, `most` at most. All earlier ones are used.
    fn receive(&mut self, wire: &mut dyn Read, most: usize) -> io::Result<usize> {
        self.at = 0;
        self.input.resize(most, 0);
        let received = wire.read(&mut self.input);
        self.input.truncate(*received.as_ref().unwrap_or(&0));
        if self.input.is_empty() {
            // It waits now, and holds nothing.
            self.input = Vec::new();
        }
        received
    }

    /// Whether [`Session::read`] may return something without reading from the wire.
    pub fn has_input(&self) -> bool {
        self.at < self.input.len() || self.more || self.ended
    }

    /// Reads decrypted bytes into `first` and then into `second`, `first` being not empty.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing yet. `InvalidData`: the other end violates the protocol.
    /// Otherwise an error of `wire`.
    pub fn read<W: Read + Write>(&mut self, wire: &mut W, first: &mut [u8], second: &mut [u8]) -> io::Result<Received> {
        let (mut count, mut at) = (0, 0);
        let room = first.len() + second.len();
        let most = if room < 2 * Session::SHORT_READ { Session::SHORT_READ } else { Session::MAX_READ };
        while count < room && !self.ended {
            let to = if at < first.len() { &mut first[at..] } else { &mut second[at - first.len()..] };
            match engine!(self, engine => engine.take(to))? {
                Taken::Bytes(taken) => {
                    (count, at) = (count + taken, at + taken);
                    continue;
                }
                Taken::End => self.ended = true,
                Taken::Nothing => {
                    let fed = self.feed().inspect_err(|_| drop(self.flush(wire)))?;
                    // An answer to the other end's messages, such as its new keys.
                    if fed && engine!(self, engine => engine.has_output()) && self.unsent == 0 {
                        self.flush(wire)?;
                    }
                    if fed {
                        continue;
                    }
                    match self.receive(wire, most) {
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

    /// Sends what is encrypted. False: there is no room now.
    fn flush(&mut self, wire: &mut dyn Write) -> io::Result<bool> {
        while engine!(self, engine => engine.has_output()) {
            match engine!(self, engine => engine.send(wire)) {
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
        if !self.flush(wire)? {
            return Ok(None);
        }
        if self.unsent == 0 {
            self.unsent = self.encrypt(slices, most)?;
            if !self.flush(wire)? {
                return Ok(None);
            }
        }
        Ok(Some(std::mem::take(&mut self.unsent)))
    }

    fn encrypt(&mut self, slices: &[IoSlice<'_>], most: usize) -> Result<usize, TlsError> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length <= most {
            engine!(self, engine => engine.encrypt(slices))?;
            return Ok(length);
        }
        let mut left = most;
        let cut: Vec<IoSlice<'_>> = slices
            .iter()
            .map(|slice| {
                let count = slice.len().min(left);
                left -= count;
                IoSlice::new(&slice[..count])
            })
            .take_while(|slice| !slice.is_empty())
            .collect();
        engine!(self, engine => engine.encrypt(&cut))?;
        Ok(most - left)
    }

    /// Whether bytes of the caller are encrypted and not sent.
    pub fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Tells the other end that nothing more follows, if there is room to say so.
    pub fn close(&mut self, wire: &mut dyn Write) {
        engine!(self, engine => engine.end());
        let _ = self.flush(wire);
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

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}
