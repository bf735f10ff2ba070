//! Mutated images for each decoder. None may make it panic, loop, or read without end.

mod ext2;
mod fat;
mod iso9660;
