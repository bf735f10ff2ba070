//! Serves a part of the layer below as if it were a whole disk.

mod window;

use rbdkit_filter_sdk::prelude::*;
use window::Window;

params! {
    /// The parameters.
    pub struct Part {
        /// Where the part starts, in bytes.
        offset: Size = Size(0),
        /// How long the part is, in bytes. By default it reaches to the end.
        range: Option<Size>,
    }
}

/// The filter.
pub struct Offset {
    part: Part,
}

impl Offset {
    /// The offset in the layer below. The host has checked the request against the size of this
    /// layer, so the sum is within the layer below.
    fn offset_below(&self, offset: u64) -> u64 {
        offset.saturating_add(self.part.offset.0)
    }
}

impl Filter for Offset {
    type Params = Part;

    fn describe() -> Description {
        Description::new("offset", env!("CARGO_PKG_VERSION"), "serves a part of the layer below")
            .help("The part must lie within the layer below, or clients cannot connect.")
            .thread_model(ThreadModel::Parallel)
    }

    fn configure(part: Part) -> Result<Self, String> {
        Ok(Offset { part })
    }
}

impl Info for Offset {
    fn get_size(&self) -> Result<u64, Errno> {
        let part = &self.part;
        match Window::new(next::get_size()?, part.offset.0, part.range.map(|range| range.0)) {
            Ok(window) => Ok(window.size),
            Err(message) => {
                error!("{message}");
                Err(Errno::Einval)
            }
        }
    }
}

impl Features for Offset {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(below)
    }
}

impl Reads for Offset {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(self.offset_below(offset), length, PAYLOAD, 0)
    }
}

impl Writes for Offset {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(self.offset_below(offset), length, PAYLOAD, 0, flags)
    }
}

impl Trims for Offset {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::trim(self.offset_below(offset), length, flags)
    }
}

impl Zeroes for Offset {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::zero(self.offset_below(offset), length, flags)
    }
}

impl Mapping for Offset {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        // The host cuts an extent that runs on beyond this layer's size.
        next::extents_forward_until(self.offset_below(offset), length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Offset {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        next::cache(self.offset_below(offset), length)
    }
}

rbdkit_filter_sdk::export!(Offset: info, features, reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn requests_are_moved_into_the_part() {
        let host = Host::new(Disk::pattern(4096)).serve::<Offset>(&["offset=1k", "range=2k"]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.size(), client.pread(10, 5).unwrap()), (2048, host.disk()[1034..1039].to_vec()));
        host.take_calls();
        client.pwrite(0, b"new", CommandFlags::FUA).unwrap();
        client.zero(2000, 48, CommandFlags::empty()).unwrap();
        assert_eq!(host.take_calls(), ["pwrite 1024 3 fua", "zero 3024 48"]);
        assert_eq!(host.disk()[1024..1027], *b"new");
        let data = Extent { offset: 5, length: 2043, kind: ExtentType::empty() };
        assert_eq!(client.extents(5, 10, CommandFlags::empty()).unwrap(), [data]);
    }

    #[test]
    fn a_part_that_is_not_within_the_disk_fails_the_connection_and_says_why() {
        let host = Host::new(Disk::pattern(4096)).serve::<Offset>(&["offset=1k", "range=4k"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Einval));
        assert!(host.take_log().iter().any(|line| line.starts_with("error: ")));
    }
}
