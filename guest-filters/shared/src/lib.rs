//! What several filters share.
//!
//! * [`segments`] divides a disk into ranges that have a value each.
//! * [`numbers`] reads numbers and ranges as nbdkit's filters write them.
//! * [`lines`] reads a text file that a parameter names.
//! * [`durable`] carries FUA over a request that goes down in several pieces.
//! * [`luks`] makes the key of a disk that is encrypted with LUKS.
//! * [`compare`] compares what a client writes with what the layer below has.

pub mod compare;
pub mod durable;
pub mod lines;
pub mod luks;
pub mod numbers;
pub mod segments;
