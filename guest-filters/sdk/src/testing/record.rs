//! Records of `rbdkit --record`: what real clients did through a filter, as a native test.
//!
//! ```no_run
//! # use rbdkit_filter_sdk::prelude::*;
//! # struct Mine;
//! # impl Filter for Mine {
//! #     type Params = ();
//! #     fn describe() -> Description { Description::new("mine", "1", "mine").transparent() }
//! #     fn configure(_: ()) -> Result<Self, String> { Ok(Mine) }
//! # }
//! # impl Flushes for Mine {
//! #     fn flush(&self) -> Result<(), Errno> { next::flush() }
//! # }
//! # rbdkit_filter_sdk::export!(Mine: flushes);
//! # fn main() {
//! use rbdkit_filter_sdk::testing::{Host, Record};
//!
//! let record = Record::read("tests/session.rec").unwrap();
//! let host = Host::from_record(&record).unwrap();
//! host.replay::<Mine>(&record, &[]).unwrap().assert_same();
//! # }
//! ```
//!
//! The record needs payloads (`--record-payloads`). The calls run one after another, in the order
//! in which they began. What two calls did to the same bytes at the same time is not compared.
//! `rbdkit-filter replay` lets calls overlap as they did, and takes records and disks of any size.

mod below;
mod decode;
mod disk;
mod ranges;
mod read;
mod replay;

use std::ops::Range;

use crate::{BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent};

use super::facts::ClientFacts;

pub(super) use below::RecordedBelow;
pub use replay::Replayed;

/// A record in memory.
pub struct Record {
    file: Vec<u8>,
    /// 1 has no calls before a connection is open, and no parameters.
    version: u32,
    session: Session,
    calls: Vec<RecordedCall>,
    events: Vec<Event>,
    is_whole: bool,
}

/// What is recorded.
struct Session {
    layer: String,
    is_filter: bool,
    has_payloads: bool,
    parameters: Vec<GivenParameter>,
}

/// A parameter that the filter was given. The value is in canonical form, and missing if it is
/// secret or names a file.
struct GivenParameter {
    key: String,
    kind: String,
    value: Option<String>,
}

/// Something happens to the call of this index.
#[derive(Clone, Copy)]
enum Event {
    Begins(usize),
    Ends(usize),
}

/// On which side of the filter something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Above,
    Below,
}

struct RecordedCall {
    number: u64,
    gate: Gate,
    handle: u32,
    call: Call,
    /// None: the record ends before the call did.
    outcome: Option<Outcome>,
    /// A change of the same bytes was under way at the same time, so either order is right.
    is_racy: bool,
}

enum Call {
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
enum Payload {
    Zeroes,
    /// The record has only their digest.
    Unknown,
    /// These bytes of the file.
    Stored(Range<usize>),
}

enum Outcome {
    Answered(Answer),
    Failed(Errno),
    /// The caller gave it up.
    Dropped,
}

enum Answer {
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
    fn name(&self) -> &'static str {
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
    fn range(&self) -> Option<(u64, u64)> {
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
    fn changes(&self) -> bool {
        matches!(self, Call::Pwrite { .. } | Call::Trim { .. } | Call::Zero { .. })
    }

    /// Whether it belongs to a client and to nothing that was opened.
    fn is_before_open(&self) -> bool {
        matches!(self, Call::Preconnect { .. } | Call::ListExports { .. } | Call::DefaultExport { .. })
    }
}

impl RecordedCall {
    /// The call for people.
    fn describe(&self) -> String {
        let name = self.call.name();
        match self.call.range() {
            Some((offset, length)) => format!("call {}, {name} of {length} bytes at {offset}", self.number),
            None => format!("call {}, {name}", self.number),
        }
    }

    /// How it succeeded.
    fn answer(&self) -> Option<&Answer> {
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
    fn bytes(&self, payload: &Payload, length: usize) -> Option<Vec<u8>> {
        match payload {
            Payload::Zeroes => Some(vec![0; length]),
            Payload::Unknown => None,
            Payload::Stored(range) => self.file.get(range.clone()).map(<[u8]>::to_vec),
        }
    }
}
