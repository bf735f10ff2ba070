//! The entries of a record, and how they are written. All numbers are little-endian.
//!
//! A file begins with [`MAGIC`] and the version as 32 bits. Then come entries. In front of an entry
//! stand the length of its body, the CRC-32C of the body, and the CRC-32C of these two numbers, 32
//! bits each. So damage to a length is told from a file that was cut.
//!
//! The first entry is [`Entry::Session`]. A call has a [`Start`] entry and, unless the record ends
//! before, an [`End`] entry with the same number. The order of entries is the order of events: what
//! a call has caused comes between its two entries. A record that was ended in good order has an
//! [`Entry::Finish`] at its end.

use std::borrow::Cow;

use rbdkit_plugin_api::{BlockSizes, Capabilities, Errno, Extent, Flags, Peer};

/// The first bytes of a file.
pub const MAGIC: [u8; 8] = *b"rbdkitRC";

/// The version of the format that this code writes. It also reads the older ones.
///
/// Version 2 added the parameters of the layer, and the calls before a connection is open. All that
/// version 1 has is written in the same way.
pub const VERSION: u32 = 2;

/// The bytes in front of the first entry.
pub const FILE_HEADER: u64 = 12;

/// The bytes in front of an entry's body.
pub const ENTRY_HEADER: usize = 12;

/// The longest body: the payload of the longest request, and a page for the rest. (65536 extents
/// take 576 KiB.)
pub const MAX_BODY: u32 = rbdkit_plugin_api::MAX_REQUEST + 4096;

/// The longest name, description or other text in bytes: as long as the protocol's.
pub const MAX_TEXT: usize = 4096;

/// The most parameters of a layer.
pub const MAX_PARAMETERS: usize = 4096;

/// The bytes of a digest: the first half of a SHA-256.
pub const DIGEST: usize = 16;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// What is recorded.
    Session(Session),
    /// A call begins.
    Start(Start<'a>),
    /// A call has ended.
    End(End<'a>),
    /// The end of the record.
    Finish(Finish),
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The version of the program that recorded.
    pub program: String,
    /// The name of the recorded layer.
    pub layer: String,
    /// Whether the layer is a filter. A plugin has no gate below it.
    pub is_filter: bool,
    /// Whether payloads are whole, and not only their digests.
    pub has_payloads: bool,
    /// When it began, in nanoseconds since 1970.
    pub began: u64,
    /// The parameters that the layer was given, at most [`MAX_PARAMETERS`]. Not known of plugins,
    /// and of records of version 1.
    pub parameters: Vec<GivenParameter>,
}

/// A parameter that a filter was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenParameter {
    /// The key.
    pub key: String,
    /// The word of its kind in the contract.
    pub kind: String,
    /// The value in canonical form. None: it was set, and the record does not have its value,
    /// because it is secret, names a file, or is longer than [`MAX_TEXT`].
    pub value: Option<String>,
}

/// What a filter can learn of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFacts<'a> {
    /// The other end.
    pub peer: Peer,
    /// Process, user and group id.
    pub credentials: Option<(i64, i64, i64)>,
    /// The security context.
    pub security_context: Option<Cow<'a, str>>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// An export in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its description.
    pub description: Option<Cow<'a, str>>,
}

/// On which side of the recorded layer something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// Calls of the recorded layer.
    Above,
    /// Calls that the recorded layer sent down.
    Below,
}

