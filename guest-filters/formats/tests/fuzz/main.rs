//! Decoders over mutated images. `RBDKIT_FUZZ_SECONDS` is the time of each, `RBDKIT_SEED` repeats a
//! run.

mod bochs;
mod parallels;
mod vdi;
mod vmdk;
