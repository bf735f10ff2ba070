//! What the kernel tells of a block device in `/sys`.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::BlockSizes;
use rustix::fs::Stat;

/// The page cache works in pages of this size, in bytes. A shorter write has to read the page
/// first.
const PAGE: u32 = 4096;

/// The directory that describes the queue of requests of a device. A partition has the queue of its
/// disk.
pub(crate) struct Queue(PathBuf);

impl Queue {
    /// Of the device whose state this is.
    pub(crate) fn of(stat: &Stat) -> Queue {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let own = device.join("queue");
        Queue(if own.is_dir() { own } else { device.join("../queue") })
    }

    fn value(&self, file: &str) -> Option<u32> {
        let text = std::fs::read_to_string(Path::new(&self.0).join(file)).ok()?;
        text.trim().parse().ok()
    }

    pub(crate) fn is_rotational(&self) -> bool {
        self.value("rotational") == Some(1)
    }

    /// Any request is served, because the page cache is in between. The preferred size is the
    /// largest of a page, of the physical block of the device (BLKPBSZGET, in bytes) and of the
    /// sizes that its description names, which a confined server does not see. A size that NBD
    /// cannot express does not count, for example that of three disks side by side.
    pub(crate) fn block_sizes(&self, physical: u32) -> BlockSizes {
        let sizes = |preferred| BlockSizes { minimum: 1, preferred, maximum: u32::MAX };
        let named = ["minimum_io_size", "optimal_io_size"].into_iter().filter_map(|file| self.value(file));
        let told = named.chain([physical]).filter(|size| sizes(*size).is_valid());
        sizes(told.fold(PAGE, u32::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(files: &[(&str, &str)]) -> (tempfile::TempDir, Queue) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let queue = Queue(dir.path().to_path_buf());
        (dir, queue)
    }

    #[test]
    fn the_largest_size_that_a_device_names_is_preferred() {
        for (minimum, optimal, preferred) in [
            ("512\n", "0\n", 4096),
            ("4096\n", "0\n", 4096),
            ("65536\n", "0\n", 65536),
            ("512\n", "1048576\n", 1 << 20),
            ("65536\n", "196608\n", 65536),
            ("512\n", "67108864\n", 4096),
            ("4294967296\n", "nonsense\n", 4096),
        ] {
            let (_dir, queue) = queue(&[("minimum_io_size", minimum), ("optimal_io_size", optimal)]);
            let sizes = queue.block_sizes(512);
            assert_eq!(
                (sizes.minimum, sizes.preferred, sizes.maximum),
                (1, preferred, u32::MAX),
                "{minimum} {optimal}"
            );
            assert!(sizes.is_valid());
        }
    }

    #[test]
    fn a_device_without_a_description_is_an_ordinary_one() {
        let (_dir, queue) = queue(&[]);
        assert!(!queue.is_rotational());
        assert_eq!(queue.block_sizes(0).preferred, 4096);
        assert_eq!(queue.block_sizes(16384).preferred, 16384);
        let (_dir, queue) = self::queue(&[("rotational", "1\n")]);
        assert!(queue.is_rotational());
    }
}
