//! The server's side of one connection, on a thread, that does what a test tells it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::DEADLINE;
use crate::wire::{info, opt, rep};

/// A socket's path for a fake server.
pub(super) struct Place {
    pub(super) path: PathBuf,
    _directory: TempDir,
}

/// The server's side of one connection.
pub(super) struct Server(pub(super) UnixStream);

pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Server {
    /// The client may have closed the connection already.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub(super) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).expect("the client's bytes");
        bytes
    }

    pub(super) fn receive_vec(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).expect("the client's bytes");
        bytes
    }

    pub(super) fn greet(&mut self, flags: u16) {
        self.send(b"NBDMAGICIHAVEOPT");
        self.send(&flags.to_be_bytes());
        assert_eq!(u32::from_be_bytes(self.receive()), u32::from(flags));
    }

    pub(super) fn option(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(&self.receive::<8>(), b"IHAVEOPT");
        let option = u32::from_be_bytes(self.receive());
        let length = u32::from_be_bytes(self.receive());
        (option, self.receive_vec(length.into()))
    }

    pub(super) fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.send(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.send(&option.to_be_bytes());
        self.send(&kind.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
    }

    pub(super) fn export(&mut self, size: u64, flags: u16) {
        let data = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.reply(opt::GO, rep::INFO, &data);
    }

    /// A server of an export of 1 MiB without extended headers, up to the transmission.
    pub(super) fn handshake(&mut self, structured: bool, flags: u16) {
        self.negotiate(if structured { &[opt::STRUCTURED_REPLY] } else { &[] }, 1 << 20, flags);
    }

    /// A server with extended headers, of an export of this size, up to the transmission.
    pub(super) fn extended_handshake(&mut self, size: u64, flags: u16) {
        self.negotiate(&[opt::EXTENDED_HEADERS], size, flags);
    }

    fn negotiate(&mut self, granted: &[u32], size: u64, flags: u16) {
        self.greet(3);
        loop {
            match self.option() {
                (option, _) if granted.contains(&option) => self.reply(option, rep::ACK, &[]),
                (opt::SET_META_CONTEXT, _) => {
                    let context = [&7_u32.to_be_bytes()[..], b"base:allocation"].concat();
                    self.reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &context);
                    self.reply(opt::SET_META_CONTEXT, rep::ACK, &[]);
                }
                (opt::GO, _) => {
                    self.export(size, flags);
                    self.reply(opt::GO, rep::ACK, &[]);
                    return;
                }
                (option, _) => self.reply(option, rep::ERR_UNSUP, b"no such thing"),
            }
        }
    }

    pub(super) fn request(&mut self) -> Request {
        assert_eq!(u32::from_be_bytes(self.receive()), 0x2560_9513);
        Request {
            flags: u16::from_be_bytes(self.receive()),
            kind: u16::from_be_bytes(self.receive()),
            cookie: u64::from_be_bytes(self.receive()),
            offset: u64::from_be_bytes(self.receive()),
            length: u32::from_be_bytes(self.receive()).into(),
        }
    }

    /// A request with an extended header.
    pub(super) fn extended_request(&mut self) -> Request {
        assert_eq!(u32::from_be_bytes(self.receive()), 0x21e4_1c71);
        Request {
            flags: u16::from_be_bytes(self.receive()),
            kind: u16::from_be_bytes(self.receive()),
            cookie: u64::from_be_bytes(self.receive()),
            offset: u64::from_be_bytes(self.receive()),
            length: u64::from_be_bytes(self.receive()),
        }
    }

    /// A chunk with an extended header, which repeats the offset of its request.
    pub(super) fn extended_chunk(&mut self, done: bool, kind: u16, request: &Request, payload: &[u8]) {
        self.send(&extended_header(done, kind, request.cookie, request.offset, payload.len() as u64));
        self.send(payload);
    }

    pub(super) fn simple(&mut self, cookie: u64, error: u32) {
        self.send(&0x6744_6698_u32.to_be_bytes());
        self.send(&error.to_be_bytes());
        self.send(&cookie.to_be_bytes());
    }

    pub(super) fn chunk(&mut self, done: bool, kind: u16, cookie: u64, payload: &[u8]) {
        self.send(&chunk_header(done, kind, cookie, payload.len() as u32));
        self.send(payload);
    }

    /// Waits until the client closes the connection.
    pub(super) fn wait_for_end(&mut self) {
        let _ = std::io::copy(&mut self.0, &mut std::io::sink());
    }
}

pub(super) fn extended_header(done: bool, kind: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut header = 0x6e8a_278c_u32.to_be_bytes().to_vec();
    header.extend_from_slice(&u16::from(done).to_be_bytes());
    header.extend_from_slice(&kind.to_be_bytes());
    header.extend_from_slice(&cookie.to_be_bytes());
    header.extend_from_slice(&offset.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header
}

pub(super) fn chunk_header(done: bool, kind: u16, cookie: u64, length: u32) -> Vec<u8> {
    let mut header = 0x668e_33ef_u32.to_be_bytes().to_vec();
    header.extend_from_slice(&u16::from(done).to_be_bytes());
    header.extend_from_slice(&kind.to_be_bytes());
    header.extend_from_slice(&cookie.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header
}

pub(super) fn data_chunk(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

/// A server for one connection.
pub(super) fn serve(script: impl FnOnce(&mut Server) + Send + 'static) -> (Place, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { path: directory.path().join("socket"), _directory: directory };
    let listener = UnixListener::bind(&place.path).unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        // A client that sends or reads nothing more makes the test fail rather than hang.
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        script(&mut Server(stream));
    });
    (place, thread)
}
