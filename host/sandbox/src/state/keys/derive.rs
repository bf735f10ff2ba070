//! Keys from passwords: PBKDF2, Argon2, and the merging of a LUKS key slot.
//!
//! They take seconds on purpose. PBKDF2 is here and not from a crate, because it looks again and
//! again whether somebody still waits for it. Argon2 cannot: its work is bounded beforehand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use rbdkit_plugin_api::Errno;
use rbdkit_plugin_api::locked::{LockedBytes, leave_out_of_dumps};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

/// The most iterations of PBKDF2. It is a minute of a fast processor; cryptsetup uses some
/// millions.
const MAX_ITERATIONS: u32 = 100_000_000;

/// The longest salt, in bytes. LUKS has salts of at most 64 bytes.
const LONGEST_SALT: usize = 1024;

/// KiB that Argon2 may go through in all its iterations: 64 GiB, about a minute.
const MAX_ARGON2_WORK: u64 = 64 << 20;

/// The most lanes of Argon2. cryptsetup uses at most 4.
const MAX_LANES: u32 = 64;

/// Iterations of PBKDF2 between two looks at the deadline: less than a millisecond.
const UNBROKEN: u32 = 1024;

/// When work has to end.
#[derive(Clone, Debug)]
pub struct Deadline {
    /// The latest time.
    pub at: Instant,
    /// Whether nobody waits for it any more.
    pub abandoned: Arc<AtomicBool>,
}

impl Deadline {
    fn check(&self) -> Result<(), Errno> {
        if self.abandoned.load(Relaxed) || Instant::now() >= self.at { Err(Errno::Etimedout) } else { Ok(()) }
    }
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// 20 bytes.
    Sha1,
    /// 28 bytes.
    Sha224,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// 20 bytes.
    Ripemd160,
}

impl Digest {
    /// The hash of this name.
    pub fn parse(name: &str) -> Option<Digest> {
        Some(match name {
            "sha1" => Digest::Sha1,
            "sha224" => Digest::Sha224,
            "sha256" => Digest::Sha256,
            "sha384" => Digest::Sha384,
            "sha512" => Digest::Sha512,
            "ripemd160" => Digest::Ripemd160,
            _ => return None,
        })
    }

    /// The digest of two parts.
    fn of(self, first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
        fn digest<D: sha2::Digest>(first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
            Zeroizing::new(D::new().chain_update(first).chain_update(second).finalize().to_vec())
        }
        match self {
            Digest::Sha1 => digest::<Sha1>(first, second),
            Digest::Sha224 => digest::<Sha224>(first, second),
            Digest::Sha256 => digest::<Sha256>(first, second),
            Digest::Sha384 => digest::<Sha384>(first, second),
            Digest::Sha512 => digest::<Sha512>(first, second),
            Digest::Ripemd160 => digest::<Ripemd160>(first, second),
        }
    }
}

/// PBKDF2 with HMAC (RFC 8018).
pub struct Pbkdf2 {
    hash: Digest,
    salt: Vec<u8>,
    iterations: u32,
}

impl Pbkdf2 {
    /// # Errors
    /// EINVAL if it would be more work than is allowed, or none.
    pub fn new(hash: Digest, salt: Vec<u8>, iterations: u32) -> Result<Pbkdf2, Errno> {
        match salt.len() <= LONGEST_SALT && (1..=MAX_ITERATIONS).contains(&iterations) {
            true => Ok(Pbkdf2 { hash, salt, iterations }),
            false => Err(Errno::Einval),
        }
    }

    /// As many bytes as `length`.
    ///
    /// # Errors
    /// ETIMEDOUT.
    pub fn derive(&self, password: &[u8], length: usize, until: &Deadline) -> Result<LockedBytes, Errno> {
        match self.hash {
            Digest::Sha1 => self.with::<Hmac<Sha1>>(password, length, until),
            Digest::Sha224 => self.with::<Hmac<Sha224>>(password, length, until),
            Digest::Sha256 => self.with::<Hmac<Sha256>>(password, length, until),
            Digest::Sha384 => self.with::<Hmac<Sha384>>(password, length, until),
            Digest::Sha512 => self.with::<Hmac<Sha512>>(password, length, until),
            Digest::Ripemd160 => self.with::<Hmac<Ripemd160>>(password, length, until),
        }
    }

