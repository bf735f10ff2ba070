//! What a plugin is written against, and the vocabulary that the whole server shares.
//!
//! A *plugin* produces an export: it does the I/O. A *filter* changes what passes through it. The server
//! stacks them: each layer calls the *next* layer below it, and the plugin is the lowest. Both kinds of layer answer
//! the same questions for one connection, so both implement [`Handle`]; only a plugin implements [`Plugin`].
//!
//! Three decisions shape this interface:
//!
//! * **Buffers are owned, not borrowed.** A [`Buffer`] moves down the chain with a request and comes back with the
//!   answer ([`Done`]). While an operation is in flight it alone can reach the bytes, so a buffer cannot return to the
//!   pool under a thread that still writes into it, whatever happens to the client or to the layers above.
//! * **An answer is [`Op`]: ready now, or later.** What completes without waiting (memory, the page cache) costs no
//!   allocation and no task; only what has to wait becomes a future.
//! * **Nothing here knows the wire.** Requests are named as nbdkit names them (pread, pwrite, zero, extents); wire words stay
//!   in the server.
//!
//! Units: `offset` and `length` are bytes, `size` is an export's size in bytes.
#![deny(unsafe_code)]

mod blocking;
mod buffer;
mod error;
mod extents;
pub mod inherited;
mod lock;
mod op;
mod pipe;
mod plugin;
pub mod rate;
mod reach;
pub mod schema;
pub mod shelf;
pub mod text;
mod types;
pub mod units;

pub use blocking::{Blocking, BlockingHandle, run_blocking, run_blocking_with};
pub use buffer::{Buffer, Fill, Pool, Span};
pub use error::{ConfigError, Errno, Error, Result};
pub use extents::{Extent, Extents};
pub use lock::{lock, read_lock, write_lock};
pub use op::{BoxFuture, Done, Op};
pub use plugin::{Client, Handle, OpenArgs, Param, Peer, Plugin, PluginInfo};
pub use reach::{DNS, Network, Reach, hint_about_names};
pub use types::{BlockSizes, Capabilities, ExportEntry, Flags, MAX_REQUEST, Support, ThreadModel};
