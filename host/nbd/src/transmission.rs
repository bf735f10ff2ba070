//! The transmission phase: parses requests and checks them.
//!
//! The order of the checks and their errors are those of nbdkit, so that a client sees no
//! difference: read-only first, then command and range, then flags, then length, then capabilities.
//! The block sizes come last, and only for a client that negotiated them. nbdkit does not check
//! them.
//! The gate in front of each layer (`host/chain`, `Hop`) checks range and flags again, because
//! filters also send requests of their own. That check protects the layer; this one gives the
//! client nbdkit's errors.

use rbdkit_plugin_api::{BlockSizes, Capabilities, Errno, Error, Flags, MAX_REQUEST, Support};

use super::violation::Violation;
use super::wire::{self, Reader, cmd, cmd_flag};

/// The encoding of replies that have data or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// Simple replies.
    Simple,
    /// Structured replies, which the client asked for.
    Structured,
}

/// What the handshake settled, for the life of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The size of the export, in bytes.
    pub size: u64,
    /// What the export can do.
    pub can: Capabilities,
    /// How replies with data or errors look.
    pub reply_format: ReplyFormat,
    /// `base:allocation` was negotiated.
    pub base_allocation: bool,
    /// The block sizes that the client negotiated and has to keep to. None: it may send any
    /// request, and a layer that cannot serve it refuses it.
    pub block_sizes: Option<BlockSizes>,
}

/// A request's header as received. Only its magic number is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// The client's number for the request, which the reply carries.
    pub cookie: u64,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u32,
}

/// What follows a request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPayload {
    /// Nothing.
    None,
    /// This many bytes to write.
    Data(u32),
    /// This many bytes of a refused write.
    Skip(u32),
}

/// A request that the session allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "offset and length are bytes within the export; the rest are flags")]
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

/// The longest payload of a refused write that is skipped, in bytes: twice the largest request, as
/// in nbdkit. A longer one ends the connection.
const MAX_SKIP: u32 = 2 * MAX_REQUEST;

impl RequestHeader {
    /// The length of a header, in bytes.
    pub const SIZE: usize = 28;

    /// Parses a header. None: there are fewer than [`RequestHeader::SIZE`] bytes.
    ///
    /// # Errors
    /// The header does not begin with the magic number: what follows cannot be understood.
    #[inline]
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
    /// Whether structured replies were negotiated.
    #[inline]
    pub fn is_structured(&self) -> bool {
        self.reply_format == ReplyFormat::Structured
    }

    /// Checks a request. The error is for the client.
    ///
    /// # Errors
    /// EROFS, EINVAL, ENOSPC (a write beyond the end) or ENOMEM (data of more than 64 MiB).
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
            cmd::BLOCK_STATUS => self.is_structured() && self.base_allocation,
            _ => true,
        };
        if !offered {
            return Err(refused(Errno::Einval, "the command was not offered or not negotiated"));
        }
        if let Some(sizes) = &self.block_sizes {
            self.check_block_sizes(header, sizes)?;
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

    /// Checks that a request keeps to the block sizes that were negotiated. The range is within the
    /// export.
    fn check_block_sizes(&self, header: &RequestHeader, sizes: &BlockSizes) -> Result<(), Error> {
        let (offset, length) = (header.offset, header.length);
        let end = offset + u64::from(length);
        let minimum = u64::from(sizes.minimum);
        // If the size is not a multiple of the block size, a request may end at the size: otherwise
        // the last bytes could not be reached.
        let aligned = offset.is_multiple_of(minimum) && (end.is_multiple_of(minimum) || end == self.size);
        if !aligned {
            let why = format!("the range is not aligned to the minimum block size, which is {minimum}");
            return Err(refused(Errno::Einval, &why));
        }
        // The maximum is for requests with data.
        if matches!(header.command, cmd::READ | cmd::WRITE) && length > sizes.maximum {
            let why = format!("longer than the maximum block size, which is {}", sizes.maximum);
            return Err(refused(Errno::Einval, &why));
        }
        Ok(())
    }

    fn check_flags(&self, header: &RequestHeader) -> Result<(), Error> {
        // FUA is allowed on every command if it is offered, because clients also set it where it
        // has no effect.
        let mut allowed = if self.can.fua == Support::None { 0 } else { cmd_flag::FUA };
        allowed |= match header.command {
            cmd::READ if self.is_structured() => cmd_flag::DF,
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
    /// The payload of a refused write is too long to be skipped.
    #[inline]
    pub fn payload(header: &RequestHeader, checked: &Result<Command, Error>) -> Result<RequestPayload, Violation> {
        match (header.command, checked) {
            (cmd::WRITE, Ok(_)) => Ok(RequestPayload::Data(header.length)),
            (cmd::WRITE, Err(_)) if header.length <= MAX_SKIP => Ok(RequestPayload::Skip(header.length)),
            (cmd::WRITE, Err(_)) => Err(Violation::PayloadTooLong(header.length)),
            _ => Ok(RequestPayload::None),
        }
    }
}
