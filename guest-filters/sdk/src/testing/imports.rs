//! The functions of the contract, one file for each interface. The bindings call them natively.

pub(crate) mod alarms;
pub(crate) mod buffer;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod counters;
pub(crate) mod crypto;
pub(crate) mod disks;
pub(crate) mod files;
pub(crate) mod gate;
pub(crate) mod locks;
pub(crate) mod log;
pub(crate) mod maps;
pub(crate) mod next;
pub(crate) mod next_open;
pub(crate) mod request;
pub(crate) mod scratch;
pub(crate) mod scripts;
pub(crate) mod server;
pub(crate) mod slots;
pub(crate) mod storage;
