//! nbdkit's own plugins, loaded as they are.
//!
//! A plugin of nbdkit is a shared library whose code does what it likes. So it runs in a process of
//! its own, which is not confined, and the server stays confined. The process is this program,
//! started again. It exports the functions that nbdkit's plugins call.
//!
//! | module | subject | process |
//! |---|---|---|
//! | [`find`] | where the plugin's file is | server |
//! | `server` | the plugin as the chain sees it | server |
//! | `setup` | the conversation from the start to the first connection | server, helper |
//! | `process` | loads the plugin and calls it | the plugin's |
//! | `memory` | requests and payloads, in shared memory | both |
//! | `wire`, `peer`, `can` | everything else, over a socket | both |

mod can;
pub mod find;
mod memory;
mod peer;
mod process;
mod server;
mod setup;
mod wire;

pub use process::serve_if_asked;
pub use server::load::{LoadOptions, load};
pub use server::module::Module;
pub use server::start::START;
