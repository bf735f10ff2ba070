//! SFTP version 3, as OpenSSH speaks it: numbers and packets. All integers are big-endian; a string
//! is a 32-bit length and as many bytes.

use rbdkit_plugin_api::Errno;

/// Kinds of packets.
pub(crate) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 200;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

/// Flags of OPEN.
pub(crate) mod open {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const CREATE: u32 = 8;
    pub(crate) const TRUNCATE: u32 = 16;
}

/// Flags that say which attributes of a file follow.
pub(crate) mod attr {
    pub(crate) const SIZE: u32 = 1;
    pub(crate) const UIDGID: u32 = 2;
    pub(crate) const PERMISSIONS: u32 = 4;
}

/// The extension that makes writes durable.
pub(crate) const FSYNC: &[u8] = b"fsync@openssh.com";

/// The extension that tells the longest packets.
pub(crate) const LIMITS: &[u8] = b"limits@openssh.com";

/// The codes of a STATUS.
pub(crate) mod status {
    pub(crate) const OK: u32 = 0;
    pub(crate) const EOF: u32 = 1;
    pub(crate) const NO_SUCH_FILE: u32 = 2;
    pub(crate) const PERMISSION_DENIED: u32 = 3;
    pub(crate) const OP_UNSUPPORTED: u32 = 8;
}

/// The error for a status code. FAILURE (4) stands for everything that has no code of its own,
/// including a full disk.
pub(crate) fn errno(code: u32) -> Errno {
    match code {
        status::NO_SUCH_FILE => Errno::Enoent,
        status::PERMISSION_DENIED => Errno::Eperm,
        status::OP_UNSUPPORTED => Errno::Enotsup,
        _ => Errno::Eio,
    }
}

/// A packet under construction. Its length is set last.
pub(crate) struct Packet(Vec<u8>);

impl Packet {
    pub(crate) fn new(kind: u8) -> Packet {
        Packet(vec![0, 0, 0, 0, kind])
    }

    /// A request.
    pub(crate) fn request(kind: u8, id: u32) -> Packet {
        Packet::new(kind).u32(id)
    }

    pub(crate) fn u32(mut self, number: u32) -> Packet {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, number: u64) -> Packet {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(crate) fn string(self, bytes: &[u8]) -> Packet {
        let mut packet = self.u32(bytes.len() as u32);
        packet.0.extend_from_slice(bytes);
        packet
    }

    /// The packet, followed by `payload` more bytes.
    pub(crate) fn finish(mut self, payload: u32) -> Vec<u8> {
        let length = self.0.len() as u32 - 4 + payload;
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// Reads values from the front of a packet. Every function returns none, and reads nothing, if
/// there are too few bytes.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let mut ahead = Reader(self.0);
        let length = ahead.u32()?;
        let (taken, rest) = ahead.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
}

/// Attributes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Kind and permissions, as in Unix.
    pub(crate) mode: Option<u32>,
}

impl Attributes {
    pub(crate) fn read(mut from: Reader<'_>) -> Option<Attributes> {
        let flags = from.u32()?;
        let mut attributes = Attributes::default();
        if flags & attr::SIZE != 0 {
            attributes.size = Some(from.u64()?);
        }
        if flags & attr::UIDGID != 0 {
            from.u64()?;
        }
        if flags & attr::PERMISSIONS != 0 {
            attributes.mode = Some(from.u32()?);
        }
        Some(attributes)
    }
}
