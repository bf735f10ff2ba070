//! SHA-256 and CRC-32C, so that the SDK needs no other crate for its simulated host.

use std::sync::LazyLock;

/// The first 32 bits of the fractional parts of the n-th roots of the first primes: the constants
/// of SHA-256 are defined like this.
fn root_bits(power: f64, count: usize) -> Vec<u32> {
    let is_prime = |n: u64| (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (2u64..).filter(|n| is_prime(*n)).take(count).map(|prime| fraction_of_root(prime, power)).collect()
}

/// The root is `prime^(1/power)`. Only the powers 2 and 3 are used. The result is exact: whole
/// numbers correct what the floating point number lacks.
fn fraction_of_root(prime: u64, power: f64) -> u32 {
    // The root times 2^32, rounded down: the largest `n` with n^power <= prime * 2^(32 * power).
    let mut n = ((prime as f64).powf(1.0 / power) * 4_294_967_296.0) as u128;
    let fits = |n: u128| match power {
        2.0 => n * n <= u128::from(prime) << 64,
        // n^3 has up to 105 bits.
        _ => n * n * n <= u128::from(prime) << 96,
    };
    while fits(n + 1) {
        n += 1;
    }
    while !fits(n) {
        n -= 1;
    }
    n as u32
}

/// The SHA-256 digest (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    static ROOTS: LazyLock<(Vec<u32>, Vec<u32>)> = LazyLock::new(|| (root_bits(2.0, 8), root_bits(3.0, 64)));
    let (start, constants) = &*ROOTS;
    let mut state = start.clone();
    let mut message = bytes.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    for block in message.chunks(64) {
        let mut w: Vec<u32> = block.chunks(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
        for n in 16..64 {
            let (a, b) = (w[n - 15], w[n - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
            w.push(w[n - 16].wrapping_add(s0).wrapping_add(w[n - 7]).wrapping_add(s1));
        }
        let mut v = state.clone();
        for n in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = v[4] & v[5] ^ !v[4] & v[6];
            let sum = [v[7], s1, choice, constants[n], w[n]].into_iter().fold(0, u32::wrapping_add);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2];
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(sum);
            v[0] = sum.wrapping_add(s0).wrapping_add(majority);
        }
        state.iter_mut().zip(v).for_each(|(state, v)| *state = state.wrapping_add(v));
    }
    let mut digest = [0; 32];
    for (to, word) in digest.chunks_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// The CRC-32C checksum, continued from `before`.
pub(super) fn crc32c(bytes: &[u8], before: u32) -> u32 {
    /// What each byte does, so that the checksums of a record of some MiB are made in no time.
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        let of = |byte: u32| (0..8).fold(byte, |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
        std::array::from_fn(|byte| of(byte as u32))
    });
    !bytes.iter().fold(!before, |crc, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digests_are_those_of_the_standards() {
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(sha256(b"")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(crc32c(b"123456789", 0), 0xe306_9283);
        assert_eq!(crc32c(b"6789", crc32c(b"12345", 0)), 0xe306_9283);
    }
}
