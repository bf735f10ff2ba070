//! A decoder as a filter.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Error, ExtentList, Source};
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, Extent, Filter, Support, buffer, next_open, request};

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
    /// The image of the connection that is being served, which `open` opens if this instance has
    /// not done so.
    ///
    /// # Errors
    /// Those of `open`. The line is logged.
    pub fn of_connection(&self, open: impl FnOnce() -> Result<I, Error>) -> Result<Rc<I>, Errno> {
        let connection = request::connection();
        if let Some(image) = self.get(connection) {
            return Ok(image);
        }
        let image = Rc::new(open().map_err(Error::log)?);
        self.put(connection, Rc::clone(&image));
        Ok(image)
    }

    /// Forgets the image of the connection that is being closed.
    pub fn close(&self) {
        self.forget(request::connection());
    }

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
        self.images().of_connection(|| self.open_image())
    }

    /// Opens next for a connection and returns the handle. A filter that only reads opens next
    /// read-only.
    ///
    /// # Errors
    /// Those of next.
    fn open_next(&self, readonly: bool, exportname: &str) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        Ok(0)
    }

    #[doc(hidden)]
    fn close_image(&self) {
        self.images().close();
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

    #[doc(hidden)]
    fn cache_image(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.image()?.cache(offset, length).map_err(Error::log)
    }

    #[doc(hidden)]
    fn no_block_size(&self) -> Result<BlockSizes, Errno> {
        Err(Errno::Enotsup)
    }
}

/// Implements [`Connection`](crate::Connection) for a filter that implements
/// [`Format`](crate::image::Format). `image_connection!(MyFilter)` opens next as the client opens
/// the export. `image_connection!(MyFilter, |_| true)` opens it read-only.
#[macro_export]
macro_rules! image_connection {
    ($filter:ident) => {
        $crate::image_connection!($filter, |readonly| readonly);
    };
    ($filter:ident, |$readonly:pat_param| $below:expr) => {
        impl $crate::Connection for $filter {
            fn open(&self, $readonly: bool, exportname: &str, _: bool, _: bool) -> Result<u64, $crate::Errno> {
                $crate::image::Format::open_next(self, $below, exportname)
            }
            fn prepare(&self) -> Result<(), $crate::Errno> {
                $crate::image::Format::image(self).map(drop)
            }
            fn close(&self) {
                $crate::image::Format::close_image(self);
            }
        }
    };
}

/// Implements [`Info`](crate::Info), [`Reads`](crate::Reads), [`Mapping`](crate::Mapping) and
/// [`Caching`](crate::Caching) for a filter that implements [`Format`](crate::image::Format). It is
/// for filters that write as well. The export has no block sizes.
#[macro_export]
macro_rules! image_reads {
    ($filter:ident) => {
        $crate::image_reads!($filter, $crate::image::Format::no_block_size, $crate::image::Format::image_extents);
    };
    ($filter:ident, $block_size:path, $extents:path) => {
        impl $crate::Info for $filter {
            fn get_size(&self) -> Result<u64, $crate::Errno> {
                Ok($crate::image::Source::size(&*$crate::image::Format::image(self)?))
            }
            fn block_size(&self) -> Result<$crate::BlockSizes, $crate::Errno> {
                $block_size(self)
            }
            fn export_description(&self) -> Option<String> {
                $crate::image::Source::description(&*$crate::image::Format::image(self).ok()?)
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
                $extents(self, offset, length, flags)
            }
        }
        impl $crate::Caching for $filter {
            fn cache(&self, offset: u64, length: u64) -> Result<(), $crate::Errno> {
                $crate::image::Format::cache_image(self, offset, length)
            }
        }
    };
}

/// Exports a filter that implements [`Format`](crate::image::Format) and only reads: the life of
/// the connection, size, reads, extents and caching. It has no block sizes. Further interfaces may
/// follow the name.
#[macro_export]
macro_rules! export_image {
    ($filter:ident $(, $more:ident)* $(,)?) => {
        $crate::image_connection!($filter, |_| true);
        $crate::image_reads!($filter);
        impl $crate::Features for $filter {
            fn can(&self, below: $crate::Capabilities) -> Result<$crate::Capabilities, $crate::Errno> {
                Ok($crate::image::Format::image_can(self, below))
            }
        }
        $crate::export!($filter: connection, info, features, reads, mapping, caching $(, $more)*);
    };
}
