//! Ciphers and keys, with [`testing::crypto`](crate::testing::crypto) instead of real ones.

use crate::testing::call::{Call, Phase, REQUESTS, attempt, with};
use crate::testing::crypto;
use crate::{Errno, Scope};

/// O: deriving takes long.
const OPENING: [Phase; 1] = [Phase::Open];

const HASHES: [&str; 6] = ["sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"];

/// Checks a cipher and the length of its key.
fn checked(cipher: &str, length: usize) -> Result<usize, Errno> {
    let takes: &[usize] = match cipher {
        "aes-xts-plain64" | "aes-xts-plain" => &[32, 64],
        "aes-cbc-plain64" | "aes-cbc-plain" | "aes-cbc-essiv:sha256" => &[16, 24, 32],
        _ => return Err(Errno::Enotsup),
    };
    if takes.contains(&length) { Ok(length) } else { Err(Errno::Einval) }
}

fn checked_pbkdf2(hash: &str, salt: &[u8], iterations: u32) -> Result<(), Errno> {
    match HASHES.contains(&hash) {
        false => Err(Errno::Enotsup),
        true if salt.len() > 1024 || !(1..=100_000_000).contains(&iterations) => Err(Errno::Einval),
        true => Ok(()),
    }
}

fn secret(call: &Call, param: &str, nth: u32) -> Result<Vec<u8>, Errno> {
    let world = call.world();
    let mut given = world.paths.iter().filter(|(name, _)| name == param);
    given.nth(nth as usize).map(|(_, secret)| secret.clone().into_bytes()).ok_or(Errno::Enoent)
}

fn add(call: &Call, s: Scope, bytes: Vec<u8>) -> Result<u32, Errno> {
    let owner = call.owner(s);
    call.world().state(owner).keys.add(bytes)
}

fn key(call: &Call, s: Scope, number: u32) -> Result<Vec<u8>, Errno> {
    let owner = call.owner(s);
    call.world().state(owner).keys.get(number).map(<[u8]>::to_vec)
}

#[allow(clippy::too_many_arguments, reason = "they are those of the contract")]
pub(crate) fn derive_pbkdf2(
    s: Scope,
    cipher: &str,
    length: u32,
    param: &str,
    nth: u32,
    hash: &str,
    salt: &[u8],
    iterations: u32,
) -> Result<u32, Errno> {
    attempt(&OPENING, |call| {
        let length = checked(cipher, length as usize)?;
        checked_pbkdf2(hash, salt, iterations)?;
        let secret = secret(call, param, nth)?;
        add(call, s, crypto::pbkdf2(&secret, hash, salt, iterations, length))
    })
}

#[allow(clippy::too_many_arguments, reason = "they are those of the contract")]
pub(crate) fn derive_argon2(
    s: Scope,
    cipher: &str,
    length: u32,
    param: &str,
    nth: u32,
    kind: &str,
    salt: &[u8],
    iterations: u32,
    memory: u32,
    lanes: u32,
) -> Result<u32, Errno> {
    attempt(&OPENING, |call| {
        let length = checked(cipher, length as usize)?;
        if memory > 1 << 20 {
            return Err(Errno::Enomem);
        }
        if !matches!(kind, "argon2i" | "argon2id") {
            return Err(Errno::Enotsup);
        }
        let work = u64::from(memory) * u64::from(iterations);
        let few = u64::from(memory) < 8 * u64::from(lanes) || lanes == 0 || iterations == 0;
        if few || lanes > 64 || work > 64 << 20 || !(8..=1024).contains(&salt.len()) {
            return Err(Errno::Einval);
        }
        let secret = secret(call, param, nth)?;
        add(call, s, crypto::argon2(&secret, kind, salt, [iterations, memory, lanes], length))
    })
}

#[allow(clippy::too_many_arguments, reason = "they are those of the contract")]
pub(crate) fn unwrap(
    s: Scope,
    cipher: &str,
    length: u32,
    wrapping_key: u32,
    buf: u32,
    at: u32,
    stripes: u32,
    hash: &str,
) -> Result<u32, Errno> {
    attempt(&OPENING, |call| {
        let length = checked(cipher, length as usize)?;
        if !HASHES.contains(&hash) {
            return Err(Errno::Enotsup);
        }
        let material = length as u64 * u64::from(stripes);
        if material == 0 || material > 4 << 20 {
            return Err(Errno::Einval);
        }
        let with = key(call, s, wrapping_key)?;
        let bytes = call.part(buf, at, (material as u32).next_multiple_of(512))[..material as usize].to_vec();
        add(call, s, crypto::unwrapped(&with, &bytes, hash, length))
    })
}

pub(crate) fn matches(
    s: Scope,
    number: u32,
    hash: &str,
    salt: &[u8],
    iterations: u32,
    digest: &[u8],
) -> Result<bool, Errno> {
    attempt(&OPENING, |call| {
        checked_pbkdf2(hash, salt, iterations)?;
        if !(1..=64).contains(&digest.len()) {
            return Err(Errno::Einval);
        }
        Ok(crypto::pbkdf2(&key(call, s, number)?, hash, salt, iterations, digest.len()) == digest)
    })
}

pub(crate) fn make_key(s: Scope, cipher: &str, bytes: &[u8]) -> Result<u32, Errno> {
    attempt(&REQUESTS, |call| {
        checked(cipher, bytes.len())?;
        add(call, s, bytes.to_vec())
    })
}

pub(crate) fn free_key(s: Scope, number: u32) {
    with("crypto.free-key", &REQUESTS, |call| {
        let owner = call.owner(s);
        call.world().state(owner).keys.free(number);
    });
}

/// Both directions: the simulated ciphers are their own inverse.
#[allow(clippy::too_many_arguments, reason = "they are those of the contract")]
pub(crate) fn apply(
    s: Scope,
    number: u32,
    buf: u32,
    at: u32,
    length: u32,
    sector: u32,
    first: u64,
    step: u32,
) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        assert!(matches!(sector, 512 | 1024 | 2048 | 4096), "crypto: sectors of {sector} bytes");
        assert!(length.is_multiple_of(sector), "crypto: {length} bytes, which is no multiple of {sector}");
        let key = key(call, s, number)?;
        crypto::apply(&key, call.part(buf, at, length), sector as usize, first, step);
        Ok(())
    })
}

pub(crate) use apply as decrypt;
pub(crate) use apply as encrypt;
