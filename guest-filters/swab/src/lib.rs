//! Swaps the bytes of each word. The bytes stay in the host.

mod words;

use rbdkit_filter_sdk::prelude::*;
use words::Word;

/// The most extents of the layer below that one answer is made of.
const MAX_RUNS: usize = 4096;

params! {
    /// The parameters.
    pub struct Settings {
        /// The length of a word in bits: 8, 16, 32 or 64. With 8 nothing is swapped.
        #[param(check = word_length)]
        swab_bits: u32 = 16,
    }
}

fn word_length(bits: &u32) -> Result<(), String> {
    Word::from_bits(*bits).map(drop).ok_or_else(|| "is not 8, 16, 32 or 64".into())
}

/// The filter.
pub struct Swab {
    word: Word,
}

impl Swab {
    /// Fails unless the request is made of whole words.
    fn check(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if self.word.fits(offset, length) { Ok(()) } else { Err(Errno::Einval) }
    }

    /// Swaps the payload.
    fn swap(&self) {
        if self.word.0 > 1 {
            Payload.swap(.., self.word.0);
        }
    }
}

impl Filter for Swab {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("swab", env!("CARGO_PKG_VERSION"), "swaps bytes")
            .help("The disk ends with its last whole word. Requests have to be made of whole words.")
            .thread_model(ThreadModel::Parallel)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let word = Word::from_bits(settings.swab_bits).ok_or("swab-bits: is not 8, 16, 32 or 64")?;
        Ok(Swab { word })
    }
}

impl Info for Swab {
    fn get_size(&self) -> Result<u64, Errno> {
        Ok(self.word.down(next::get_size()?))
    }

    fn block_size(&self) -> Result<BlockSizes, Errno> {
        let below = next::block_size().ok();
        if self.word.0 == 1 {
            return below.ok_or(Errno::Enotsup);
        }
        let BlockSizes { minimum, preferred, maximum } =
            below.unwrap_or(BlockSizes { minimum: 1, preferred: 512, maximum: u32::MAX });
        // The host wants a maximum that is a multiple of the minimum, unless there is no maximum.
        let minimum = minimum.max(self.word.0);
        let maximum = if maximum == u32::MAX { maximum } else { (maximum - maximum % minimum).max(minimum) };
        Ok(BlockSizes { minimum, preferred, maximum })
    }
}

impl Features for Swab {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(below)
    }
}

impl Reads for Swab {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.check(offset, length.into())?;
        next::pread(offset, length, PAYLOAD, 0)?;
        self.swap();
        Ok(())
    }
}

impl Writes for Swab {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.check(offset, length.into())?;
        self.swap();
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for Swab {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check(offset, length)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Swab {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check(offset, length)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for Swab {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let limit = self.word.down(next::get_size()?);
        if self.word.0 == 1 {
            next::extents_forward_until(offset, length, limit, offset, flags)?;
            return Ok(Vec::new());
        }
        let (start, end) = (self.word.down(offset), self.word.up(offset + length));
        let below = next::extents_until(start, end - start, limit, flags)?;
        let runs = below.into_iter().take(MAX_RUNS).map(|extent| (extent.length, extent.kind.bits()));
        let mut at = start;
        let extent = |(length, bits)| {
            let (from, to) = (at.max(offset), at + length);
            at = to;
            Extent { offset: from, length: to - from, kind: ExtentType::from_bits_truncate(bits) }
        };
        Ok(self.word.align(runs).into_iter().map(extent).collect())
    }
}

impl Caching for Swab {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.check(offset, length)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Swab: info, features, reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn the_bytes_of_each_word_are_swapped_in_both_directions() {
        for (bits, expected) in [(8, *b"abcdefgh"), (16, *b"badcfehg"), (32, *b"dcbahgfe"), (64, *b"hgfedcba")] {
            let host = Host::new(Disk::new(*b"abcdefghijk")).serve::<Swab>(&[&format!("swab-bits={bits}")]).unwrap();
            let client = host.connect().unwrap();
            assert_eq!(client.size(), 11 - 11 % (bits / 8));
            assert_eq!(client.pread(0, 8).unwrap(), expected);
            client.pwrite(0, b"12345678", NONE).unwrap();
            assert_eq!(client.pread(0, 8).unwrap(), b"12345678");
        }
        let host = Host::new(Disk::new(*b"abcd")).serve::<Swab>(&[]).unwrap();
        assert_eq!(host.connect().unwrap().pread(2, 2).unwrap(), b"dc");
    }

    #[test]
    fn requests_of_parts_of_words_are_refused() {
        let host = Host::new(Disk::zeroes(100)).serve::<Swab>(&["swab-bits=32"]).unwrap();
        let client = host.connect().unwrap();
        let einval = Err(Errno::Einval);
        assert_eq!(client.pread(0, 3), Err(Errno::Einval));
        assert_eq!(client.pread(2, 4), Err(Errno::Einval));
        let others =
            [client.pwrite(1, b"1234", NONE), client.zero(0, 6, NONE), client.trim(2, 4, NONE), client.cache(0, 1)];
        assert_eq!(others, [einval; 4]);
        let wrong = Host::new(Disk::zeroes(1)).serve::<Swab>(&["swab-bits=17"]).err();
        assert_eq!(wrong.as_deref(), Some("swab: swab-bits=17: is not 8, 16, 32 or 64"));
    }

    #[test]
    fn a_word_between_data_and_a_hole_is_data() {
        let mut bytes = vec![0; 16384];
        bytes[..4096].fill(1);
        let host = Host::new(Disk::new(bytes)).serve::<Swab>(&["swab-bits=64"]).unwrap();
        let client = host.connect().unwrap();
        let data = Extent { offset: 3, length: 4093, kind: ExtentType::empty() };
        let hole = Extent { offset: 4096, length: 12288, kind: ExtentType::HOLE | ExtentType::ZERO };
        assert_eq!(client.extents(3, 10001, NONE).unwrap(), [data, hole]);
    }
}
