//! CRC-32 with the polynomial of Ethernet: of gzip, lzip, xz, zip, GPT and LVM. And CRC-32C with
//! that of Castagnoli, of VHDX.

use crc::{CRC_32_ISCSI, CRC_32_ISO_HDLC, Crc, Digest, Table};

/// The checksum, for data that comes in pieces.
pub static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

/// CRC-32C, for data that comes in pieces.
pub static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The checksum of the pieces so far, of either polynomial.
pub type Crc32 = Digest<'static, u32, Table<16>>;

/// The checksum of `bytes` as all but LVM have it.
pub fn crc32(bytes: &[u8]) -> u32 {
    CRC32.checksum(bytes)
}

/// The checksum of `bytes` after `before`, without the two inversions that most formats make.
pub fn crc32_raw(before: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32.digest_with_initial(before.reverse_bits());
    digest.update(bytes);
    !digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::{CRC32C, crc32, crc32_raw};

    #[test]
    fn the_checksum_of_the_digits_is_the_published_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(crc32_raw(!0, b"123456789"), !0xcbf4_3926);
        // What LVM begins with. Python's zlib gives the same.
        assert_eq!(crc32_raw(0xf597_a6cf, b"123456789"), 0x4991_cf02);
    }
}
