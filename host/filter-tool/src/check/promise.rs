//! What the author says of the filter: `--transforms`.

use clap::ValueEnum;

/// What the filter promises. Each says what a test may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Promise {
    /// Reads return the content of the disk below, and writes arrive there unchanged
    Identity,
    /// The content may differ from the disk below, but reads return what was written
    Bijective,
    /// Nothing changes on the disk below; reads return what was written, if writes are accepted
    ReadOnly,
    /// The filter may change or fail anything: only repeated reads have to agree
    Own,
}

impl Promise {
    /// Its word on the command line and in scripts.
    pub fn name(self) -> &'static str {
        match self {
            Promise::Identity => "identity",
            Promise::Bijective => "bijective",
            Promise::ReadOnly => "read-only",
            Promise::Own => "own",
        }
    }

    /// Whether operations must not fail unless the disk below fails, and what was written is read
    /// back.
    pub fn keeps_data(self) -> bool {
        self != Promise::Own
    }
}
