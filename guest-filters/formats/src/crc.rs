//! CRC-32 with the polynomial of Ethernet, bits reflected: of zip, GPT and LVM.

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

/// The checksum of `bytes` after `before`, without the two inversions that most formats make.
pub fn crc32_raw(before: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(before, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// The checksum of `bytes` as zip and GPT have it.
pub fn crc32(bytes: &[u8]) -> u32 {
    !crc32_raw(!0, bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_of_the_digits_is_the_published_one() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
