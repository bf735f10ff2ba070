//! What an operator allows, and what one request can decode.

use crate::unpack::Limits;

/// The largest frame that is decoded within a request. A filter decodes at least 100 MB/s.
pub(super) const MAX_UNIT: u64 = 32 << 20;

/// What an operator allows.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The sizes of frames.
    pub limits: Limits,
    /// The largest window, in bytes. It is memory of the instance.
    pub max_window: u64,
}

impl Options {
    /// The windows that the tool zstd accepts as well if nothing else is said.
    pub const MAX_WINDOW: u64 = 128 << 20;
    /// No more can be asked for: an instance has at most 4 GiB of memory.
    pub const LARGEST_WINDOW: u64 = 1 << 30;
}

impl Default for Options {
    fn default() -> Options {
        Options { limits: Limits::default(), max_window: Options::MAX_WINDOW }
    }
}