/// A call begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// The call's number, which no other call of the record has.
    pub number: u64,
    /// Nanoseconds since the record began.
    pub time: u64,
    /// Which gate.
    pub gate: Gate,
    /// The number of what was opened, which no other open of the record has. 0 for the calls before
    /// something is open ([`Kind::is_before_open`]).
    pub handle: u32,
    /// The call.
    pub call: Call<'a>,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call<'a> {
    /// A connection opens the layer. The number of the client is the server's.
    Open { client: u64, readonly: bool, name: Cow<'a, str> },
    /// Reads.
    Pread { offset: u64, length: u32 },
    /// Writes.
    Pwrite { offset: u64, length: u32, flags: Flags, payload: Payload<'a> },
    /// Makes writes durable.
    Flush,
    /// Discards a range.
    Trim { offset: u64, length: u64, flags: Flags },
    /// Zeroes a range.
    Zero { offset: u64, length: u64, flags: Flags },
    /// Prefetches a range.
    Cache { offset: u64, length: u64 },
    /// Asks for extents.
    Extents { offset: u64, length: u64, flags: Flags },
    /// Asks for the block sizes.
    BlockSizes,
    /// Asks for the description.
    Description,
    /// Asks which disk it is.
    Disk,
    /// The last calls of the connection.
    Finalize,
    /// The connection is closed.
    Close,
    /// A client has connected.
    Preconnect { client: u64, readonly: bool, facts: ClientFacts<'a> },
    /// Asks for the exports that a client may list.
    ListExports { client: u64, readonly: bool },
    /// Asks what the empty name of an export stands for.
    DefaultExport { client: u64, readonly: bool },
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Open = 0,
    Pread = 1,
    Pwrite = 2,
    Flush = 3,
    Trim = 4,
    Zero = 5,
    Cache = 6,
    Extents = 7,
    BlockSizes = 8,
    Description = 9,
    Disk = 10,
    Finalize = 11,
    Close = 12,
    Preconnect = 13,
    ListExports = 14,
    DefaultExport = 15,
}

impl Kind {
    pub(crate) const ALL: [Kind; 16] = [
        Kind::Open,
        Kind::Pread,
        Kind::Pwrite,
        Kind::Flush,
        Kind::Trim,
        Kind::Zero,
        Kind::Cache,
        Kind::Extents,
        Kind::BlockSizes,
        Kind::Description,
        Kind::Disk,
        Kind::Finalize,
        Kind::Close,
        Kind::Preconnect,
        Kind::ListExports,
        Kind::DefaultExport,
    ];

    /// The number of kinds that version 1 of the format has. They come first.
    pub(crate) const OF_VERSION_1: usize = 13;

    /// nbdkit's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Pread => "pread",
            Kind::Pwrite => "pwrite",
            Kind::Flush => "flush",
            Kind::Trim => "trim",
            Kind::Zero => "zero",
            Kind::Cache => "cache",
            Kind::Extents => "extents",
            Kind::BlockSizes => "block_size",
            Kind::Description => "export_description",
            Kind::Disk => "disk",
            Kind::Finalize => "finalize",
            Kind::Close => "close",
            Kind::Preconnect => "preconnect",
            Kind::ListExports => "list_exports",
            Kind::DefaultExport => "default_export",
        }
    }

    /// Whether the call belongs to a client and to nothing that was opened.
    pub fn is_before_open(self) -> bool {
        matches!(self, Kind::Preconnect | Kind::ListExports | Kind::DefaultExport)
    }

    /// Whether it changes content.
    pub fn changes(self) -> bool {
        matches!(self, Kind::Pwrite | Kind::Trim | Kind::Zero)
    }
}

impl Call<'_> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Call::Open { .. } => Kind::Open,
            Call::Pread { .. } => Kind::Pread,
            Call::Pwrite { .. } => Kind::Pwrite,
            Call::Flush => Kind::Flush,
            Call::Trim { .. } => Kind::Trim,
            Call::Zero { .. } => Kind::Zero,
            Call::Cache { .. } => Kind::Cache,
            Call::Extents { .. } => Kind::Extents,
            Call::BlockSizes => Kind::BlockSizes,
            Call::Description => Kind::Description,
            Call::Disk => Kind::Disk,
            Call::Finalize => Kind::Finalize,
            Call::Close => Kind::Close,
            Call::Preconnect { .. } => Kind::Preconnect,
            Call::ListExports { .. } => Kind::ListExports,
            Call::DefaultExport { .. } => Kind::DefaultExport,
        }
    }

    /// The number of the client, if the call names it.
    pub fn client(&self) -> Option<u64> {
        match *self {
            Call::Open { client, .. }
            | Call::Preconnect { client, .. }
            | Call::ListExports { client, .. }
            | Call::DefaultExport { client, .. } => Some(client),
            _ => None,
        }
    }

    /// Offset and length in bytes, if it has them. Their sum fits 63 bits.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Call::Pread { offset, length } | Call::Pwrite { offset, length, .. } => Some((offset, u64::from(length))),
            Call::Trim { offset, length, .. }
            | Call::Zero { offset, length, .. }
            | Call::Cache { offset, length }
            | Call::Extents { offset, length, .. } => Some((offset, length)),
            _ => None,
        }
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        match *self {
            Call::Pwrite { flags, .. }
            | Call::Trim { flags, .. }
            | Call::Zero { flags, .. }
            | Call::Extents { flags, .. } => flags,
            _ => Flags::NONE,
        }
    }
}