    fn with<M: Mac + KeyInit + Clone>(
        &self,
        password: &[u8],
        length: usize,
        until: &Deadline,
    ) -> Result<LockedBytes, Errno> {
        let keyed = <M as KeyInit>::new_from_slice(password).map_err(|_| Errno::Einval)?;
        let mut key = LockedBytes::zeroed(length);
        for (number, part) in key.chunks_mut(M::output_size()).enumerate() {
            let mut mac = keyed.clone();
            mac.update(&self.salt);
            mac.update(&(number as u32 + 1).to_be_bytes());
            let mut last = mac.finalize().into_bytes();
            let mut sum = last.clone();
            for done in 1..self.iterations {
                if done % UNBROKEN == 0 {
                    until.check()?;
                }
                let mut mac = keyed.clone();
                mac.update(&last);
                last = mac.finalize().into_bytes();
                sum.iter_mut().zip(&last).for_each(|(sum, last)| *sum ^= last);
            }
            part.copy_from_slice(&sum[..part.len()]);
            sum.as_mut_slice().zeroize();
            last.as_mut_slice().zeroize();
        }
        Ok(key)
    }
}

/// Argon2, version 1.3 (RFC 9106).
///
/// One thread computes all lanes, one after the other. A disk is unlocked once, when its first
/// client comes, and until then the other processors are left to the clients of other disks.
pub struct Argon2 {
    variant: argon2::Algorithm,
    salt: Vec<u8>,
    params: argon2::Params,
}

