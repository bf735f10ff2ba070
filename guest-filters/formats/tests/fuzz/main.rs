//! Mutated images for each decoder. None may make it panic, loop, or read without end.
//! `RBDKIT_FUZZ_SECONDS` is the time of each, and `RBDKIT_SEED` repeats a run.

mod bochs;
mod lvm;
mod parallels;
mod partition;
mod qcow2;
mod tar;
mod vdi;
mod vmdk;
mod zip;
