//! AES over the sectors of a disk, as dm-crypt does it: XTS and CBC with an IV for each sector.
//!
//! The `aes` crate encrypts many blocks at once on processors that can. So the code below hands it
//! as many blocks as possible: the IVs of several sectors, and their data. CBC can only encrypt a
//! block after the one before it, so there the blocks of several sectors go together.
//!
//! The modes are here and not from crates: the crates for XTS encrypt one block at a time, and none
//! works on several sectors.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256, Block};
use rbdkit_plugin_api::locked::{Locked, LockedBytes};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a block.
const BLOCK: usize = 16;

/// Bytes that are worked on together. The longest sector.
const GROUP: usize = 4096;

/// The shortest sector, in bytes.
const SHORTEST_SECTOR: usize = 512;

/// A cipher with its mode, by dm-crypt's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// `aes-xts-plain64`.
    XtsPlain64,
    /// `aes-xts-plain`.
    XtsPlain,
    /// `aes-cbc-plain64`.
    CbcPlain64,
    /// `aes-cbc-plain`.
    CbcPlain,
    /// `aes-cbc-essiv:sha256`.
    CbcEssivSha256,
}

impl Cipher {
    /// The cipher of this name.
    pub fn parse(name: &str) -> Option<Cipher> {
        Some(match name {
            "aes-xts-plain64" => Cipher::XtsPlain64,
            "aes-xts-plain" => Cipher::XtsPlain,
            "aes-cbc-plain64" => Cipher::CbcPlain64,
            "aes-cbc-plain" => Cipher::CbcPlain,
            "aes-cbc-essiv:sha256" => Cipher::CbcEssivSha256,
            _ => return None,
        })
    }

    /// Whether it has keys of this many bytes.
    pub fn takes(self, length: usize) -> bool {
        match self {
            Cipher::XtsPlain64 | Cipher::XtsPlain => matches!(length, 32 | 64),
            Cipher::CbcPlain64 | Cipher::CbcPlain | Cipher::CbcEssivSha256 => matches!(length, 16 | 24 | 32),
        }
    }

    /// The number of a sector as it goes into the IV.
    fn number(self, sector: u64) -> u64 {
        match self {
            Cipher::XtsPlain | Cipher::CbcPlain => sector & u64::from(u32::MAX),
            Cipher::XtsPlain64 | Cipher::CbcPlain64 | Cipher::CbcEssivSha256 => sector,
        }
    }
}

/// AES with one key. The crate overwrites the round keys when they are dropped.
enum Aes {
    With128(Locked<Aes128>),
    With192(Locked<Aes192>),
    With256(Locked<Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Aes> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(Locked::new).map(Aes::With128),
            24 => Aes192::new_from_slice(key).ok().map(Locked::new).map(Aes::With192),
            32 => Aes256::new_from_slice(key).ok().map(Locked::new).map(Aes::With256),
            _ => None,
        }
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::With128(aes) => aes.encrypt_blocks(blocks),
            Aes::With192(aes) => aes.encrypt_blocks(blocks),
            Aes::With256(aes) => aes.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::With128(aes) => aes.decrypt_blocks(blocks),
            Aes::With192(aes) => aes.decrypt_blocks(blocks),
            Aes::With256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// The key of a cipher.
pub struct CipherKey {
    bytes: LockedBytes,
    cipher: Cipher,
    data: Aes,
    /// Encrypts the IV: the second half of an XTS key, or ESSIV's.
    iv: Option<Aes>,
}

/// How the sectors of a range are numbered.
#[derive(Clone, Copy, Debug)]
pub struct Sectors {
    /// Bytes of a sector: 512, 1024, 2048 or 4096.
    pub size: usize,
    /// The number of the first one.
    pub first: u64,
    /// By how much the number grows from one sector to the next.
    pub step: u64,
}

impl CipherKey {
    /// A key of these bytes. None if the cipher has no keys of this length.
    pub fn new(cipher: Cipher, bytes: &[u8]) -> Option<CipherKey> {
        if !cipher.takes(bytes.len()) {
            return None;
        }
        let (data, iv) = match cipher {
            Cipher::XtsPlain64 | Cipher::XtsPlain => {
                let (data, iv) = bytes.split_at(bytes.len() / 2);
                (Aes::new(data)?, Some(Aes::new(iv)?))
            }
            Cipher::CbcPlain64 | Cipher::CbcPlain => (Aes::new(bytes)?, None),
            Cipher::CbcEssivSha256 => {
                let digest = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(bytes)));
                (Aes::new(bytes)?, Some(Aes::new(&digest[..])?))
            }
        };
        Some(CipherKey { bytes: LockedBytes::copy(bytes), cipher, data, iv })
    }

    /// The bytes, from which a digest is made.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Encrypts whole sectors in place.
    pub fn encrypt(&self, bytes: &mut [u8], sectors: Sectors) {
        self.in_groups(bytes, sectors, |blocks, ivs| match self.cipher {
            Cipher::XtsPlain64 | Cipher::XtsPlain => xts(blocks, ivs, |blocks| self.data.encrypt(blocks)),
            _ => cbc_encrypt(&self.data, blocks, ivs),
        });
    }

    /// Decrypts whole sectors in place.
    pub fn decrypt(&self, bytes: &mut [u8], sectors: Sectors) {
        self.in_groups(bytes, sectors, |blocks, ivs| match self.cipher {
            Cipher::XtsPlain64 | Cipher::XtsPlain => xts(blocks, ivs, |blocks| self.data.decrypt(blocks)),
            _ => cbc_decrypt(&self.data, blocks, ivs),
        });
    }

    /// Calls `work` with the blocks of some whole sectors and the IV of each.
    fn in_groups(&self, bytes: &mut [u8], sectors: Sectors, mut work: impl FnMut(&mut [Block], &[Block])) {
        let mut number = sectors.first;
        let mut ivs = [Block::default(); GROUP / SHORTEST_SECTOR];
        for group in bytes.chunks_mut(GROUP) {
            let ivs = &mut ivs[..group.len().div_ceil(sectors.size)];
            for iv in ivs.iter_mut() {
                *iv = u128::from(self.cipher.number(number)).to_le_bytes().into();
                number = number.wrapping_add(sectors.step);
            }
            if let Some(aes) = &self.iv {
                aes.encrypt(ivs);
            }
            let (blocks, _) = Block::slice_as_chunks_mut(group);
            work(blocks, ivs);
        }
    }
}