impl Argon2 {
    /// `memory` is in KiB.
    ///
    /// # Errors
    /// ENOTSUP for an unknown variant. EINVAL if it would be more work than is allowed, or none.
    pub fn new(variant: &str, salt: Vec<u8>, iterations: u32, memory: u32, lanes: u32) -> Result<Argon2, Errno> {
        let variant = match variant {
            "argon2i" => argon2::Algorithm::Argon2i,
            "argon2id" => argon2::Algorithm::Argon2id,
            _ => return Err(Errno::Enotsup),
        };
        let work = u64::from(memory) * u64::from(iterations);
        if work > MAX_ARGON2_WORK || lanes > MAX_LANES || !(8..=LONGEST_SALT).contains(&salt.len()) {
            return Err(Errno::Einval);
        }
        let params = argon2::Params::new(memory, iterations, lanes, None).map_err(|_| Errno::Einval)?;
        Ok(Argon2 { variant, salt, params })
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> u64 {
        u64::from(self.params.m_cost()) << 10
    }

    /// As many bytes as `length`.
    ///
    /// # Errors
    /// ENOMEM if the system has not enough memory.
    pub fn derive(&self, password: &[u8], length: usize) -> Result<LockedBytes, Errno> {
        let mut key = LockedBytes::zeroed(length);
        let argon2 = argon2::Argon2::new(self.variant, argon2::Version::V0x13, self.params.clone());
        let mut memory = Zeroizing::new(Vec::new());
        memory.try_reserve_exact(self.params.block_count()).map_err(|_| Errno::Enomem)?;
        memory.resize(self.params.block_count(), argon2::Block::default());
        leave_out_of_dumps(&memory);
        match argon2.hash_password_into_with_memory(password, &self.salt, &mut key, memory.as_mut_slice()) {
            Ok(()) => Ok(key),
            Err(_) => Err(Errno::Einval),
        }
    }
}

/// Merges the stripes of a LUKS key slot (TKS1) into a key of `length` bytes. The material is a
/// whole number of stripes.
///
/// # Errors
/// ETIMEDOUT.
pub fn merge_stripes(hash: Digest, material: &[u8], length: usize, until: &Deadline) -> Result<LockedBytes, Errno> {
    let mut key = LockedBytes::zeroed(length);
    let mut stripes = material.chunks_exact(length).peekable();
    while let Some(stripe) = stripes.next() {
        until.check()?;
        key.iter_mut().zip(stripe).for_each(|(byte, stripe)| *byte ^= stripe);
        if stripes.peek().is_some() {
            diffuse(hash, &mut key);
        }
    }
    Ok(key)
}

/// Replaces each part of the bytes that is as long as a digest by the digest of its number and
/// itself.
fn diffuse(hash: Digest, bytes: &mut [u8]) {
    let width = hash.of(&[], &[]).len();
    for (number, part) in bytes.chunks_mut(width).enumerate() {
        let digest = hash.of(&(number as u32).to_be_bytes(), part);
        part.copy_from_slice(&digest[..part.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbdkit_plugin_api::hex;

    use super::*;

    fn soon() -> Deadline {
        Deadline { at: Instant::now() + Duration::from_secs(60), abandoned: Arc::default() }
    }

    /// RFC 6070, and the same words with other hashes (computed with Python's hashlib).
    #[test]
    fn pbkdf2_makes_the_published_keys() {
        for (hash, iterations, length, key) in [
            (Digest::Sha1, 2, 20, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"),
            (Digest::Sha1, 4096, 20, "4b007901b765489abead49d926f721d065a429c1"),
            (Digest::Sha256, 4096, 32, "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a"),
            (
                Digest::Sha512,
                1,
                64,
                "867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252\
                 c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce",
            ),
        ] {
            let pbkdf2 = Pbkdf2::new(hash, b"salt".to_vec(), iterations).unwrap();
            let derived = pbkdf2.derive(b"password", length, &soon()).unwrap();
            assert_eq!(hex::encode(&derived[..]), key, "{hash:?} {iterations}");
        }
    }

    /// RFC 9106 has vectors only with a secret and associated data. This one is of the reference
    /// implementation's tests.
    #[test]
    fn argon2_makes_the_published_key() {
        let argon2 = Argon2::new("argon2id", b"somesalt".to_vec(), 2, 1 << 16, 1).unwrap();
        assert_eq!(argon2.memory(), 64 << 20);
        let key = argon2.derive(b"password", 32).unwrap();
        assert_eq!(hex::encode(&key[..]), "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
    }

    #[test]
    fn more_work_than_is_allowed_is_refused_at_once() {
        let pbkdf2 = |salt: usize, iterations| Pbkdf2::new(Digest::Sha1, vec![0; salt], iterations).err();
        assert_eq!((pbkdf2(32, MAX_ITERATIONS), pbkdf2(1024, 1)), (None, None));
        for (salt, iterations) in [(32, 0), (32, MAX_ITERATIONS + 1), (32, u32::MAX), (1025, 1)] {
            assert_eq!(pbkdf2(salt, iterations), Some(Errno::Einval));
        }
        let argon2 = |iterations, memory, lanes| Argon2::new("argon2i", vec![0; 16], iterations, memory, lanes).err();
        assert_eq!(argon2(4, 1 << 20, 4), None);
        for (iterations, memory, lanes) in
            [(0, 1 << 10, 1), (1, 7, 1), (1, 1 << 10, 0), (1, 1 << 20, 65), (65, 1 << 20, 1), (u32::MAX, u32::MAX, 1)]
        {
            assert_eq!(argon2(iterations, memory, lanes), Some(Errno::Einval), "{iterations} {memory} {lanes}");
        }
        assert_eq!(Argon2::new("argon2d", vec![0; 16], 1, 1024, 1).err(), Some(Errno::Enotsup));
        assert_eq!(Argon2::new("argon2id", vec![0; 7], 1, 1024, 1).err(), Some(Errno::Einval));
    }

    #[test]
    fn pbkdf2_ends_when_nobody_waits_for_it() {
        let pbkdf2 = Pbkdf2::new(Digest::Sha512, vec![0; 32], MAX_ITERATIONS).unwrap();
        let late = Deadline { at: Instant::now(), ..soon() };
        let gone = Deadline { abandoned: Arc::new(AtomicBool::new(true)), ..soon() };
        for until in [late, gone] {
            assert_eq!(pbkdf2.derive(b"x", 64, &until).err(), Some(Errno::Etimedout));
            assert_eq!(merge_stripes(Digest::Sha1, &[0; 64], 32, &until).err(), Some(Errno::Etimedout));
        }
    }

    /// Splits as cryptsetup does: all stripes but the last are random.
    #[test]
    fn stripes_are_merged_into_the_key_that_was_split() {
        for hash in [Digest::Sha1, Digest::Sha256, Digest::Ripemd160] {
            for length in [16, 32, 64] {
                let key: Vec<u8> = (0..length).map(|n| (n * 11) as u8).collect();
                let mut material: Vec<u8> = (0..length * 6).map(|n| (n * n + 5) as u8).collect();
                let mut mixed = vec![0; length];
                for stripe in material.chunks(length) {
                    mixed.iter_mut().zip(stripe).for_each(|(byte, stripe)| *byte ^= stripe);
                    diffuse(hash, &mut mixed);
                }
                material.extend(mixed.iter().zip(&key).map(|(mixed, key)| mixed ^ key));
                assert_eq!(merge_stripes(hash, &material, length, &soon()).unwrap()[..], key);
            }
        }
    }
}
