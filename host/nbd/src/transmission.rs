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

/// The encoding of the messages of the transmission phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyFormat {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies, which the client asked for.
    Structured,
    /// Extended headers, which the client asked for: those of requests and replies have 32 bytes,
    /// and lengths have 64 bits.
    Extended,
}

impl ReplyFormat {
    /// The length of a request's header, in bytes.
    #[inline]
    pub fn header_size(self) -> usize {
        match self {
            ReplyFormat::Simple | ReplyFormat::Structured => 28,
            ReplyFormat::Extended => 32,
        }
    }
}

/// What the handshake settled, for the life of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The size of the export, in bytes.
    pub size: u64,
    /// What the export can do.
    pub can: Capabilities,
    /// How requests and replies look.
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
    /// The number of bytes of the export.
    pub length: u64,
    /// The number of bytes that follow the header. Those of a write are its data.
    pub payload: u64,
}

/// What follows a request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPayload {
    /// Nothing.
    None,
    /// This many bytes to write.
    Data(u32),
    /// This many bytes of a refused request.
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
        length: u64,
        flags: Flags,
    },
    Cache {
        offset: u64,
        length: u64,
    },
    Zero {
        offset: u64,
        length: u64,
        flags: Flags,
    },
    BlockStatus {
        offset: u64,
        length: u64,
        flags: Flags,
    },
}

/// The longest payload of a refused request that is skipped, in bytes: twice the largest request,
/// as in nbdkit. A longer one ends the connection.
const MAX_SKIP: u64 = 2 * MAX_REQUEST as u64;

/// The length of the only payload that selects among the contexts of a BLOCK_STATUS, in bytes: the
/// length of the range, and the number of one context. There is only one context, and none may be
/// named twice.
pub const FILTER_SIZE: usize = 12;

impl RequestHeader {
    /// The length of the longest header, in bytes.
    pub const MAX_SIZE: usize = 32;

    /// Parses a header, which has [`ReplyFormat::header_size`] bytes. None: there are fewer.
    ///
    /// # Errors
    /// The header does not begin with the magic number: what follows cannot be understood.
    #[inline]
    pub fn parse(bytes: &[u8], format: ReplyFormat) -> Result<Option<RequestHeader>, Violation> {
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u32() else { return Ok(None) };
        let expected = match format {
            ReplyFormat::Extended => wire::EXTENDED_REQUEST_MAGIC,
            _ => wire::REQUEST_MAGIC,
        };
        if magic != expected {
            return Err(Violation::RequestMagic(magic));
        }
        let fields = (reader.u16(), reader.u16(), reader.u64(), reader.u64());
        let (Some(flags), Some(command), Some(cookie), Some(offset)) = fields else { return Ok(None) };
        let (length, has_flag) = match format {
            ReplyFormat::Extended => (reader.u64(), flags & cmd_flag::PAYLOAD_LEN != 0),
            _ => (reader.u32().map(u64::from), false),
        };
        let Some(length) = length else { return Ok(None) };
        // With extended headers a write has to have the flag, but clients of qemu 8.2 to 10.0 leave
        // it out. No write comes without data, so the flag says nothing new.
        let payload = if has_flag || command == cmd::WRITE { length } else { 0 };
        Ok(Some(RequestHeader { flags, command, cookie, offset, length, payload }))
    }

