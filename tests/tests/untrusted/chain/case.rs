//! What a case is: a filter, a request at its trigger, and what the client and the log have to get.

use rbdkit_tests::raw::error;

use crate::guest::Guest;

/// The request at the trigger.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Read(u32),
    Write(u32),
    Extents(u32),
}

/// What the client has to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The bytes on the disk, or its extents.
    Right,
    /// Zeroes, because the guest filled nothing.
    Zeroes,
    /// This error.
    Error(u32),
}

/// One filter in the chain.
pub struct Case {
    pub guest: Guest,
    pub act: Act,
    pub want: Want,
    /// What the log has to say of the guest, behind the filter's name. Empty: nothing.
    pub log: &'static str,
    /// Limits of its own, as `--filter-limit` takes them behind the filter's name.
    pub limits: &'static [&'static str],
}

impl Case {
    pub fn new(guest: Guest, act: Act, want: Want, log: &'static str) -> Case {
        Case { guest, act, want, log, limits: &[] }
    }

    /// A case whose read fails with EIO.
    pub fn fault(guest: Guest, log: &'static str) -> Case {
        Case::new(guest, Act::Read(4096), Want::Error(error::EIO), log)
    }

    /// A case whose read succeeds in spite of what the guest does.
    pub fn harmless(guest: Guest) -> Case {
        Case::new(guest, Act::Read(4096), Want::Right, "")
    }

    pub fn limits(self, limits: &'static [&'static str]) -> Case {
        Case { limits, ..self }
    }
}

/// What the log says of a guest that used up `cpu`.
pub const COMPUTED: &str = "it computed for longer than 100ms";

pub const READ: &str = r#"(import "rbdkit:filter/buffer@0.1.0" "read" (func $read (param i32 i32 i32 i32)))"#;
pub const LOG: &str = r#"(import "rbdkit:filter/log@0.1.0" "error" (func $log (param i32 i32)))"#;

/// Calls `buffer.read`. The host puts the answer where the guest's allocator says.
pub const READ_OUT: &str = "(global.set $bad (i32.const 1)) \
                        (call $read (i32.const 0) (i32.const 0) (i32.const 512) (i32.const 2100))";
