//! Disks in object stores: real servers, other programs' disks, and a network that fails by seed.

mod faults;
mod google;
mod nbdkit;
mod proxy;
mod s3;
mod servers;
mod services;
