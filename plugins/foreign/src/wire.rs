//! The packets on the control socket between the server and the plugin's process.
//!
//! A packet is one byte that says what it is, and then fields: numbers with their bytes in order,
//! texts with their length before them. Both processes are the same program, so there are no
//! versions. The server does not trust what comes from the process: each field is checked against
//! the packet's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{SendFlags, send};

/// The longest packet, in bytes. An argument of a command line has at most 128 KiB.
pub(crate) const MAX_PACKET: usize = 160 << 10;

/// The longest text of a message, in bytes. The rest is cut.
pub(crate) const MAX_TEXT: usize = 8 << 10;

/// What a packet is. The server sends the first group, the process the second.
pub(crate) mod kind {
    /// Switches and standard input; the answer is HELLO, or DONE if the plugin cannot be loaded.
    pub(crate) const INIT: u8 = 1;
    /// A parameter.
    pub(crate) const CONFIG: u8 = 2;
    pub(crate) const CONFIG_COMPLETE: u8 = 3;
    /// The answer is DONE with the thread model.
    pub(crate) const THREAD_MODEL: u8 = 4;
    pub(crate) const GET_READY: u8 = 5;
    /// The user, the group and the groups of the server.
    pub(crate) const AFTER_FORK: u8 = 6;
    /// The answer is TEXT, and DONE.
    pub(crate) const DUMP: u8 = 7;
    /// A connection, with its memory and the descriptor that tells the server of answers.
    pub(crate) const CHANNEL: u8 = 8;
    /// Cleans up and unloads.
    pub(crate) const CLEANUP: u8 = 9;

    pub(crate) const HELLO: u8 = 65;
    /// The plugin has started its program again, so the conversation begins anew.
    pub(crate) const AGAIN: u8 = 66;
    /// A result, and the last message of an error.
    pub(crate) const DONE: u8 = 67;
    /// A message for the log, and the connection that it is about.
    pub(crate) const ERROR: u8 = 68;
    pub(crate) const DEBUG: u8 = 69;
    /// The plugin asks the server to end.
    pub(crate) const SHUTDOWN: u8 = 70;
    /// The plugin ends a connection.
    pub(crate) const DISCONNECT: u8 = 71;
    /// A part of what the plugin prints for `--dump-plugin`.
    pub(crate) const TEXT: u8 = 72;
}

/// A packet that is being made.
pub(crate) struct Packet(Vec<u8>);

impl Packet {
    pub(crate) fn new(kind: u8) -> Packet {
        Packet(vec![kind])
    }

    /// Fields without a packet around them.
    pub(crate) fn fields() -> Packet {
        Packet(Vec::new())
    }

    pub(crate) fn byte(mut self, value: u8) -> Packet {
        self.0.push(value);
        self
    }

    pub(crate) fn number(mut self, value: u64) -> Packet {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn signed(self, value: i64) -> Packet {
        self.number(value as u64)
    }

    pub(crate) fn text(mut self, value: &[u8]) -> Packet {
        self.0.extend((value.len() as u32).to_ne_bytes());
        self.0.extend(value);
        self
    }

    /// A text that may be missing.
    pub(crate) fn optional(self, value: Option<&[u8]>) -> Packet {
        match value {
            Some(value) => self.byte(1).text(value),
            None => self.byte(0),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Sends it, waiting until the other side has room.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            match send(socket.as_fd(), &self.0, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The fields of a packet. Each function is none if the packet ends before the field does.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields(bytes)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*number))
    }

    pub(crate) fn signed(&mut self) -> Option<i64> {
        self.number().map(|number| number as i64)
    }

    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
        self.0 = rest;
        Some(text)
    }

    pub(crate) fn optional(&mut self) -> Option<Option<&'a [u8]>> {
        match self.byte()? {
            0 => Some(None),
            _ => self.text().map(Some),
        }
    }
}

/// A text that others see: without what is not UTF-8, without control characters, and not long.
pub(crate) fn shown(text: &[u8]) -> String {
    let cut = &text[..text.len().min(MAX_TEXT)];
    let text = String::from_utf8_lossy(cut);
    text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_beyond_the_end_is_none() {
        let packet = Packet::new(kind::DONE).signed(-5).text(b"why").optional(None).optional(Some(b""));
        let mut fields = Fields::new(packet.bytes());
        assert_eq!(fields.byte(), Some(kind::DONE));
        assert_eq!(fields.signed(), Some(-5));
        assert_eq!(fields.text(), Some(&b"why"[..]));
        assert_eq!((fields.optional(), fields.optional()), (Some(None), Some(Some(&b""[..]))));
        assert!(fields.byte().is_none());
        for end in 0..packet.bytes().len() {
            let mut fields = Fields::new(&packet.bytes()[..end]);
            let mut all = || {
                let _ = (fields.byte()?, fields.signed()?, fields.text()?, fields.optional()?);
                fields.optional()
            };
            assert!(all().is_none(), "{end}");
        }
        assert_eq!(Fields::new(&[255, 255, 255, 255, 1]).text(), None);
    }

    #[test]
    fn control_characters_do_not_reach_the_log() {
        assert_eq!(shown(b"a\x1b[31m\nb\xff\n"), "a [31m b\u{fffd}");
    }
}
