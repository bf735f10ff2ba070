//! Filters that decode formats, over images that the formats' own tools have made, with real
//! clients.

mod filesystems;
mod shared;