/// What is known of the bytes of a request or an answer. Their number is the request's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// All of them are zero.
    Zeroes,
    /// The beginning of their SHA-256.
    Digest([u8; DIGEST]),
    /// The bytes.
    Bytes(Cow<'a, [u8]>),
}

/// A call has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// The call's number.
    pub number: u64,
    /// Nanoseconds since the record began.
    pub time: u64,
    /// The call's kind.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome<'a>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It succeeded.
    Answered(Answer<'a>),
    /// It failed.
    Failed(Errno),
    /// The caller gave it up.
    Dropped,
}

/// The answer of a call that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Nothing but success.
    Done,
    /// Of an open.
    Opened { size: u64, can: Capabilities },
    /// Of a pread.
    Data(Payload<'a>),
    /// Contiguous from the offset of the call.
    Extents(Vec<Extent>),
    /// The block sizes, if there are any.
    BlockSizes(Option<BlockSizes>),
    /// The description, if there is one.
    Description(Option<Cow<'a, str>>),
    /// The disk's name among the disks of its layer. None for the disk of the default export.
    Disk(Option<Cow<'a, str>>),
    /// The exports that a client may list.
    Exports(Vec<ListedExport<'a>>),
    /// What the empty name of an export stands for.
    DefaultExport(Cow<'a, str>),
}

/// The end of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Nanoseconds since the record began.
    pub time: u64,
    /// Entries that are missing here.
    pub lost: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a record ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The server ended.
    Whole = 0,
    /// The record had reached its limit.
    Limit = 1,
    /// The file could not be written.
    File = 2,
    /// The file took nothing for too long.
    Slow = 3,
}

impl Reason {
    /// Why entries are missing, as the rest of a sentence.
    pub fn why(self) -> &'static str {
        match self {
            Reason::Whole => "nothing is missing",
            Reason::Limit => "it had reached its limit (--record-limit)",
            Reason::File => "its file could not be written",
            Reason::Slow => "its file took nothing for too long",
        }
    }
}

/// The numbers of errors in a record: Linux's.
pub(crate) const ERRNOS: [(Errno, u8); 13] = [
    (Errno::Eperm, 1),
    (Errno::Enoent, 2),
    (Errno::Eio, 5),
    (Errno::Enxio, 6),
    (Errno::Enomem, 12),
    (Errno::Einval, 22),
    (Errno::Enospc, 28),
    (Errno::Erofs, 30),
    (Errno::Edeadlk, 35),
    (Errno::Eoverflow, 75),
    (Errno::Enotsup, 95),
    (Errno::Eshutdown, 108),
    (Errno::Etimedout, 110),
];

/// What the first byte of a body says.
pub(crate) mod tag {
    pub(crate) const SESSION: u8 = 1;
    pub(crate) const START: u8 = 2;
    pub(crate) const END: u8 = 3;
    pub(crate) const FINISH: u8 = 4;
}

/// What the first byte of a peer says.
pub(crate) mod peer {
    pub(crate) const UNKNOWN: u8 = 0;
    pub(crate) const V4: u8 = 1;
    pub(crate) const V6: u8 = 2;
    pub(crate) const UNIX: u8 = 3;
    pub(crate) const VSOCK: u8 = 4;
}
