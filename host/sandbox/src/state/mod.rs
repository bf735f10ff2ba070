//! State that the instances of a filter share and that outlives them: maps of blocks, slots, keys
//! of ciphers, range locks, sums, scratch files, and the files that the operator named.
//!
//! Instances are created and dropped: a pool grows, a trap drops one. So a filter keeps here what
//! must survive an instance, and what several instances must agree on. Nothing here knows wasmtime.
//! Each function is atomic, and what belongs to one call ([`Changes`], [`HeldLock`]) is undone when
//! it is dropped, so no guest can leave state half changed.
//!
//! **I/O.** Maps, slots, locks and totals are plain data in memory behind short locks. [`Scratch`],
//! [`Storage`] and [`ParamFiles`] read and write files. A scratch file or a file that is kept waits
//! for the disk on a thread that may block. [`ParamFiles`] blocks the calling thread, as reading a
//! local file does.
//!
//! **Scopes.** State belongs to one filter ([`FilterState`]), and within it to one scope: the
//! filter itself ([`FilterState::server`]), the disk that an export is ([`FilterState::export`]),
//! or a connection ([`FilterState::connection`]). An export's state is kept while the server runs,
//! so the overlay of a cow filter survives the last client. A scope that no connection uses and
//! that holds nothing is dropped.
//!
//! **Limits.** The memory of maps and of the scratch files' page maps is charged to one [`Quota`]
//! for each filter. Each scratch file has a quota, and all scratch files of a filter share another.

#![forbid(unsafe_code)]

mod changes;
mod connection_deltas;
mod control_socket;
mod disk;
mod files;
mod filter_state;
mod keys;
mod locks;
mod map;
mod misuse;
mod opening;
#[cfg(test)]
mod random;
mod scope;
mod scratch;
mod slots;
mod storage;
mod totals;

pub use changes::{ChangeTiming, Changes};
pub use connection_deltas::ConnectionDeltas;
pub(crate) use control_socket::ControlSocket;
pub use files::ParamFiles;
pub(crate) use files::{Seen, directories};
pub use filter_state::{ExportScope, FilterState, StateLimits};
pub use keys::{Argon2, Cipher, CipherKey, Deadline, Digest, Keys, Pbkdf2, Sectors, merge_stripes};
pub use locks::{HeldLock, LockMode, Locks, OnShutdown};
pub use map::{BlockRun, Map};
pub use misuse::Misuse;
pub use rbdkit_plugin_api::Quota;
pub use scope::ScopeState;
pub use scratch::{Scratch, scratch_directory};
pub use slots::{SlotWords, Slots};
pub use storage::Storage;
pub use totals::{MAX_KEYS, Totals};
