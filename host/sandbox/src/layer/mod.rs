//! What the chain sees of a filter: its layer, a connection's handle, and the instances that serve its calls.

pub(crate) mod breaker;
pub(crate) mod conn;
pub(crate) mod filter;
pub(crate) mod offers;
pub(crate) mod pool;
