//! The functions that the host offers, as the contract defines them, and small types over those
//! that are used together.

use crate::bindings::host::rbdkit::filter as imports;

pub use imports::{clock, next, request, server};

/// The client of the connection.
pub mod client {
    pub use super::imports::client::*;
}

/// Times at which the host calls [`OnAlarm`](crate::OnAlarm).
pub mod alarms {
    pub use super::imports::alarms::*;

    /// Sets alarm `id` to `delay` from now on.
    ///
    /// # Errors
    /// Those of [`set`].
    pub fn set_after(scope: Scope, id: u32, delay: std::time::Duration) -> Result<(), Errno> {
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        set(scope, id, super::clock::monotonic().saturating_add(delay))
    }
}

/// Holding the requests before the filter's layer.
pub mod gate {
    pub use super::imports::gate::*;
}

/// Opening the layer below.
pub mod next_open {
    pub use super::imports::next_open::*;
}

/// Files and paths that the operator named in a parameter. [`params`](crate::params) has types for
/// them.
pub mod files {
    pub use super::imports::files::*;
}

/// Ciphers over a range of a buffer, with keys that stay in the host.
/// [`Secret`](crate::params::Secret) is the type of a parameter for a password.
pub mod crypto {
    pub use super::imports::crypto::*;
}

/// Files that are kept after the server has ended. [`StorageFile`](crate::params::StorageFile) has
/// methods for them.
pub mod storage {
    pub use super::imports::storage::*;
}

/// Disks beside next, which the operator gave. [`Disk`](crate::params::Disk) has methods for them.
pub mod disks {
    pub use super::imports::disks::*;
}

/// Shell commands of the operator. [`Script`](crate::params::Script) has a method for them.
pub mod scripts {
    pub use super::imports::scripts::*;
}

/// Sums that all instances and connections of the filter share.
pub mod counters {
    pub use super::imports::counters::*;
}

/// Lines in the server's log, marked with the filter's name.
pub mod log {
    pub use super::imports::log::*;
}

/// The data of the call being served.
pub mod buffer {
    pub use super::imports::buffer::*;
    pub use crate::bytes::{Buffer, Bytes, PAYLOAD, Payload};
}

/// Range locks. They end with the call, however it ends.
pub mod locks {
    pub use super::imports::locks::*;

    /// A lock that this call holds. **Dropping it does not unlock**: unlocking publishes the
    /// changes that `maps` holds back, and a call that fails with `?` must not publish them. The
    /// host releases the lock at the end of the call; [`Held::release`] releases it earlier.
    #[derive(Debug)]
    #[must_use = "the lock is held until the call ends"]
    pub struct Held(());

    impl Held {
        /// Waits until the lock is granted.
        ///
        /// # Errors
        /// `Eshutdown` if the server stops, `Einval` for an empty range or one that overflows,
        /// `Edeadlk` if the call holds a lock already.
        pub fn new(scope: Scope, offset: u64, length: u64, mode: Mode) -> Result<Held, Errno> {
            lock(scope, offset, length, mode).map(|()| Held(()))
        }

        /// Publishes the changes that `maps` holds back, and unlocks.
        pub fn release(self) {
            unlock();
        }
    }
}

/// Small shared numbers.
pub mod slots {
    pub use super::imports::slots::*;

    /// One slot.
    #[derive(Clone, Copy, Debug)]
    pub struct Slot {
        /// What owns the slot.
        pub scope: Scope,
        /// 0 to 15.
        pub index: u32,
    }

    impl Slot {
        /// Reads the words and their version.
        pub fn get(self) -> Words {
            get(self.scope, self.index)
        }

        /// Replaces the words if nobody has changed them since `old` was read. True if it did.
        pub fn replace(self, old: Words, [a, b, c, d]: [u64; 4]) -> bool {
            replace(self.scope, self.index, old.version, a, b, c, d)
        }
    }
}

/// Shared maps of blocks.
pub mod maps {
    pub use super::imports::maps::*;

    /// One map.
    #[derive(Clone, Copy, Debug)]
    pub struct Map {
        /// What owns the map.
        pub scope: Scope,
        /// 0 to 7.
        pub id: u32,
    }

    impl Map {
        /// Gives the map as many blocks of `block` bytes as are needed to cover `bytes`.
        pub fn resize(self, block: u32, bytes: u64) -> Result<(), Errno> {
            resize(self.scope, self.id, block, bytes)
        }

        /// The state of block `first`, and how many blocks from there on have it, at most `limit`.
        pub fn run(self, first: u64, limit: u64) -> Run {
            get_run(self.scope, self.id, first, limit)
        }

        /// The first block, from `first` on, in one of `states` (bit n stands for state n).
        pub fn find(self, first: u64, states: u8) -> Option<u64> {
            find(self.scope, self.id, first, states)
        }

        /// Sets those of `count` blocks that are in one of `states` to `to`, at once. Returns how
        /// many they were.
        pub fn set(self, first: u64, count: u64, states: u8, to: u8) -> u64 {
            set(self.scope, self.id, first, count, states, to, When::Now)
        }

        /// How many blocks are in `state`, which is 1 to 3.
        pub fn count(self, state: u8) -> u64 {
            count(self.scope, self.id, state)
        }
    }
}

/// A temporary file in the host.
pub mod scratch {
    pub use super::imports::scratch::*;
}
