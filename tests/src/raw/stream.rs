//! Single messages of the protocol, in any order and of any kind.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::numbers::{EXTENDED_REQUEST, IHAVEOPT, NBDMAGIC, OPTION_REPLY, REQUEST, rep};
use crate::wait::{Deadline, TIMEOUT};

/// A reply to an option: its type and its data.
pub type OptionReply = (u32, Vec<u8>);

/// A connection that sends and receives single messages and checks nothing.
pub struct Stream(pub UnixStream);

impl Stream {
    /// Connects without sending or reading anything.
    pub fn connect(socket: &Path) -> Stream {
        let stream = UnixStream::connect(socket).expect("the server's socket");
        // A server that hangs makes the test fail instead of hang.
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        Stream(stream)
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn exact<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a number of two bytes.
    pub fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.exact()?))
    }

    /// Reads a number of four bytes.
    pub fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.exact()?))
    }

    /// Reads a number of eight bytes.
    pub fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.exact()?))
    }

    /// Reads `len` bytes.
    pub fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the server's greeting and answers with these client flags (1: fixed newstyle, 2: no
    /// zeroes). The result is the server's flags.
    pub fn greet(&mut self, client_flags: u32) -> io::Result<u16> {
        assert_eq!(self.u64()?, NBDMAGIC);
        assert_eq!(self.u64()?, IHAVEOPT);
        let flags = self.u16()?;
        self.send(&client_flags.to_be_bytes())?;
        Ok(flags)
    }

    /// Sends an option with its data.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.option_header(option, data.len() as u32)?;
        self.send(data)
    }

    /// Sends the header of an option without its data.
    pub fn option_header(&mut self, option: u32, length: u32) -> io::Result<()> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        self.send(&message)
    }

    /// Reads one reply to `option`.
    pub fn option_reply(&mut self, option: u32) -> io::Result<OptionReply> {
        assert_eq!(self.u64()?, OPTION_REPLY);
        assert_eq!(self.u32()?, option, "a reply to another option");
        let kind = self.u32()?;
        let length = self.u32()?;
        assert!(length < 1 << 20, "a reply of {length} bytes");
        Ok((kind, self.bytes(length as usize)?))
    }

    /// Reads the replies to `option` up to the last one. The result is the last one's type and the
    /// replies before it.
    pub fn option_replies(&mut self, option: u32) -> io::Result<(u32, Vec<OptionReply>)> {
        let mut before = Vec::new();
        let deadline = Deadline::new();
        loop {
            deadline.check("the last reply to an option");
            let (kind, data) = self.option_reply(option)?;
            if kind == rep::ACK || kind & 0x8000_0000 != 0 {
                return Ok((kind, before));
            }
            before.push((kind, data));
        }
    }

    /// Sends a request's header.
    pub fn request(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> io::Result<()> {
        self.send(&request(flags, kind, cookie, offset, length))
    }

    /// Whether the server closes the connection without sending anything more.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads until the server closes the connection. The result is the number of bytes that came.
    pub fn drain(&mut self) -> usize {
        let mut sum = 0;
        let mut bytes = vec![0; 65536];
        let deadline = Deadline::new();
        loop {
            deadline.check("the server closes the connection");
            match self.0.read(&mut bytes) {
                Ok(0) => return sum,
                Ok(n) => sum += n,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return sum,
                Err(error) => panic!("the server does not close: {error}"),
            }
        }
    }
}

/// A request's header.
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = REQUEST.to_be_bytes().to_vec();
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&offset.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message
}

/// A request's extended header.
pub fn extended_request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut message = EXTENDED_REQUEST.to_be_bytes().to_vec();
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&offset.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message
}

/// The data of the options GO and INFO.
pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    for info in infos {
        data.extend_from_slice(&info.to_be_bytes());
    }
    data
}

/// The data of the options SET_META_CONTEXT and LIST_META_CONTEXT.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}
