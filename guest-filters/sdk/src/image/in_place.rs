//! A decoder as a filter that writes: what it serves is one run of bytes of the layer below.

use super::Source;
use super::serve::Format;
use crate::prelude::PAYLOAD;
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, Extent, next};

/// A filter that serves a part of the layer below where it is: a partition, a member of an archive.
/// [`export_image_in_place!`](crate::export_image_in_place) exports it. All operations are moved to
/// the part. An image that is not one run of bytes is served read-only.
///
/// The methods with a body are what the macro's exports call.
pub trait InPlace: Format {
    /// Where the image begins in the layer below, in bytes. None if it is not one run of bytes.
    fn start(image: &Self::Image) -> Option<u64>;

    #[doc(hidden)]
    fn block_size_in_place(&self) -> Result<BlockSizes, Errno> {
        let sizes = next::block_size()?;
        let image = self.image()?;
        match Self::start(&image) {
            Some(start) if fits(&sizes, start, image.size()) => Ok(sizes),
            _ => Err(Errno::Enotsup),
        }
    }

    #[doc(hidden)]
    fn can_in_place(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let image = self.image()?;
        let Some(start) = Self::start(&image) else { return Ok(self.image_can(below)) };
        // A part that does not consist of whole blocks of next can be read, and not written.
        let write = below.write && next::block_size().is_ok_and(|sizes| !fits(&sizes, start, image.size()));
        Ok(if write { self.image_can(below) } else { below })
    }

    #[doc(hidden)]
    fn moved(&self, offset: u64) -> Result<u64, Errno> {
        let image = self.image()?;
        let start = Self::start(&image).ok_or(Errno::Erofs)?;
        start.checked_add(offset).ok_or(Errno::Einval)
    }

    #[doc(hidden)]
    fn write_payload(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(self.moved(offset)?, length, PAYLOAD, 0, flags)
    }

    #[doc(hidden)]
    fn extents_in_place(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let image = self.image()?;
        let Some(start) = Self::start(&image) else { return self.image_extents(offset, length, flags) };
        if !next::can()?.extents {
            return self.image_extents(offset, length, flags);
        }
        let end = start.saturating_add(image.size());
        next::extents_forward_until(start.saturating_add(offset), length, end, offset, flags)?;
        Ok(Vec::new())
    }
}

/// Whether a part consists of whole blocks.
fn fits(sizes: &BlockSizes, start: u64, size: u64) -> bool {
    let block = u64::from(sizes.minimum.max(1));
    start.is_multiple_of(block) && size.is_multiple_of(block)
}

/// Exports a filter that implements [`InPlace`](crate::image::InPlace): the life of the connection,
/// size, reads, writes, trims, zeroes, extents and caching. Further interfaces may follow the name.
#[macro_export]
macro_rules! export_image_in_place {
    ($filter:ident $(, $more:ident)* $(,)?) => {
        $crate::image_connection!($filter);
        $crate::image_reads!(
            $filter,
            $crate::image::InPlace::block_size_in_place,
            $crate::image::InPlace::extents_in_place
        );
        impl $crate::Features for $filter {
            fn can(&self, below: $crate::Capabilities) -> Result<$crate::Capabilities, $crate::Errno> {
                $crate::image::InPlace::can_in_place(self, below)
            }
        }
        impl $crate::Writes for $filter {
            fn pwrite(&self, offset: u64, length: u32, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                $crate::image::InPlace::write_payload(self, offset, length, flags)
            }
        }
        impl $crate::Trims for $filter {
            fn trim(&self, offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                $crate::next::trim($crate::image::InPlace::moved(self, offset)?, length, flags)
            }
        }
        impl $crate::Zeroes for $filter {
            fn zero(&self, offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                $crate::next::zero($crate::image::InPlace::moved(self, offset)?, length, flags)
            }
        }
        $crate::export!(
            $filter: connection, info, features, reads, writes, trims, zeroes, mapping, caching $(, $more)*
        );
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Error, Images, Next, Part};
    use crate::prelude::*;
    use crate::testing::{Disk, Host};
    use std::rc::Rc;

    /// Serves what follows the first 512 bytes, or the first 16 if the first byte is not 0.
    struct Rest {
        images: Images<Part>,
    }

    impl Filter for Rest {
        type Params = ();

        fn describe() -> Description {
            Description::new("rest", "1", "serves the rest").thread_model(ThreadModel::Parallel)
        }

        fn configure(_: ()) -> Result<Self, String> {
            Ok(Rest { images: Images::default() })
        }
    }

    impl Format for Rest {
        type Image = Part;

        fn open_image(&self) -> Result<Part, Error> {
            let next = Next::new()?;
            let start = if crate::image::read(&next, 0, 1)? == [0] { 512 } else { 16 };
            let size = next.size() - start;
            Part::new(Rc::new(next), start, size)
        }

        fn images(&self) -> &Images<Part> {
            &self.images
        }
    }

    impl InPlace for Rest {
        fn start(image: &Part) -> Option<u64> {
            Some(4096 - image.size())
        }
    }

    crate::export_image_in_place!(Rest);

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn operations_are_moved_to_the_part() {
        let host = Host::new(Disk::zeroes(4096)).serve::<Rest>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!(client.size(), 3584);
        host.take_calls();
        client.pwrite(0, b"new", CommandFlags::FUA).unwrap();
        client.zero(10, 20, NONE).unwrap();
        client.trim(100, 50, NONE).unwrap();
        client.cache(5, 6).unwrap();
        let calls: Vec<String> = host.take_calls().into_iter().filter(|call| call != "can").collect();
        assert_eq!(calls, ["pwrite 512 3 fua", "zero 522 20", "trim 612 50", "cache 517 6"]);
        assert_eq!(client.pread(0, 4).unwrap(), b"new\0");
        let data = Extent { offset: 5, length: 3579, kind: ExtentType::empty() };
        assert_eq!(client.extents(5, 10, NONE).unwrap(), [data]);
    }

    #[test]
    fn a_part_that_is_not_of_whole_blocks_is_read_only() {
        let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        let host = Host::new(Disk::zeroes(4096).block_sizes(sizes)).serve::<Rest>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.can().write, client.block_size().unwrap().minimum), (true, 512));
        let host = Host::new(Disk::new([1; 4096]).block_sizes(sizes)).serve::<Rest>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.can().write, client.block_size().err()), (false, Some(Errno::Enotsup)));
        assert_eq!(client.pread(3, 4).unwrap(), [1; 4]);
    }
}