    /// Whether the payload selects among the contexts of a BLOCK_STATUS, and is as long as it has
    /// to be. Then [`Session::filtered`] has to see its [`FILTER_SIZE`] bytes before the request is
    /// checked.
    #[inline]
    pub fn has_filter(&self) -> bool {
        // Compact headers have no payload for this command.
        self.payload == FILTER_SIZE as u64 && self.command == cmd::BLOCK_STATUS
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
    /// Whether replies come in chunks: structured replies or extended headers were negotiated.
    #[inline]
    pub fn is_structured(&self) -> bool {
        self.reply_format != ReplyFormat::Simple
    }

    #[inline]
    fn is_extended(&self) -> bool {
        self.reply_format == ReplyFormat::Extended
    }

    /// The request that a BLOCK_STATUS with a payload stands for ([`RequestHeader::has_filter`]).
    /// Its payload has been received.
    ///
    /// # Errors
    /// EINVAL: the context was not negotiated. The error is for the client.
    pub fn filtered(
        &self,
        header: &RequestHeader,
        filter: [u8; FILTER_SIZE],
    ) -> (RequestHeader, Result<Command, Error>) {
        let mut reader = Reader(&filter);
        let (length, id) = (reader.u64().unwrap_or(0), reader.u32());
        let flags = header.flags & !cmd_flag::PAYLOAD_LEN;
        let header = RequestHeader { flags, length, payload: 0, ..*header };
        let checked = match id {
            Some(wire::BASE_ALLOCATION_ID) if self.base_allocation => self.check(&header),
            _ => Err(refused(Errno::Einval, "the metadata context was not negotiated")),
        };
        (header, checked)
    }

    /// Checks a request. The error is for the client.
    ///
    /// # Errors
    /// EROFS, EINVAL, ENOSPC (a write beyond the end), or for data of more than 64 MiB ENOMEM, as
    /// in nbdkit. With extended headers that is EOVERFLOW for a read and EINVAL for a write.
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
        if self.is_extended() {
            Session::check_payload(header)?;
        }
        self.check_range(header)?;
        self.check_flags(header)?;
        // Only for reads and writes: the lengths of other commands are not data.
        let data_length = length.min(u64::from(u32::MAX)) as u32;
        if matches!(command, cmd::READ | cmd::WRITE) && data_length > MAX_REQUEST {
            let errno = match (self.reply_format, command) {
                (ReplyFormat::Extended, cmd::READ) => Errno::Eoverflow,
                (ReplyFormat::Extended, _) => Errno::Einval,
                _ => Errno::Enomem,
            };
            return Err(refused(errno, "longer than 64 MiB"));
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
            cmd::READ => Command::Read { offset, length: data_length, dont_fragment: has(cmd_flag::DF) },
            cmd::WRITE => Command::Write { offset, length: data_length, flags: fua },
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

    /// Checks that a request with extended headers has a payload only if its command has one. That
    /// of a BLOCK_STATUS was taken off before ([`Session::filtered`]).
    fn check_payload(header: &RequestHeader) -> Result<(), Error> {
        match header.command != cmd::WRITE && header.flags & cmd_flag::PAYLOAD_LEN != 0 {
            true => Err(refused(Errno::Einval, "a payload that does not belong to the command")),
            false => Ok(()),
        }
    }

    fn check_range(&self, header: &RequestHeader) -> Result<(), Error> {
        let (offset, length) = (header.offset, header.length);
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
        let end = offset + length;
        let minimum = u64::from(sizes.minimum);
        // If the size is not a multiple of the block size, a request may end at the size: otherwise
        // the last bytes could not be reached.
        let aligned = offset.is_multiple_of(minimum) && (end.is_multiple_of(minimum) || end == self.size);
        if !aligned {
            let why = format!("the range is not aligned to the minimum block size, which is {minimum}");
            return Err(refused(Errno::Einval, &why));
        }
        // The maximum is for requests with data.
        if matches!(header.command, cmd::READ | cmd::WRITE) && length > u64::from(sizes.maximum) {
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
        if self.is_extended() && header.command == cmd::WRITE {
            allowed |= cmd_flag::PAYLOAD_LEN;
        }
        match header.flags & !allowed {
            0 => Ok(()),
            wrong => {
                let why = format!("flags {wrong:#x} are unknown, not offered or not for this command");
                Err(refused(Errno::Einval, &why))
            }
        }
    }

    /// What follows the header, given the outcome of [`Session::check`]. A payload that does not
    /// belong to its command is read and dropped.
    ///
    /// # Errors
    /// The payload of a refused request is too long to be skipped.
    #[inline]
    pub fn payload(header: &RequestHeader, checked: &Result<Command, Error>) -> Result<RequestPayload, Violation> {
        match checked {
            Ok(Command::Write { length, .. }) => Ok(RequestPayload::Data(*length)),
            // Nothing is read after it.
            Ok(Command::Disconnect) => Ok(RequestPayload::None),
            _ if header.payload == 0 => Ok(RequestPayload::None),
            _ if header.payload <= MAX_SKIP => Ok(RequestPayload::Skip(header.payload as u32)),
            _ => Err(Violation::PayloadTooLong(header.payload)),
        }
    }
}
