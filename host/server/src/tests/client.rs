//! A client written by hand from the specification. It uses nothing of the server's codec.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZERO: u16 = 6;
pub const STATUS: u16 = 7;

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub kind: u32,
    pub data: Vec<u8>,
}

/// One message of the transmission phase.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, data: Vec<u8> },
}

impl Client {
    pub fn over(stream: UnixStream) -> Client {
        // A timeout makes a test fail instead of hang.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { stream, structured: false }
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    pub fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// Waits until the server ends the connection. Returns what it still sent.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            // The server closed without reading everything that we sent.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server does not end the connection: {error}"),
        }
        bytes
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.send(&message);
    }

    /// All replies to an option.
    pub fn option_replies(&mut self, option: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take(8), [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
            assert_eq!(self.take_u32(), option);
            let kind = self.take_u32();
            let length = self.take_u32() as usize;
            let data = self.take(length);
            replies.push(OptionReply { kind, data });
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        self.option_replies(option)
    }

    /// Enters the transmission phase with GO. `structured` asks for structured replies and
    /// base:allocation.
    pub fn go(&mut self, name: &str, structured: bool) {
        self.greet(3);
        if structured {
            assert_eq!(self.option(8, &[])[0].kind, 1);
            assert_eq!(self.option(10, &meta(name, &["base:allocation"])).len(), 2);
        }
        self.structured = structured;
        let replies = self.option(7, &go(name, &[]));
        assert_eq!(replies.last().unwrap().kind, 1, "{replies:?}");
    }

    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request(command, flags, cookie, offset, length));
    }

    pub fn reply(&mut self) -> Reply {
        match self.take_u32() {
            0x6744_6698 => {
                Reply::Simple { error: self.take_u32(), cookie: u64::from_be_bytes(self.take(8).try_into().unwrap()) }
            }
            0x668e_33ef => {
                let head = self.take(16);
                let length = u32::from_be_bytes(head[12..].try_into().unwrap());
                Reply::Chunk {
                    flags: u16::from_be_bytes(head[..2].try_into().unwrap()),
                    kind: u16::from_be_bytes(head[2..4].try_into().unwrap()),
                    cookie: u64::from_be_bytes(head[4..12].try_into().unwrap()),
                    data: self.take(length as usize),
                }
            }
            other => panic!("a reply begins with {other:#x}"),
        }
    }

    /// The error of a request that fails or whose reply has no data.
    pub fn error(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        self.request(command, flags, 77, offset, length);
        self.error_reply(77)
    }

    pub fn error_reply(&mut self, expected: u64) -> u32 {
        match self.reply() {
            Reply::Simple { error, cookie } => {
                assert_eq!(cookie, expected);
                error
            }
            Reply::Chunk { flags: 1, kind: 0x8001, cookie, data } => {
                assert_eq!(cookie, expected);
                assert_eq!(data.len(), 6 + usize::from(u16::from_be_bytes([data[4], data[5]])));
                u32::from_be_bytes(data[..4].try_into().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.request(WRITE, 0, 5, offset, data.len() as u32);
        self.send(data);
        self.error_reply(5)
    }

    /// The data of a read that succeeds, from all its chunks.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.request(READ, 0, 9, offset, length);
        if !self.structured {
            assert_eq!(self.reply(), Reply::Simple { error: 0, cookie: 9 });
            return self.take(length as usize);
        }
        let mut bytes = vec![0xee; length as usize];
        let mut covered = 0;
        loop {
            let Reply::Chunk { flags, kind, cookie, data } = self.reply() else { panic!("a simple reply to a read") };
            assert_eq!(cookie, 9);
            let at = (u64::from_be_bytes(data[..8].try_into().unwrap()) - offset) as usize;
            match kind {
                1 => {
                    bytes[at..][..data.len() - 8].copy_from_slice(&data[8..]);
                    covered += data.len() - 8;
                }
                2 => {
                    let hole = u32::from_be_bytes(data[8..].try_into().unwrap()) as usize;
                    bytes[at..][..hole].fill(0);
                    covered += hole;
                }
                kind => panic!("chunk of kind {kind}"),
            }
            if flags & 1 == 1 {
                assert_eq!(covered, length as usize);
                return bytes;
            }
        }
    }
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = vec![0x25, 0x60, 0x95, 0x13];
    message.extend(flags.to_be_bytes());
    message.extend(command.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

pub fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}
