//! The transmission phase: what a request is, and whether it may be done.
//!
//! The order of the checks and the errors are nbdkit's, so that a client sees no difference: read-only first, then command and range,
//! then flags, then length, then capabilities.

use rbdkit_plugin_api::{Capabilities, Errno, Error, Flags, MAX_REQUEST, Support};

use super::Violation;
use super::wire::{self, Reader, cmd, cmd_flag};

/// What the handshake settled, for the life of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Of the export, bytes.
    pub size: u64,
    /// What the export offers.
    pub can: Capabilities,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// `base:allocation` was negotiated.
    pub base_allocation: bool,
}

/// A request as it came, nothing but its magic number checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// What the reply has to carry.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What follows a request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The next request.
    None,
    /// So many bytes to be written.
    Data(u32),
    /// So many bytes of a write that is refused whatever they are.
    Skip(u32),
}

/// A request that may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "offset and length are bytes, within the export; the rest are flags")]
pub enum Command {
    /// `dont_fragment`: at most one content chunk.
    Read {
        offset: u64,
        length: u32,
        dont_fragment: bool,
    },
    /// The payload follows.
    Write {
        offset: u64,
        length: u32,
        flags: Flags,
    },
    /// No reply, no further request.
    Disconnect,
    Flush,
    Trim {
        offset: u64,
        length: u32,
        flags: Flags,
    },
    Cache {
        offset: u64,
        length: u32,
    },
    Zero {
        offset: u64,
        length: u32,
        flags: Flags,
    },
    BlockStatus {
        offset: u64,
        length: u32,
        flags: Flags,
    },
}

/// Beyond this a refused payload is not skipped: twice the largest request, as nbdkit has it. A client that goes so far past what
/// every server takes is not worth reading on for.
const MAX_SKIP: u32 = 2 * MAX_REQUEST;

impl RequestHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 28;

    /// Takes a header apart. None: there are fewer than [`RequestHeader::SIZE`] bytes.
    ///
    /// # Errors
    /// If it does not begin with the magic number: the stream cannot be followed any more.
    pub fn parse(bytes: &[u8]) -> Result<Option<RequestHeader>, Violation> {
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u32() else { return Ok(None) };
        if magic != wire::REQUEST_MAGIC {
            return Err(Violation::RequestMagic(magic));
        }
        let fields = (reader.u16(), reader.u16(), reader.u64(), reader.u64(), reader.u32());
        let (Some(flags), Some(command), Some(cookie), Some(offset), Some(length)) = fields else { return Ok(None) };
        Ok(Some(RequestHeader { flags, command, cookie, offset, length }))
    }

    /// The name of the command, for the log.
    pub fn name(&self) -> &'static str {
        match self.command {
            cmd::READ => "READ",
            cmd::WRITE => "WRITE",
            cmd::DISC => "DISC",
            cmd::FLUSH => "FLUSH",
            cmd::TRIM => "TRIM",
            cmd::CACHE => "CACHE",
            cmd::WRITE_ZEROES => "WRITE_ZEROES",
            cmd::BLOCK_STATUS => "BLOCK_STATUS",
            _ => "unknown command",
        }
    }
}

fn refused(errno: Errno, why: &str) -> Error {
    Error::new(errno, format!("invalid request: {why}"))
}

