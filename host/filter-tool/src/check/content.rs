//! Bytes that follow from a number and an offset, and random numbers that follow from a seed.

/// A generator of random numbers: splitmix64. The same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    /// A generator that begins with this seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, or 0 if the limit is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The finalizer of splitmix64.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Fills `bytes`, which begin at `offset` of the disk. Each 8 bytes of the disk have a value of
/// their own, so bytes that were moved can be told from those that were not. Fill 0 is all zeroes.
pub fn fill(bytes: &mut [u8], fill: u64, offset: u64) {
    if fill == 0 {
        bytes.fill(0);
        return;
    }
    let word = |at: u64| mix((at / 8) ^ mix(fill)).to_le_bytes();
    let head = bytes.len().min((8 - offset % 8) as usize % 8);
    let (first, rest) = bytes.split_at_mut(head);
    for (byte, at) in first.iter_mut().zip(offset..) {
        *byte = word(at)[(at % 8) as usize];
    }
    let begin = offset + head as u64;
    for (chunk, at) in rest.chunks_mut(8).zip((begin..).step_by(8)) {
        chunk.copy_from_slice(&word(at)[..chunk.len()]);
    }
}

/// The unit of holes of a fresh disk, in bytes. A quarter of these units is empty.
pub const UNIT: usize = 64 << 10;

/// The units that a range touches.
pub fn units(offset: u64, length: u64) -> std::ops::Range<usize> {
    (offset / UNIT as u64) as usize..(offset + length).div_ceil(UNIT as u64) as usize
}

/// Fills `bytes`, which begin at `offset`, with the content of a fresh disk.
pub fn initial(bytes: &mut [u8], seed: u64, offset: u64) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let unit = at / UNIT as u64;
        let end = rest.len().min(((unit + 1) * UNIT as u64 - at) as usize);
        let (part, others) = rest.split_at_mut(end);
        let is_empty = mix(seed ^ mix(unit)).is_multiple_of(4);
        fill(part, if is_empty { 0 } else { seed | 1 }, at);
        at += end as u64;
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_content_is_the_same_wherever_it_begins() {
        let mut whole = [0; 100];
        fill(&mut whole, 7, 1000);
        for begin in 0..20 {
            let mut part = [0; 30];
            fill(&mut part, 7, 1000 + begin as u64);
            assert_eq!(part, whole[begin..begin + 30]);
        }
        fill(&mut whole, 0, 3);
        assert_eq!(whole, [0; 100]);
    }
}
