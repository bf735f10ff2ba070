//! From a header of LUKS and a passphrase to a key in the host: for disks that are encrypted as a
//! whole, and for formats that have LUKS inside.

mod header;
mod luks1;
mod luks2;
mod unlock;
mod volume;

pub use unlock::{KEYS, Refusal, SLOTS, Unlocked, unlock};
pub use volume::{SECTOR, Volume};
