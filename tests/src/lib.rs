//! What the tests share: a server of their own, real clients, and a hand-written one.
//!
//! The program under test is `target/release/rbdkit`, or what the environment variable `RBDKIT` names. It is only ever used through its
//! command line and its sockets, so the tests say what a user would see; nothing here is taken from the server's own code, so that a
//! fault in its codec cannot hide behind the same fault in the test's.
#![forbid(unsafe_code)]

pub mod model;
pub mod raw;
pub mod server;
pub mod tools;
pub mod tree;
pub mod wait;

pub use raw::Client;
pub use server::{Launch, Outcome, Server, TempDir, free_port};
pub use tools::{Finished, nbdsh, tool};

/// A small seeded generator (splitmix64): good enough to choose operations, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// Any 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A generator that goes its own way from here.
    pub fn fork(&mut self) -> Rng {
        Rng(self.next_u64())
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// The seed in `RBDKIT_SEED`, or a new one. Whoever takes it prints it.
pub fn seed() -> u64 {
    match std::env::var("RBDKIT_SEED") {
        Ok(text) => text.parse().expect("RBDKIT_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |time| time.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
        }
    }
}
