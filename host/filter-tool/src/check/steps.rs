//! The steps of a test: operations, and what happens to the server and the disk between them.

use rbdkit_plugin_api::{Errno, Flags};

/// The connections that a script may use: 1 to this number.
pub const CONNECTIONS: u8 = 4;

/// An operation of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Pread {
        offset: u64,
        length: u32,
    },
    /// `fill` says which bytes are written ([`super::content::fill`]).
    Pwrite {
        offset: u64,
        length: u32,
        fill: u64,
        flags: Flags,
    },
    Zero {
        offset: u64,
        length: u64,
        flags: Flags,
    },
    Trim {
        offset: u64,
        length: u64,
    },
    Cache {
        offset: u64,
        length: u64,
    },
    Extents {
        offset: u64,
        length: u64,
    },
    Flush,
}

/// An operation of the disk below, for faults and delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Pread,
    Pwrite,
    Zero,
    Trim,
    Flush,
    Extents,
}

/// What goes wrong once in the disk below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails, and nothing changes.
    Error(Errno),
    /// The operation takes some milliseconds longer.
    Delay(u16),
    /// The answer about extents ends early.
    Short,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An operation of a connection. `joins`: it begins together with the step before, unless the
    /// two conflict.
    Operation { connection: u8, joins: bool, operation: Request },
    /// Flushes, closes the connection and opens it again.
    Reconnect(u8),
    /// Flushes, ends the server, and starts it again over the same disk.
    Restart,
    /// The server drops instances that it does not need.
    Instances,
    /// The next operation of this kind in the disk below.
    Fault(Below, Fault),
}

impl Request {
    /// nbdkit's name.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Pread { .. } => "pread",
            Request::Pwrite { .. } => "pwrite",
            Request::Zero { .. } => "zero",
            Request::Trim { .. } => "trim",
            Request::Cache { .. } => "cache",
            Request::Extents { .. } => "extents",
            Request::Flush => "flush",
        }
    }

    /// The offset and length in bytes. None for a flush.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Request::Pread { offset, length } | Request::Pwrite { offset, length, .. } => {
                Some((offset, u64::from(length)))
            }
            Request::Zero { offset, length, .. }
            | Request::Trim { offset, length }
            | Request::Cache { offset, length }
            | Request::Extents { offset, length } => Some((offset, length)),
            Request::Flush => None,
        }
    }

    /// The same operation on another range.
    pub fn at(&self, to: u64, len: u64) -> Request {
        let short = u32::try_from(len).unwrap_or(u32::MAX);
        match *self {
            Request::Pread { .. } => Request::Pread { offset: to, length: short },
            Request::Pwrite { fill, flags, .. } => Request::Pwrite { offset: to, length: short, fill, flags },
            Request::Zero { flags, .. } => Request::Zero { offset: to, length: len, flags },
            Request::Trim { .. } => Request::Trim { offset: to, length: len },
            Request::Cache { .. } => Request::Cache { offset: to, length: len },
            Request::Extents { .. } => Request::Extents { offset: to, length: len },
            Request::Flush => Request::Flush,
        }
    }

    /// Whether it changes content.
    pub fn changes(&self) -> bool {
        matches!(self, Request::Pwrite { .. } | Request::Zero { .. } | Request::Trim { .. })
    }

    /// Whether the outcome of the two depends on their order.
    fn conflicts(&self, other: &Request) -> bool {
        let (Some((a, a_length)), Some((b, b_length))) = (self.range(), other.range()) else { return false };
        (self.changes() || other.changes()) && a < b + b_length && b < a + a_length
    }

    /// The operation for people.
    pub fn describe(&self) -> String {
        match self.range() {
            Some((offset, length)) => format!("{} of {length} bytes at {offset}", self.name()),
            None => self.name().to_string(),
        }
    }
}

impl Below {
    /// The kinds and their words in a script.
    pub const ALL: [(Below, &'static str); 6] = [
        (Below::Pread, "pread"),
        (Below::Pwrite, "pwrite"),
        (Below::Zero, "zero"),
        (Below::Trim, "trim"),
        (Below::Flush, "flush"),
        (Below::Extents, "extents"),
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        Below::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// The number of steps from `at` on that begin together. It is at least 1.
pub fn together(steps: &[Step], at: usize) -> usize {
    let mut begun: Vec<&Request> = Vec::new();
    for step in &steps[at..] {
        match step {
            Step::Operation { joins, operation, .. }
                if begun.is_empty() || (*joins && begun.iter().all(|other| !operation.conflicts(other))) =>
            {
                begun.push(operation);
            }
            _ => break,
        }
    }
    begun.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_that_conflict_do_not_begin_together() {
        let step = |joins, operation| Step::Operation { connection: 1, joins, operation };
        let read = |offset| Request::Pread { offset, length: 10 };
        let write = |offset| Request::Pwrite { offset, length: 10, fill: 1, flags: Flags::NONE };
        let steps = [
            step(true, write(0)),
            step(true, write(10)),
            step(true, read(20)),
            step(true, read(19)),
            step(true, read(25)),
            Step::Restart,
            step(true, read(0)),
        ];
        let counts: Vec<usize> = [0, 3, 5, 6].iter().map(|at| together(&steps, *at)).collect();
        assert_eq!(counts, [3, 2, 1, 1]);
    }
}
