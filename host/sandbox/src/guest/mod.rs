//! One call on one instance of a guest.

pub(crate) mod awaited;
pub(crate) mod block_on;
pub(crate) mod buffers;
pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod context;
pub(crate) mod event_calls;
pub(crate) mod export_calls;
pub(crate) mod exported;
pub(crate) mod exports;
pub(crate) mod extents;
pub(crate) mod fault;
pub(crate) mod imports;
pub(crate) mod instance;
pub(crate) mod memory;
pub(crate) mod metered;
pub(crate) mod system_inputs;
pub(crate) mod text;
pub(crate) mod wasi_handles;
