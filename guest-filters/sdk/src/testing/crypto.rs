//! What stands for ciphers in the simulated host, so that the SDK needs no other crate. **Nothing
//! of it is secret or real**: use it to make the disks of a test. What is derived depends on all
//! that it is derived from, and a cipher on the key and on the number of each sector, as with the
//! real ones.

pub use super::digest::sha256;

/// As many bytes as wanted that depend on each part.
fn mixed(parts: &[&[u8]], length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for part in parts {
        text.extend((part.len() as u64).to_le_bytes());
        text.extend(*part);
    }
    let digest = sha256(&text);
    (0..length.div_ceil(32) as u64)
        .flat_map(|n| sha256(&[&digest[..], &n.to_le_bytes()].concat()))
        .take(length)
        .collect()
}

/// Stands for PBKDF2: what `crypto.derive-pbkdf2` makes of a secret, and `crypto.matches` of a key.
pub fn pbkdf2(password: &[u8], hash: &str, salt: &[u8], iterations: u32, length: usize) -> Vec<u8> {
    mixed(&[b"pbkdf2", password, hash.as_bytes(), salt, &iterations.to_le_bytes()], length)
}

/// Stands for Argon2: what `crypto.derive-argon2` makes of a secret. `numbers` are the iterations,
/// the memory and the lanes.
pub fn argon2(password: &[u8], kind: &str, salt: &[u8], numbers: [u32; 3], length: usize) -> Vec<u8> {
    let [iterations, memory, lanes] = numbers.map(u32::to_le_bytes);
    mixed(&[b"argon2", password, kind.as_bytes(), salt, &iterations, &memory, &lanes], length)
}

/// Stands for what `crypto.unwrap` does with the material of a key slot: makes a key of as many
/// bytes of it as `length`. It is its own inverse, so it makes material as well.
pub fn unwrapped(wrapping_key: &[u8], material: &[u8], hash: &str, length: usize) -> Vec<u8> {
    let stream = mixed(&[b"unwrap", wrapping_key, hash.as_bytes()], length);
    material.iter().zip(stream).map(|(byte, with)| byte ^ with).collect()
}

/// Stands for the ciphers: encrypts and decrypts whole sectors.
pub fn apply(key: &[u8], bytes: &mut [u8], sector: usize, first: u64, step: u32) {
    let mut number = first;
    for bytes in bytes.chunks_mut(sector) {
        let stream = mixed(&[b"cipher", key, &number.to_le_bytes()], bytes.len());
        bytes.iter_mut().zip(stream).for_each(|(byte, with)| *byte ^= with);
        number = number.wrapping_add(step.into());
    }
}
