//! Friendly and hostile guests in a chain over a disk in memory.

pub mod support;

mod author;
mod buffers;
mod built;
mod contract;
mod extents;
mod faults;
mod gone;
mod life;
mod long_chain;
mod reload;
mod requests;
mod siblings;
mod speed;
mod stopping;
mod traced;
mod wishes;
