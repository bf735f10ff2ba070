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
    pub(super) call: EntryCall,
    /// None: the record ends before the call did.
    pub(super) outcome: Option<Outcome>,
    /// A change of the same bytes was under way at the same time, so either order is right.
    pub(super) is_racy: bool,
}

pub(super) enum EntryCall {
    Open { client: u64, readonly: bool, name: String },
    Pread { offset: u64, length: u32 },
    Pwrite { offset: u64, length: u32, flags: CommandFlags, payload: EntryPayload },
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
pub(super) enum EntryPayload {
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
    Data(EntryPayload),
    Extents(Vec<Extent>),
    BlockSizes(Option<BlockSizes>),
    Description(Option<String>),
    Exports(Vec<ExportEntry>),
    DefaultExport(String),
    /// Of a call that is not replayed.
    Other,
}

impl EntryCall {
    /// nbdkit's name of it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            EntryCall::Open { .. } => "open",
            EntryCall::Pread { .. } => "pread",
            EntryCall::Pwrite { .. } => "pwrite",
            EntryCall::Flush => "flush",
            EntryCall::Trim { .. } => "trim",
            EntryCall::Zero { .. } => "zero",
            EntryCall::Cache { .. } => "cache",
            EntryCall::Extents { .. } => "extents",
            EntryCall::BlockSizes => "block_size",
            EntryCall::Description => "export_description",
            EntryCall::Disk => "disk",
            EntryCall::Finalize => "finalize",
            EntryCall::Close => "close",
            EntryCall::Preconnect { .. } => "preconnect",
            EntryCall::ListExports { .. } => "list_exports",
            EntryCall::DefaultExport { .. } => "default_export",
        }
    }

    /// Offset and length in bytes.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        match *self {
            EntryCall::Pread { offset, length } | EntryCall::Pwrite { offset, length, .. } => {
                Some((offset, length.into()))
            }
            EntryCall::Trim { offset, length, .. }
            | EntryCall::Zero { offset, length, .. }
            | EntryCall::Cache { offset, length }
            | EntryCall::Extents { offset, length, .. } => Some((offset, length)),
            _ => None,
        }
    }

    /// Whether it changes content.
    pub(super) fn changes(&self) -> bool {
        matches!(self, EntryCall::Pwrite { .. } | EntryCall::Trim { .. } | EntryCall::Zero { .. })
    }

    /// Whether it belongs to a client and to nothing that was opened.
    pub(super) fn is_before_open(&self) -> bool {
        matches!(self, EntryCall::Preconnect { .. } | EntryCall::ListExports { .. } | EntryCall::DefaultExport { .. })
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
    pub(super) fn bytes(&self, payload: &EntryPayload, length: usize) -> Option<Vec<u8>> {
        match payload {
            EntryPayload::Zeroes => Some(vec![0; length]),
            EntryPayload::Unknown => None,
            EntryPayload::Stored(range) => self.file.get(range.clone()).map(<[u8]>::to_vec),
        }
    }
}
