//! Mutated images for each decoder. None may make it panic, loop, or read without end.

mod lvm;
mod partition;
mod tar;
mod zip;
//! Fuzzing of each decoder with mutated images of the formats' own tools.
mod qcow2;
//! Decoders over mutated images. `RBDKIT_FUZZ_SECONDS` is the time of each, `RBDKIT_SEED` repeats a
//! run.
mod bochs;
mod parallels;
mod vdi;
mod vmdk;
