//! The data of the options that have any: INFO and GO, LIST_META_CONTEXT and SET_META_CONTEXT.

use super::strings;
use super::wire::{Reader, info, opt};

/// Which option asked for an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenOption {
    ExportName,
    Info,
    Go,
}

/// A client's request for information on an export or for its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    pub(super) option: OpenOption,
    /// The export's name as the client sent it; empty for the default export.
    pub name: String,
    /// The client asks for the canonical name.
    pub wants_name: bool,
    /// The client asks for the description.
    pub wants_description: bool,
    /// The client asks for block sizes. With GO it promises to keep to them.
    pub wants_block_size: bool,
}

impl OpenRequest {
    /// Whether the client only asks for information. The export is then closed before the reply.
    pub fn only_info(&self) -> bool {
        self.option == OpenOption::Info
    }

    /// The option has no error reply: if the export cannot be opened, the connection has to end.
    pub fn cannot_be_refused(&self) -> bool {
        self.option == OpenOption::ExportName
    }

    pub(super) fn option_number(&self) -> u32 {
        match self.option {
            OpenOption::ExportName => opt::EXPORT_NAME,
            OpenOption::Info => opt::INFO,
            OpenOption::Go => opt::GO,
        }
    }
    pub(super) fn new(option: OpenOption, name: String) -> OpenRequest {
        OpenRequest { option, name, wants_name: false, wants_description: false, wants_block_size: false }
    }

    /// The data of INFO and GO. None: it is malformed.
    pub(super) fn parse(option: u32, data: &[u8]) -> Option<OpenRequest> {
        let mut reader = Reader(data);
        let name = strings::parse(reader.counted()?)?;
        let count = reader.u16()?;
        let option = if option == opt::GO { OpenOption::Go } else { OpenOption::Info };
        let mut request = OpenRequest::new(option, name);
        for _ in 0..count {
            match reader.u16()? {
                info::NAME => request.wants_name = true,
                info::DESCRIPTION => request.wants_description = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                // EXPORT is always sent. The specification wants unknown kinds ignored.
                _ => {}
            }
        }
        reader.is_empty().then_some(request)
    }
}

/// The name of the only context.
pub(super) const BASE_ALLOCATION: &[u8] = b"base:allocation";

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(super) struct MetaQueries {
    /// The export's name.
    pub export: String,
    /// How many queries there are.
    pub count: u32,
    /// One of them is the context's name.
    pub exact: bool,
    /// One of them is `base:`, the whole namespace.
    pub wildcard: bool,
}

impl MetaQueries {
    /// None: the data is malformed. Keeps no list of the queries: an option has room for 16,000.
    pub fn parse(data: &[u8]) -> Option<MetaQueries> {
        let mut reader = Reader(data);
        let export = strings::parse(reader.counted()?)?;
        let count = reader.u32()?;
        let (mut exact, mut wildcard) = (false, false);
        for _ in 0..count {
            let query = reader.counted().filter(|query| query.len() <= strings::MAX_STRING)?;
            exact |= query == BASE_ALLOCATION;
            wildcard |= query == b"base:";
        }
        reader.is_empty().then_some(MetaQueries { export, count, exact, wildcard })
    }
}
