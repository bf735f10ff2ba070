//! The server's side: the plugin's process from outside.

pub(crate) mod channel;
pub(crate) mod handle;
pub(crate) mod load;
pub(crate) mod module;
pub(crate) mod plugin;
pub(crate) mod running;
pub(crate) mod start;
mod watched;
