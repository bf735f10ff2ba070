//! Moves ranges of the disk to other places.

mod table;

use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::durable::Durable;
use table::{Part, Table};

params! {
    /// The parameters.
    pub struct Settings {
        /// A range, START-END with both bytes, and where its first byte lies in the layer below:
        /// START-END:DEST.
        map: Vec<String>,
        /// The size of the disk. By default it is that of the layer below.
        map_size: Option<Size>,
    }
}

/// The filter.
pub struct Map {
    table: Table,
    size: Option<u64>,
}

impl Map {
    /// The parts of a request.
    fn parts(&self, offset: u64, length: u64) -> Result<Vec<Part>, Errno> {
        let size = next::get_size()?;
        self.table.parts(offset, length, size).map_err(|beyond| {
            let at = beyond.offset;
            error!("a request at {at} lies beyond the end of the layer below, which has {size} bytes");
            Errno::Eio
        })
    }
}

impl Filter for Map {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("map", env!("CARGO_PKG_VERSION"), "moves ranges of the disk to other places")
            .help("What no range covers stays where it is. Of ranges that overlap the first one counts.")
            .thread_model(ThreadModel::Parallel)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Map { table: Table::parse(&settings.map)?, size: settings.map_size.map(|size| size.0) })
    }
}

impl Info for Map {
    fn get_size(&self) -> Result<u64, Errno> {
        self.size.map_or_else(next::get_size, Ok)
    }
}

impl Features for Map {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(below)
    }
}

impl Reads for Map {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        for part in self.parts(offset, length.into())? {
            next::pread(part.below, part.length as u32, PAYLOAD, part.at as u32)?;
        }
        Ok(())
    }
}

impl Writes for Map {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let durable = Durable::new(flags)?;
        for part in self.parts(offset, length.into())? {
            next::pwrite(part.below, part.length as u32, PAYLOAD, part.at as u32, durable.flags)?;
        }
        durable.finish()
    }
}

impl Trims for Map {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let durable = Durable::new(flags)?;
        for part in self.parts(offset, length)? {
            next::trim(part.below, part.length, durable.flags)?;
        }
        durable.finish()
    }
}

impl Zeroes for Map {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let parts = self.parts(offset, length)?;
        // A later part could turn out to be slow after the first was done.
        if parts.len() > 1 && flags.contains(CommandFlags::FAST_ZERO) {
            return Err(Errno::Enotsup);
        }
        let durable = Durable::new(flags)?;
        for part in parts {
            next::zero(part.below, part.length, durable.flags)?;
        }
        durable.finish()
    }
}

impl Mapping for Map {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let parts = self.parts(offset, length)?;
        if let [part] = parts[..] {
            let limit = self.table.end_of_part(offset);
            next::extents_forward_until(part.below, part.length, limit, offset, flags)?;
            return Ok(Vec::new());
        }
        let mut list = Vec::new();
        for part in parts {
            let mut end = part.below;
            for extent in next::extents(part.below, part.length, flags)? {
                end = extent.offset + extent.length;
                list.push(Extent { offset: offset + part.at + (extent.offset - part.below), ..extent });
            }
            // The layer below described only a part of it. The client asks again for the rest.
            if end < part.below + part.length || flags.contains(CommandFlags::REQ_ONE) {
                break;
            }
        }
        Ok(list)
    }
}

impl Caching for Map {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        for part in self.parts(offset, length)? {
            next::cache(part.below, part.length)?;
        }
        Ok(())
    }
}

rbdkit_filter_sdk::export!(Map: info, features, reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn requests_follow_the_ranges() {
        let host = Host::new(Disk::pattern(4096)).serve::<Map>(&["map=0-511:512", "map=512-1023:0"]).unwrap();
        let client = host.connect().unwrap();
        let swapped = [&host.disk()[512..1024], &host.disk()[..512], &host.disk()[1024..]].concat();
        assert_eq!(client.pread(0, 4096).unwrap(), swapped);
        host.take_calls();
        client.pwrite(510, b"abcd", CommandFlags::FUA).unwrap();
        assert_eq!(host.take_calls(), ["pwrite 1022 2 fua", "pwrite 0 2 fua"]);
        assert_eq!((&host.disk()[1022..1024], &host.disk()[..2]), (&b"ab"[..], &b"cd"[..]));
        client.zero(0, 1024, NONE).unwrap();
        client.trim(600, 1000, NONE).unwrap();
        client.cache(2000, 10).unwrap();
        assert_eq!(host.take_calls(), ["zero 512 512", "zero 0 512", "trim 88 424", "trim 1024 576", "cache 2000 10"]);
    }

    #[test]
    fn extents_are_moved() {
        let mut bytes = vec![0; 16384];
        bytes[..4096].fill(1);
        let words = ["map=8192-12287:0", "map=0-4095:8192"];
        let host = Host::new(Disk::new(bytes)).serve::<Map>(&words).unwrap();
        let client = host.connect().unwrap();
        let hole = ExtentType::HOLE | ExtentType::ZERO;
        let extent = |offset, length, kind| Extent { offset, length, kind };
        let data = ExtentType::empty();
        let all = [(0, hole), (4096, hole), (8192, data), (12288, hole)].map(|(at, kind)| extent(at, 4096, kind));
        assert_eq!(client.extents(0, 16384, NONE).unwrap(), all);
        assert_eq!(client.extents(9000, 10, NONE).unwrap(), [extent(9000, 12288 - 9000, data)]);
    }

    #[test]
    fn a_larger_disk_fails_where_nothing_lies_below() {
        let words = ["map-size=8k", "map=4096-4607:0"];
        let host = Host::new(Disk::pattern(4096)).serve::<Map>(&words).unwrap();
        let client = host.connect().unwrap();
        assert_eq!(client.size(), 8192);
        assert_eq!(client.pread(4096, 512).unwrap(), host.disk()[..512]);
        assert_eq!(client.pread(4600, 100), Err(Errno::Eio));
        assert_eq!(client.pwrite(8000, b"x", NONE), Err(Errno::Eio));
        assert_eq!(
            host.take_log()[0],
            "error: a request at 4608 lies beyond the end of the layer below, which has 4096 bytes"
        );
    }
}
