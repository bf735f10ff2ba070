//! Disks that the operator gives to a filter, in the simulated host.

use rbdkit_filter_sdk::params::Disk as GivenDisk;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_sdk::testing::{Disk, Host};

params! {
    /// The filter's parameters.
    struct Given {
        /// The disk that is read where the one below has a hole.
        base: GivenDisk,
        /// More disks.
        part: Vec<GivenDisk>,
    }
}

/// Reads the disk below, and another one where that has holes.
struct Over {
    given: Given,
}

impl Filter for Over {
    type Params = Given;

    fn describe() -> Description {
        Description::new("over", "1", "over another disk")
    }

    fn configure(given: Given) -> Result<Self, String> {
        assert_eq!(given.base.size(), Err(Errno::Enxio), "a disk is for requests");
        Ok(Over { given })
    }
}

impl Reads for Over {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        for extent in next::extents(offset, length.into(), CommandFlags::empty())? {
            let (at, length) = ((extent.offset - offset) as u32, extent.length as u32);
            match extent.kind.contains(ExtentType::HOLE) {
                true => self.given.base.pread(extent.offset, length, PAYLOAD, at)?,
                false => next::pread(extent.offset, length, PAYLOAD, at)?,
            }
        }
        Ok(())
    }
}

impl Mapping for Over {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.given.base.extents(offset, length, flags)
    }
}

impl Caching for Over {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        for part in &self.given.part {
            part.cache(offset, length)?;
        }
        assert_eq!(disks::size("part", self.given.part.len() as u32), Err(Errno::Enoent));
        assert_eq!(disks::size("nothing", 0), Err(Errno::Enoent));
        assert_eq!(files::size("base", 0), Err(Errno::Einval));
        Ok(())
    }
}

mod over {
    use super::Over;
    rbdkit_filter_sdk::export!(Over: reads, mapping, caching);
}

fn host() -> Host {
    let mut below = vec![0; 8192];
    below[..4096].fill(b'n');
    Host::new(Disk::new(below)).with_disk("base.img", Disk::pattern(8000)).with_disk("more.img", Disk::zeroes(512))
}

#[test]
fn a_filter_reads_the_disk_that_its_parameter_names() {
    let served = host().serve::<Over>(&["base=base.img"]).unwrap();
    let client = served.connect().unwrap();
    served.take_calls();
    let mut expected = vec![b'n'; 96];
    expected.extend((4096..4200).map(|n: usize| (n * 7 + n / 251 + 1) as u8));
    assert_eq!(client.pread(4000, 200).unwrap(), expected);
    let calls = ["extents 4000 200", "pread 4000 96", "disk-open base.img", "disk-pread base.img 4096 104"];
    assert_eq!(served.take_calls(), calls);
    assert_eq!(client.pread(7990, 20), Err(Errno::Einval), "the other disk has 8000 bytes");
    assert_eq!(client.extents(100, 900, CommandFlags::empty()).unwrap().len(), 1);
}

#[test]
fn a_disk_that_cannot_be_opened_is_tried_again() {
    let served = host().serve::<Over>(&["base=base.img"]).unwrap();
    let client = served.connect().unwrap();
    served.fail_next("disk-open", Errno::Enoent);
    served.fail_next("disk-pread", Errno::Eio);
    assert_eq!(client.pread(5000, 8), Err(Errno::Enoent));
    assert_eq!(client.pread(5000, 8), Err(Errno::Eio));
    assert!(client.pread(5000, 8).is_ok());
}

#[test]
fn a_repeated_parameter_names_disks_by_their_order_and_one_disk_may_be_named_twice() {
    let words = ["base=base.img", "part=more.img", "part=base.img", "part=base.img"];
    let served = host().serve::<Over>(&words).unwrap();
    let client = served.connect().unwrap();
    served.take_calls();
    assert_eq!(client.cache(0, 512), Ok(()));
    let cached: Vec<String> = served.take_calls().into_iter().filter(|call| call.contains("cache")).collect();
    assert_eq!(cached, ["disk-cache more.img 0 512", "disk-cache base.img 0 512", "disk-cache base.img 0 512"]);
    assert_eq!(client.cache(512, 512), Err(Errno::Einval), "more.img has 512 bytes");
}

#[test]
fn a_disk_that_the_test_does_not_have_is_refused() {
    let error = host().serve::<Over>(&["base=other.img"]).err().unwrap();
    assert_eq!(error, "over: base=other.img: there is no such disk (Host::with_disk makes one)");
}
