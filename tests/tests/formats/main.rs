//! Filters that decode formats, over images that the formats' own tools have made, with real
//! clients.

mod auto;
mod bochs;
mod changes;
mod compression;
mod dmg;
mod filesystems;
mod limits;
mod overlay;
mod parallels;
mod partition;
mod qcow2;
mod qcow2_write;
mod shared;
mod tar;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod zip;
