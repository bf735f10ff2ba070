//! What the tests share: a server for one test, the real clients, and a raw client.
//!
//! The program under test is `target/release/rbdkit`, or the one that the environment variable
//! `RBDKIT` names. The tests use it only through its command line and its sockets, as a user does.
//! Nothing here uses the server's own code, so that a fault in its codec cannot hide behind the
//! same fault in the tests'.
#![forbid(unsafe_code)]

pub mod attackers;
pub mod control;
pub mod model;
pub mod raw;
pub mod server;
pub mod toolchains;
pub mod tools;
pub mod tree;
pub mod wait;

pub use control::Control;
pub use raw::Client;
pub use server::{Launch, Outcome, Server, TempDir, free_port};
pub use tools::{Finished, nbdsh, tool};

/// A small seeded random generator (splitmix64). The same seed gives the same sequence on every
/// machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts the sequence of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// True with a probability of `percent` in 100.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A generator whose sequence is independent of what this one gives from here on.
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

/// The seed in `RBDKIT_SEED`, or a new one. The caller prints it, so that a failure can be
/// repeated.
pub fn seed() -> u64 {
    match std::env::var("RBDKIT_SEED") {
        Ok(text) => text.parse().expect("RBDKIT_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |time| time.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
        }
    }
}
