//! Mutated images for each decoder. None may make it panic, loop, or read without end.
//! `RBDKIT_FUZZ_SECONDS` is the time of each, and `RBDKIT_SEED` repeats a run.

mod auto;
mod bochs;
mod bzip2;
mod dmg;
mod ext2;
mod fat;
mod gzip;
mod iso9660;
mod lvm;
mod lz4;
mod lzip;
mod parallels;
mod partition;
mod qcow2;
mod tar;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod xz;
mod zip;
mod zstd;
