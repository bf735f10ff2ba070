//! Serves the disk in a DMG image of macOS, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::dmg::Dmg;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

/// The filter.
#[derive(Default)]
pub struct DmgFilter {
    images: Images<Dmg>,
}

impl Filter for DmgFilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("dmg", env!("CARGO_PKG_VERSION"), "serves the disk in a DMG image of macOS")
            .help("The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(DmgFilter::default())
    }
}

impl Wishes for DmgFilter {
    fn limits() -> Vec<Wish> {
        // Four images, each with 12 MiB of chunks and 8 MiB that are decompressed, and one more
        // that is being opened.
        vec![Wish::Memory(128 << 20)]
    }
}

impl Format for DmgFilter {
    type Image = Dmg;

    fn open_image(&self) -> Result<Dmg, Error> {
        Dmg::open(Rc::new(Next::new()?))
    }

    fn images(&self) -> &Images<Dmg> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(DmgFilter, wishes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::dmg::{DmgLayout, RAW, ZLIB, made};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn chunks_are_read_and_holes_are_told() {
        let mut content = vec![9; 192 * 512];
        content[64 * 512..128 * 512].fill(0);
        for (kind, calls) in [(RAW, vec!["pread 500 24"]), (ZLIB, vec![])] {
            let image = made(&content, &DmgLayout { tables: 1, ..DmgLayout::new(&[kind]) });
            let served = Host::new(Disk::new(image)).serve::<DmgFilter>(&[]).unwrap();
            let client = served.connect().unwrap();
            assert_eq!(client.pread(64 * 512 - 100, 200).unwrap(), [vec![9; 100], vec![0; 100]].concat());
            let extents = client.extents(0, 192 * 512, CommandFlags::empty()).unwrap();
            assert_eq!(extents.iter().map(|extent| extent.length).collect::<Vec<_>>(), [64 * 512; 3]);
            served.take_calls();
            assert_eq!(client.pread(500, 24).unwrap(), [9; 24]);
            assert_eq!(served.take_calls(), calls, "raw data does not enter the filter, and unpacked data is kept");
        }
    }
}
