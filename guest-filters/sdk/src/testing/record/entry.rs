//! A record in memory: its calls, and the order of their begins and ends.

use std::ops::Range;

use crate::{BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent};

use crate::testing::facts::ClientFacts;

/// A record in memory.
pub struct Record {
    pub(super) file: Vec<u8>,
    /// 1 has no calls before a connection is open, and no parameters.
    pub(super) version: u32,
    pub(super) session: Session,
    pub(super) calls: Vec<RecordedCall>,
    pub(super) events: Vec<Event>,
    pub(super) is_whole: bool,
}

/// What is recorded.
pub(super) struct Session {
    pub(super) layer: String,
    pub(super) is_filter: bool,
    pub(super) has_payloads: bool,
    pub(super) parameters: Vec<GivenParameter>,
}

/// A parameter that the filter was given. The value is in canonical form, and missing if it is
/// secret or names a file.
pub(super) struct GivenParameter {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) value: Option<String>,
}

/// Something happens to the call of this index.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Begins(usize),
    Ends(usize),
}

/// On which side of the filter something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Above,
    Below,
}

pub(super) struct RecordedCall {
    pub(super) number: u64,
    pub(super) gate: Gate,
    pub(super) handle: u32,
    pub(super) call: Call,
    /// None: the record ends before the call did.
    pub(super) outcome: Option<Outcome>,
    /// A change of the same bytes was under way at the same time, so either order is right.
    pub(super) is_racy: bool,
}

pub(super) enum Call {
    Open { client: u64, readonly: bool, name: String },
    Pread { offset: u64, length: u32 },
    Pwrite { offset: u64, length: u32, flags: CommandFlags, payload: Payload },
    Flush,
    Trim { offset: u64, length: u64, flags: CommandFlags },
    Zero { offset: u64, length: u64, flags: CommandFlags },
    Cache { offset: u64, length: u64 },
    Extents { offset: u64, length: u64, flags: CommandFlags },
    BlockSizes,
    Description,
    Disk,
    Finalize,
    Close,
    Preconnect { client: u64, readonly: bool, facts: ClientFacts },
    ListExports { client: u64, readonly: bool },
    DefaultExport { client: u64, readonly: bool },
}

/// The bytes of a request or an answer.
#[derive(Clone)]
pub(super) enum Payload {
    Zeroes,
    /// The record has only their digest.
    Unknown,
    /// These bytes of the file.
    Stored(Range<usize>),
}

pub(super) enum Outcome {
    Answered(Answer),
    Failed(Errno),
    /// The caller gave it up.
    Dropped,
}

pub(super) enum Answer {
    Done,
    Opened {
        size: u64,
        can: Capabilities,
    },
    Data(Payload),
    Extents(Vec<Extent>),
    BlockSizes(Option<BlockSizes>),
    Description(Option<String>),
    Exports(Vec<ExportEntry>),
    DefaultExport(String),
    /// Of a call that is not replayed.
    Other,
}

impl Call {
    /// nbdkit's name of it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Call::Open { .. } => "open",
            Call::Pread { .. } => "pread",
            Call::Pwrite { .. } => "pwrite",
            Call::Flush => "flush",
            Call::Trim { .. } => "trim",
            Call::Zero { .. } => "zero",
            Call::Cache { .. } => "cache",
            Call::Extents { .. } => "extents",
            Call::BlockSizes => "block_size",
            Call::Description => "export_description",
            Call::Disk => "disk",
            Call::Finalize => "finalize",
            Call::Close => "close",
            Call::Preconnect { .. } => "preconnect",
            Call::ListExports { .. } => "list_exports",
            Call::DefaultExport { .. } => "default_export",
        }
    }

    /// Offset and length in bytes.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Call::Pread { offset, length } | Call::Pwrite { offset, length, .. } => Some((offset, length.into())),
            Call::Trim { offset, length, .. }
            | Call::Zero { offset, length, .. }
            | Call::Cache { offset, length }
            | Call::Extents { offset, length, .. } => Some((offset, length)),
            _ => None,
        }
    }

    /// Whether it changes content.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Call::Pwrite { .. } | Call::Trim { .. } | Call::Zero { .. })
    }

    /// Whether it belongs to a client and to nothing that was opened.
    pub(super) fn is_before_open(&self) -> bool {
        matches!(self, Call::Preconnect { .. } | Call::ListExports { .. } | Call::DefaultExport { .. })
    }
}

impl RecordedCall {
    /// The call for people.
    pub(super) fn describe(&self) -> String {
        let name = self.call.name();
        match self.call.range() {
            Some((offset, length)) => format!("call {}, {name} of {length} bytes at {offset}", self.number),
            None => format!("call {}, {name}", self.number),
        }
    }

    /// How it succeeded.
    pub(super) fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Some(Outcome::Answered(answer)) => Some(answer),
            _ => None,
        }
    }
}

impl Record {
    /// The name of the recorded layer.
    pub fn layer(&self) -> &str {
        &self.session.layer
    }

    /// The bytes of a payload. None if the record has only their digest.
    pub(super) fn bytes(&self, payload: &Payload, length: usize) -> Option<Vec<u8>> {
        match payload {
            Payload::Zeroes => Some(vec![0; length]),
            Payload::Unknown => None,
            Payload::Stored(range) => self.file.get(range.clone()).map(<[u8]>::to_vec),
        }
    }
}
