//! Takes the extents of the disk from a file.

mod list;

use list::Reader;
use rbdkit_filter_sdk::params::ReadFile;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::lines::ListFile;

/// The most extents of one answer. A client asks again for the rest.
const MAX_ANSWER: usize = 4096;

params! {
    /// The parameters.
    pub struct Settings {
        /// The file with the extents: a line OFFSET LENGTH [TYPE] for each.
        extentlist: ReadFile,
    }
}

/// The filter.
pub struct Extentlist {
    file: ListFile<Reader>,
}

impl Filter for Extentlist {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("extentlist", env!("CARGO_PKG_VERSION"), "takes the extents of the disk from a file")
            .help("Writes do not change the list: use it for disks that are only read.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Extentlist { file: ListFile::new(settings.extentlist) })
    }
}

impl Lifecycle for Extentlist {
    fn get_ready(&self) -> Result<(), String> {
        self.file.list().map(drop)
    }
}

impl Features for Extentlist {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { extents: true, ..below })
    }
}

impl Mapping for Extentlist {
    fn extents(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let list = self.file.list().map_err(|message| {
            error!("the list has changed since the start: {message}");
            Errno::Eio
        })?;
        let extents = list::answer(list, offset, length, MAX_ANSWER).into_iter();
        let extent = |(offset, length, bits)| Extent { offset, length, kind: ExtentType::from_bits_truncate(bits) };
        Ok(extents.map(extent).collect())
    }
}

rbdkit_filter_sdk::export!(Extentlist: lifecycle, features, mapping);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn extents_come_from_the_file_over_a_layer_without_any() {
        let disk = Disk::zeroes(10000).can(|can| can.extents = false);
        let host = Host::new(disk).file("/list", b"0 4k\n").serve::<Extentlist>(&["extentlist=/list"]).unwrap();
        for _ in 0..2 {
            let client = host.connect().unwrap();
            let data = Extent { offset: 1, length: 4095, kind: ExtentType::empty() };
            let hole = Extent { offset: 4096, length: 5904, kind: ExtentType::HOLE | ExtentType::ZERO };
            assert_eq!(client.extents(1, 9999, NONE).unwrap(), [data, hole]);
            assert_eq!(client.extents(1, 9999, CommandFlags::REQ_ONE).unwrap()[0], data);
        }
    }

    #[test]
    fn a_wrong_file_ends_the_start() {
        let start = |text: &[u8]| Host::new(Disk::zeroes(10)).file("/l", text).serve::<Extentlist>(&["extentlist=/l"]);
        let wrong = start(b"0 1M\n512k 1M\n").err().unwrap();
        assert_eq!(wrong, "extentlist: line 2: overlaps the extent of line 1");
        assert_eq!(start(b"\xff\n").err().unwrap(), "extentlist: line 1: is not text");
        let long = [&b"0 1\n"[..], &[b'x'; 2000]].concat();
        assert_eq!(start(&long).err().unwrap(), "extentlist: line 2: is longer than 1024 bytes");
        assert!(Host::new(Disk::zeroes(10)).serve::<Extentlist>(&[]).is_err());
    }
}
