//! Writing to an image.
//!
//! # What a kill leaves
//! Every write to the image keeps this order, so that the tables are right at every moment, whether
//! the server is killed or the machine loses what was not flushed:
//! * A cluster has a durable reference count of one, and is durably zero, before a table names it:
//!   clusters are reserved many at a time (`space.rs`).
//! * A part of a cluster that is copied is durable before the L2 table names the copy.
//! * A table is durable before the table above names it.
//! * A reference count is lowered after the change is durable that removed the reference.
//!
//! What is left are clusters with a reference count that nothing names: leaks.
//!
//! # Locks
//! A request locks the clusters of the disk that it uses: shared to read and to overwrite, and
//! exclusively to change where they are. One that makes an L2 table locks all that the table maps.
//! Reference counts have a lock of their own, which no request takes while it holds another. So has
//! flushing together: what a write leaves of a cluster is copied before the cluster is locked.
mod change;
mod data;
mod host;
mod open;
mod ports;
mod rebuild;
mod refcounts;
mod space;
mod tables;
#[cfg(test)]
mod tests;
mod unmap;
mod way;
mod writer;

pub use host::{HostState, Verdict};
pub use open::{prepare, refusal};
pub use ports::{Below, ClusterMap, Lock, META, PLAIN, Payload, RESERVED, Shared, TABLE, TableChange};
pub use refcounts::MAX_TABLE;
pub use unmap::Unmap;
pub use writer::Writer;
