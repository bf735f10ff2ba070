//! The block sizes of a block device. A regular file has none to tell.

use rbdkit_plugin_api::BlockSizes;

/// The largest preferred block size of the protocol, in bytes.
const MAX_PREFERRED: u32 = 32 << 20;

/// What the kernel tells of a device, in bytes. 0: it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// BLKSSZGET: the unit in which the device is addressed.
    pub(crate) logical: u32,
    /// BLKPBSZGET: the unit in which it writes. A shorter write reads first.
    pub(crate) physical: u32,
    /// `queue/optimal_io_size`: a stripe of a RAID, for example.
    pub(crate) optimal: u32,
}

impl Blocks {
    /// What a client should know. The minimum is 1, because requests go through the page cache,
    /// which takes any. The preferred size is the largest of the three that the protocol can carry:
    /// a power of two of at least 512 bytes.
    pub(crate) fn sizes(self) -> BlockSizes {
        let carried = |size: &u32| size.is_power_of_two() && (512..=MAX_PREFERRED).contains(size);
        let preferred = [self.logical, self.physical, self.optimal].into_iter().filter(carried).max();
        BlockSizes { minimum: 1, preferred: preferred.unwrap_or(4096), maximum: u32::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferred(logical: u32, physical: u32, optimal: u32) -> u32 {
        let sizes = Blocks { logical, physical, optimal }.sizes();
        assert!(sizes.is_valid() && sizes.minimum == 1, "{sizes:?}");
        sizes.preferred
    }

    #[test]
    fn the_largest_unit_is_preferred_if_the_protocol_can_carry_it() {
        assert_eq!(preferred(512, 512, 0), 512);
        assert_eq!(preferred(512, 4096, 0), 4096);
        assert_eq!(preferred(4096, 4096, 64 << 10), 64 << 10);
        // A RAID of three disks: its stripe is no power of two.
        assert_eq!(preferred(512, 4096, 3 << 16), 4096);
        assert_eq!(preferred(512, 4096, 64 << 20), 4096);
        // What the kernel does not know, or what makes no sense.
        assert_eq!(preferred(0, 0, 0), 4096);
        assert_eq!(preferred(1, 3, u32::MAX), 4096);
    }
}
