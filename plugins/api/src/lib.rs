//! The interface that plugins implement, and the types that the whole server shares.
//!
//! A *plugin* produces an export: it does the I/O. A *filter* changes the requests and answers that
//! pass through it. The server stacks them: each layer calls the *next* layer below it, and the
//! plugin is the lowest. Both kinds of layer answer the same questions for one connection, so both
//! implement [`Handle`]; only a plugin implements [`Plugin`].
//!
//! Three decisions shape this interface:
//!
//! * **Buffers are owned, not borrowed.** A [`Buffer`] moves down the chain with a request and
//!   comes back with the answer ([`Done`]). While an operation is in flight, only that operation
//!   can access the bytes. A buffer cannot return to the pool while a thread still writes into it,
//!   whatever happens to the client or to the layers above.
//! * **An answer is [`Op`]: ready now, or later.** An operation that completes without waiting
//!   (memory, the page cache) needs no allocation and no task. Only an operation that has to wait
//!   becomes a future.
//! * **The interface does not depend on the wire format.** Operations have nbdkit's names (pread,
//!   pwrite, zero, extents); the names of the NBD protocol stay in the server.
//!
//! Units: `offset` and `length` are bytes, `size` is the size of an export in bytes.

mod access;
pub mod base64;
mod blocking;
mod buffer;
mod client;
mod disk;
mod error;
mod extents;
mod fills;
mod flag;
pub mod hex;
pub mod idle;
pub mod inherited;
mod lock;
pub mod locked;
mod nearest;
mod op;
pub mod own_file;
pub mod passwords;
mod pipe;
mod plugin;
mod pool;
mod program;
mod quota;
pub mod rate;
pub mod schema;
pub mod secrets;
pub mod shell;
mod span;
pub mod stdin;
mod storage;
pub mod temporary;
pub mod text;
mod types;
pub mod units;

pub use access::{AccessRights, DNS_PORT, Network, name_lookup_hint};
pub use blocking::{
    Abandoned, Blocking, BlockingHandle, run_abandonable, run_abandonable_with, run_blocking, run_blocking_with,
};
pub use buffer::{Buffer, is_all_zero};
pub use client::{Client, Ending, Peer, TlsPeer};
pub use disk::{Disk, DiskId};
pub use error::{ConfigError, Errno, Error, Result};
pub use extents::{Extent, Extents};
pub use flag::Flag;
pub use lock::{lock, read_lock, write_lock};
pub use nearest::nearest;
pub use op::{BoxFuture, Done, Op};
pub use plugin::{DISK_FUNCTIONS, Handle, OpenArgs, OtherKeys, Param, Plugin, PluginInfo, StopScope};
pub use pool::Pool;
pub use program::{find_own_program, own_program};
pub use quota::{Held, Quota, Usage};
pub use span::{Fill, Span};
pub use types::{BlockSizes, Capabilities, ExportEntry, Flags, MAX_REQUEST, RangeCommand, Support, ThreadModel};
