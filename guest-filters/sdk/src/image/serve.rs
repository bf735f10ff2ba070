//! A decoder as a filter.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Error, ExtentList, Source};
use crate::{Capabilities, CommandFlags, Errno, Extent, Filter, Support, buffer, next_open, request};

/// An instance keeps the images of this many connections open.
const MOST_OPEN: usize = 4;

/// The images that an instance has opened, for the connections that it served last.
///
/// Each connection has its own: two connections to one name may see two files, one after the other.
pub struct Images<I> {
    open: RefCell<Vec<(u64, Rc<I>)>>,
}

impl<I> Default for Images<I> {
    fn default() -> Self {
        Images { open: RefCell::default() }
    }
}

impl<I> Images<I> {
    /// The image of a connection, the one that was used last first.
    fn get(&self, connection: u64) -> Option<Rc<I>> {
        let mut open = self.open.borrow_mut();
        let at = open.iter().position(|(of, _)| *of == connection)?;
        open[..=at].rotate_right(1);
        Some(Rc::clone(&open[0].1))
    }

    fn put(&self, connection: u64, image: Rc<I>) {
        let mut open = self.open.borrow_mut();
        open.truncate(MOST_OPEN - 1);
        open.insert(0, (connection, image));
    }

    fn forget(&self, connection: u64) {
        self.open.borrow_mut().retain(|(of, _)| *of != connection);
    }
}

/// A filter that serves what a decoder makes of the layer below, read-only.
/// [`export_image!`](crate::export_image) exports it.
///
/// The methods with a body are what the macro's exports call.
pub trait Format: Filter {
    /// The decoder.
    type Image: Source;

    /// Opens the image of the connection that is being served. Any instance may have to do it again
    /// at any request, so it must be cheap: read the header, and no more.
    ///
    /// # Errors
    /// Those of the layer below, and a line if the image is wrong.
    fn open_image(&self) -> Result<Self::Image, Error>;

    /// Where the filter keeps the images that are open.
    fn images(&self) -> &Images<Self::Image>;

    /// The image of the connection that is being served.
    ///
    /// # Errors
    /// Those of [`open_image`](Format::open_image). The line is logged.
    fn image(&self) -> Result<Rc<Self::Image>, Errno> {
        let connection = request::connection();
        if let Some(image) = self.images().get(connection) {
            return Ok(image);
        }
        let image = Rc::new(self.open_image().map_err(Error::log)?);
        self.images().put(connection, Rc::clone(&image));
        Ok(image)
    }

    #[doc(hidden)]
    fn open_next(&self, exportname: &str) -> Result<u64, Errno> {
        next_open::open(true, exportname)?;
        Ok(0)
    }

    #[doc(hidden)]
    fn close_image(&self) {
        self.images().forget(request::connection());
    }

    #[doc(hidden)]
    fn image_can(&self, below: Capabilities) -> Capabilities {
        let cache = if below.cache == Support::None { Support::Emulate } else { Support::Native };
        Capabilities {
            write: false,
            flush: false,
            rotational: below.rotational,
            trim: false,
            fast_zero: false,
            extents: true,
            multi_conn: true,
            zero: Support::None,
            fua: Support::None,
            cache,
        }
    }

    #[doc(hidden)]
    fn read_payload(&self, offset: u64, length: u32) -> Result<(), Errno> {
        self.image()?.read_buffer(offset, length, &buffer::Payload, 0).map_err(Error::log)
    }

    #[doc(hidden)]
    fn image_extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let mut list = ExtentList::new(offset, length).only_one(flags.contains(CommandFlags::REQ_ONE));
        self.image()?.extents(&mut list).map_err(Error::log)?;
        list.into_answer()
    }
}

/// Exports a filter that implements [`Format`](crate::image::Format) and nothing else: the life of
/// the connection, size, reads, extents and caching. It has no block sizes.
#[macro_export]
macro_rules! export_image {
    ($filter:ident $(, $more:ident)* $(,)?) => {
        impl $crate::Connection for $filter {
            fn open(&self, _: bool, exportname: &str, _: bool, _: bool) -> Result<u64, $crate::Errno> {
                $crate::image::Format::open_next(self, exportname)
            }
            fn prepare(&self) -> Result<(), $crate::Errno> {
                $crate::image::Format::image(self).map(drop)
            }
            fn close(&self) {
                $crate::image::Format::close_image(self);
            }
        }
        impl $crate::Info for $filter {
            fn get_size(&self) -> Result<u64, $crate::Errno> {
                Ok($crate::image::Source::size(&*$crate::image::Format::image(self)?))
            }
            fn block_size(&self) -> Result<$crate::BlockSizes, $crate::Errno> {
                Err($crate::Errno::Enotsup)
            }
            fn export_description(&self) -> Option<String> {
                $crate::image::Source::description(&*$crate::image::Format::image(self).ok()?)
            }
        }
        impl $crate::Features for $filter {
            fn can(&self, below: $crate::Capabilities) -> Result<$crate::Capabilities, $crate::Errno> {
                Ok($crate::image::Format::image_can(self, below))
            }
        }
        impl $crate::Reads for $filter {
            fn pread(&self, offset: u64, length: u32, _flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                $crate::image::Format::read_payload(self, offset, length)
            }
        }
        impl $crate::Mapping for $filter {
            fn extents(
                &self,
                offset: u64,
                length: u64,
                flags: $crate::CommandFlags,
            ) -> Result<Vec<$crate::Extent>, $crate::Errno> {
                $crate::image::Format::image_extents(self, offset, length, flags)
            }
        }
        impl $crate::Caching for $filter {
            fn cache(&self, offset: u64, length: u64) -> Result<(), $crate::Errno> {
                $crate::image::Source::cache(&*$crate::image::Format::image(self)?, offset, length)
                    .map_err($crate::image::Error::log)
            }
        }
        $crate::export!($filter: connection, info, features, reads, mapping, caching $(, $more)*);
    };
}