/// XORs a block with another one.
#[inline(always)]
fn xor(block: &mut Block, with: u128) {
    *block = (u128::from_le_bytes((*block).into()) ^ with).to_le_bytes().into();
}

/// XTS. The tweak of a sector's first block is its IV, encrypted. The next block's is the last one
/// times x in GF(2^128).
fn xts(blocks: &mut [Block], ivs: &[Block], mut aes: impl FnMut(&mut [Block])) {
    let mut tweaks = [0_u128; GROUP / BLOCK];
    let tweaks = &mut tweaks[..blocks.len()];
    let of_a_sector = blocks.len() / ivs.len();
    for (tweaks, iv) in tweaks.chunks_mut(of_a_sector).zip(ivs) {
        let mut tweak = u128::from_le_bytes((*iv).into());
        for kept in tweaks {
            *kept = tweak;
            tweak = (tweak << 1) ^ (0x87 & (tweak >> 127).wrapping_neg());
        }
    }
    blocks.iter_mut().zip(&*tweaks).for_each(|(block, tweak)| xor(block, *tweak));
    aes(blocks);
    blocks.iter_mut().zip(&*tweaks).for_each(|(block, tweak)| xor(block, *tweak));
}

fn cbc_decrypt(aes: &Aes, blocks: &mut [Block], ivs: &[Block]) {
    let mut before = [Block::default(); GROUP / BLOCK];
    let before = &mut before[..blocks.len()];
    before.copy_from_slice(blocks);
    aes.decrypt(blocks);
    let of_a_sector = blocks.len() / ivs.len();
    for ((blocks, before), iv) in blocks.chunks_mut(of_a_sector).zip(before.chunks(of_a_sector)).zip(ivs) {
        let before = std::iter::once(iv).chain(before);
        blocks.iter_mut().zip(before).for_each(|(block, before)| xor(block, u128::from_le_bytes((*before).into())));
    }
}

