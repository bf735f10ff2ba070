//! The keys of one scope, and what makes and uses them.
//!
//! A guest knows a key by its number. Its bytes never leave the host, and are overwritten when the
//! last user of the key is done with it.

mod cipher;
mod derive;

use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{Errno, lock};

pub use cipher::{Cipher, CipherKey, Sectors};
pub use derive::{Argon2, Deadline, Digest, Pbkdf2, merge_stripes};

/// How many keys a scope has at most, by the contract.
const MAX_KEYS: usize = 16;

/// The keys of a scope.
#[derive(Default)]
pub struct Keys(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// The number of the last key.
    last: u32,
    keys: Vec<(u32, Arc<CipherKey>)>,
}

impl Ring {
    fn has_room(&self) -> bool {
        self.keys.len() < MAX_KEYS && self.last < u32::MAX
    }
}

impl Keys {
    /// Whether there is room for one more key.
    pub fn has_room(&self) -> bool {
        lock(&self.0).has_room()
    }

    /// Adds a key, and returns its number.
    ///
    /// # Errors
    /// ENOSPC if there is no room.
    pub fn add(&self, key: CipherKey) -> Result<u32, Errno> {
        let mut ring = lock(&self.0);
        if !ring.has_room() {
            return Err(Errno::Enospc);
        }
        ring.last += 1;
        let number = ring.last;
        ring.keys.push((number, Arc::new(key)));
        Ok(number)
    }

    /// A key by its number.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub fn get(&self, number: u32) -> Result<Arc<CipherKey>, Errno> {
        let ring = lock(&self.0);
        let found = ring.keys.iter().find(|(known, _)| *known == number);
        found.map(|(_, key)| Arc::clone(key)).ok_or(Errno::Enoent)
    }

    /// Frees a key, if there is one of that number.
    pub fn free(&self, number: u32) {
        lock(&self.0).keys.retain(|(known, _)| *known != number);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_again() {
        let keys = Keys::default();
        let key = || CipherKey::new(Cipher::XtsPlain64, &[7; 32]).unwrap();
        let numbers: Vec<u32> = (0..MAX_KEYS).map(|_| keys.add(key()).unwrap()).collect();
        assert_eq!(numbers, (1..=16).collect::<Vec<u32>>());
        assert_eq!(keys.add(key()), Err(Errno::Enospc));
        keys.free(3);
        keys.free(99);
        assert_eq!(keys.get(3).err(), Some(Errno::Enoent));
        assert_eq!(keys.add(key()), Ok(17));
        assert!(keys.get(4).is_ok() && keys.get(0).is_err() && !keys.has_room());
    }
}
