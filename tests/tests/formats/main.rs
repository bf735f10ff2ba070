//! Filters that decode formats, over images that the formats' own tools have made, with real
//! clients.

mod partition;
mod shared;
mod tar;
mod zip;
mod bochs;
mod parallels;
mod vdi;
mod vmdk;
