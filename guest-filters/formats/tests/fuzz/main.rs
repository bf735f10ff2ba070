//! Mutated images for each decoder. None may make it panic, loop, or read without end.

mod partition;
mod tar;
