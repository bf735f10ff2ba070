//! What the chain sees of a filter: its layer, a connection's handle, and the instances that serve
//! its calls.

pub(super) mod alarms;
pub(super) mod answers;
pub(super) mod breaker;
pub(crate) mod calls;
pub(super) mod events;
pub(crate) mod filter;
pub(crate) mod filter_layer;
pub(super) mod gated;
pub(crate) mod handle;
pub(super) mod migration;
pub(super) mod offers;
pub(crate) mod pool;
pub(super) mod reload;
pub(super) mod rest;
pub(super) mod turns;
pub(crate) mod version;