impl Session {
    /// Checks a request. The error is what the client is to be told.
    ///
    /// # Errors
    /// EROFS, EINVAL, ENOSPC (a write beyond the end) or ENOMEM (longer than 64 MiB).
    pub fn check(&self, header: &RequestHeader) -> Result<Command, Error> {
        let RequestHeader { flags, command, offset, length, .. } = *header;
        let can = &self.can;
        let writes = matches!(command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
        if command == cmd::DISC {
            return Ok(Command::Disconnect);
        }
        if writes && !can.write {
            return Err(refused(Errno::Erofs, "the export is read-only"));
        }
        self.check_range(header)?;
        self.check_flags(header)?;
        if matches!(command, cmd::READ | cmd::WRITE) && length > MAX_REQUEST {
            return Err(refused(Errno::Enomem, "longer than 64 MiB"));
        }
        let offered = match command {
            cmd::FLUSH => can.flush,
            cmd::TRIM => can.trim,
            cmd::WRITE_ZEROES => can.zero != Support::None,
            cmd::CACHE => can.cache != Support::None,
            cmd::BLOCK_STATUS => self.structured && self.base_allocation,
            _ => true,
        };
        if !offered {
            return Err(refused(Errno::Einval, "the command was not offered or not negotiated"));
        }
        let has = |flag: u16| flags & flag != 0;
        let fua = Flags { fua: has(cmd_flag::FUA), ..Flags::NONE };
        Ok(match command {
            cmd::READ => Command::Read { offset, length, dont_fragment: has(cmd_flag::DF) },
            cmd::WRITE => Command::Write { offset, length, flags: fua },
            cmd::FLUSH => Command::Flush,
            cmd::TRIM => Command::Trim { offset, length, flags: fua },
            cmd::CACHE => Command::Cache { offset, length },
            cmd::WRITE_ZEROES => {
                let flags = Flags { may_trim: !has(cmd_flag::NO_HOLE), fast_zero: has(cmd_flag::FAST_ZERO), ..fua };
                Command::Zero { offset, length, flags }
            }
            _ => {
                Command::BlockStatus { offset, length, flags: Flags { req_one: has(cmd_flag::REQ_ONE), ..Flags::NONE } }
            }
        })
    }

    fn check_range(&self, header: &RequestHeader) -> Result<(), Error> {
        let (offset, length) = (header.offset, u64::from(header.length));
        match header.command {
            cmd::READ | cmd::WRITE | cmd::TRIM | cmd::CACHE | cmd::WRITE_ZEROES | cmd::BLOCK_STATUS => {
                let within = length > 0 && offset.checked_add(length).is_some_and(|end| end <= self.size);
                let errno = match header.command {
                    cmd::WRITE | cmd::WRITE_ZEROES => Errno::Enospc,
                    _ => Errno::Einval,
                };
                if within { Ok(()) } else { Err(refused(errno, "the range is empty or not within the export")) }
            }
            cmd::FLUSH if offset == 0 && length == 0 => Ok(()),
            cmd::FLUSH => Err(refused(Errno::Einval, "a flush has no range")),
            _ => Err(refused(Errno::Einval, "unknown command")),
        }
    }

    fn check_flags(&self, header: &RequestHeader) -> Result<(), Error> {
        // FUA is allowed on every command once it is offered: clients set it where it means nothing.
        let mut allowed = if self.can.fua == Support::None { 0 } else { cmd_flag::FUA };
        allowed |= match header.command {
            cmd::READ if self.structured => cmd_flag::DF,
            cmd::WRITE_ZEROES if self.can.fast_zero => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            cmd::WRITE_ZEROES => cmd_flag::NO_HOLE,
            cmd::BLOCK_STATUS => cmd_flag::REQ_ONE,
            _ => 0,
        };
        match header.flags & !allowed {
            0 => Ok(()),
            wrong => {
                let why = format!("flags {wrong:#x} are unknown, not offered or not for this command");
                Err(refused(Errno::Einval, &why))
            }
        }
    }

    /// What follows the header, given the outcome of [`Session::check`].
    ///
    /// # Errors
    /// If a refused payload is too long to be skipped.
    pub fn payload(header: &RequestHeader, checked: &Result<Command, Error>) -> Result<Payload, Violation> {
        match (header.command, checked) {
            (cmd::WRITE, Ok(_)) => Ok(Payload::Data(header.length)),
            (cmd::WRITE, Err(_)) if header.length <= MAX_SKIP => Ok(Payload::Skip(header.length)),
            (cmd::WRITE, Err(_)) => Err(Violation::PayloadTooLong(header.length)),
            _ => Ok(Payload::None),
        }
    }
}
