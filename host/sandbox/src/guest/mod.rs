//! One call on one instance of a guest.

pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod imports;
pub(crate) mod instance;
pub(crate) mod outside;
