//! Mutated images for each decoder. None may make it panic, loop, or read without end.

mod lvm;
mod partition;
mod tar;
mod zip;