fn cbc_encrypt(aes: &Aes, blocks: &mut [Block], ivs: &[Block]) {
    let of_a_sector = blocks.len() / ivs.len();
    let mut now = [Block::default(); GROUP / SHORTEST_SECTOR];
    let now = &mut now[..ivs.len()];
    now.copy_from_slice(ivs);
    for at in 0..of_a_sector {
        for (sector, now) in now.iter_mut().enumerate() {
            xor(now, u128::from_le_bytes(blocks[sector * of_a_sector + at].into()));
        }
        aes.encrypt(now);
        for (sector, now) in now.iter().enumerate() {
            blocks[sector * of_a_sector + at] = *now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// One block at a time and one sector at a time, as the standards define the modes.
    fn plainly(cipher: Cipher, key: &[u8], data: &mut [u8], sectors: Sectors) {
        let xts = matches!(cipher, Cipher::XtsPlain64 | Cipher::XtsPlain);
        let (data_key, iv_key) = if xts { key.split_at(key.len() / 2) } else { (key, key) };
        let digest = Sha256::digest(key);
        let iv_key = if cipher == Cipher::CbcEssivSha256 { &digest[..] } else { iv_key };
        let aes = Aes::new(data_key).unwrap();
        for (n, sector) in data.chunks_mut(sectors.size).enumerate() {
            let number = sectors.first.wrapping_add(n as u64 * sectors.step);
            let plain = matches!(cipher, Cipher::XtsPlain | Cipher::CbcPlain);
            let number = if plain { u64::from(number as u32) } else { number };
            let mut iv = [Block::from(u128::from(number).to_le_bytes())];
            if !matches!(cipher, Cipher::CbcPlain64 | Cipher::CbcPlain) {
                Aes::new(iv_key).unwrap().encrypt(&mut iv);
            }
            let mut iv: [u8; 16] = iv[0].into();
            for block in sector.chunks_mut(BLOCK) {
                let mut now = [Block::try_from(&*block).unwrap()];
                now[0].iter_mut().zip(iv).for_each(|(byte, iv)| *byte ^= iv);
                aes.encrypt(&mut now);
                if xts {
                    now[0].iter_mut().zip(iv).for_each(|(byte, iv)| *byte ^= iv);
                    let carry = iv[15] >> 7;
                    for at in (1..16).rev() {
                        iv[at] = (iv[at] << 1) | (iv[at - 1] >> 7);
                    }
                    iv[0] = (iv[0] << 1) ^ (carry * 0x87);
                } else {
                    iv = now[0].into();
                }
                block.copy_from_slice(&now[0]);
            }
        }
    }

    #[test]
    fn many_sectors_at_once_are_as_one_block_after_another() {
        for cipher in
            [Cipher::XtsPlain64, Cipher::XtsPlain, Cipher::CbcPlain64, Cipher::CbcPlain, Cipher::CbcEssivSha256]
        {
            for length in (0..=64).filter(|length| cipher.takes(*length)) {
                let bytes: Vec<u8> = (0..length).map(|n| (n * 7 + 3) as u8).collect();
                let key = CipherKey::new(cipher, &bytes).unwrap();
                for (size, count, first, step) in [
                    (512, 1, 0, 1),
                    (512, 21, u64::from(u32::MAX) - 3, 1),
                    (1024, 5, 77, 2),
                    (2048, 3, u64::MAX - 2, 1),
                    (4096, 3, 40, 8),
                ] {
                    let sectors = Sectors { size, first, step };
                    let data: Vec<u8> = (0..size * count).map(|n| ((n * n) >> 5) as u8).collect();
                    let (mut fast, mut slow) = (data.clone(), data.clone());
                    key.encrypt(&mut fast, sectors);
                    plainly(cipher, &bytes, &mut slow, sectors);
                    assert!(fast == slow, "{cipher:?} with {length} bytes, {sectors:?}");
                    key.decrypt(&mut fast, sectors);
                    assert!(fast == data, "{cipher:?} with {length} bytes, {sectors:?}");
                }
            }
        }
    }

    /// IEEE 1619, vector 4: the first and the last blocks of a sector of 512 bytes.
    #[test]
    fn xts_is_that_of_the_standard() {
        let key = bytes("2718281828459045235360287471352631415926535897932384626433832795");
        let key = CipherKey::new(Cipher::XtsPlain64, &key).unwrap();
        let mut data: Vec<u8> = (0..512).map(|n| n as u8).collect();
        key.encrypt(&mut data, Sectors { size: 512, first: 0, step: 1 });
        assert_eq!(data[..16], bytes("27a7479befa1d476489f308cd4cfa6e2")[..]);
        assert_eq!(data[496..], bytes("0a282df920147beabe421ee5319d0568")[..]);
    }

    #[test]
    fn a_key_has_one_of_the_lengths_of_its_cipher() {
        let lengths = |cipher| (0..100).filter(|n| CipherKey::new(cipher, &vec![1; *n]).is_some()).collect::<Vec<_>>();
        assert_eq!(lengths(Cipher::XtsPlain64), [32, 64]);
        assert_eq!(lengths(Cipher::CbcEssivSha256), [16, 24, 32]);
        assert_eq!(Cipher::parse("aes-xts-plain64"), Some(Cipher::XtsPlain64));
        assert_eq!(Cipher::parse("serpent-xts-plain64"), None);
    }
}
