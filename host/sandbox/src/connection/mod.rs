//! One filter on one connection: what is below it and what its instances share.

pub(crate) mod attended;
pub(crate) mod background;
pub(crate) mod bindings;
pub(crate) mod charge;
pub(crate) mod conn;
pub(crate) mod counters;
pub(crate) mod detached;
pub(crate) mod engine;
pub(crate) mod import_error;
pub(crate) mod limit_options;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod next;
pub(crate) mod on_fault;
pub(crate) mod prefetch;
pub(crate) mod profile;
pub(crate) mod pulse;
pub(crate) mod shared;
mod shared_next;
pub(crate) mod siblings;
pub(crate) mod trace;
pub(super) mod tracker;
pub(crate) mod waiting;
pub(crate) mod wishes;
