//! Friendly and hostile guests in a chain over a disk in memory.

pub mod support;

mod built;
mod faults;
mod gone;
mod life;
mod requests;
mod speed;
mod stopping;
