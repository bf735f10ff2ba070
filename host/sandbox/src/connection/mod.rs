//! One filter on one connection: what is below it and what its instances have in common.

pub(crate) mod bindings;
pub(crate) mod engine;
pub(crate) mod limits;
pub(crate) mod prefetch;
pub(crate) mod shared;
pub(crate) mod stray;
