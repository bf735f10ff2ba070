//! FUA for a request that goes down in several pieces.

use rbdkit_filter_sdk::{CommandFlags, Errno, Support, next};

/// How the pieces of one request become durable.
#[derive(Clone, Copy, Debug)]
pub struct Durable {
    /// The flags for each piece.
    pub flags: CommandFlags,
    flush: bool,
}

impl Durable {
    /// Splits the flags of the request. If the host emulates FUA with a flush, one flush after the
    /// last piece is enough, and the pieces go without the flag.
    ///
    /// # Errors
    /// Those of `next::can`.
    pub fn new(flags: CommandFlags) -> Result<Durable, Errno> {
        let flush = flags.contains(CommandFlags::FUA) && next::can()?.fua != Support::Native;
        let flags = if flush { flags & !CommandFlags::FUA } else { flags };
        Ok(Durable { flags, flush })
    }

    /// Must be called after the last piece.
    ///
    /// # Errors
    /// Those of `next::flush`.
    pub fn finish(self) -> Result<(), Errno> {
        if self.flush { next::flush() } else { Ok(()) }
    }
}
