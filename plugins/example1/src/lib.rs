//! The example1 plugin: the smallest plugin that serves something.
//!
//! Its disk of 100 MiB begins with a partition table that has one empty partition, and is zero
//! otherwise. It is the example for a plugin whose disk is put together ([`rbdkit_assembled`]).
#![forbid(unsafe_code)]

use rbdkit_assembled::mbr::{self, Entry};
use rbdkit_assembled::{Assembled, AssembledDisk, Assembly, Regions, TooLarge};
use rbdkit_plugin_api::{ConfigError, Param, PluginInfo, ThreadModel};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "example1",
    longname: "rbdkit example plugin 1",
    description: "An example: a read-only disk of 100 MiB with one empty partition",
    params: Vec::new,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Example1>::default()),
};

/// The size of the disk in bytes.
const SIZE: u64 = 100 << 20;

/// The partition: from sector 128 to the end of the disk but for 127 sectors, for Linux.
const PARTITION: Entry = Entry { first: 128, count: 204_545, kind: 0x83, bootable: false };

#[derive(Default)]
struct Example1;

impl Assembly for Example1 {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        Err(param.unknown("example1"))
    }

    fn complete(&self) -> Result<(), ConfigError> {
        Ok(())
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let regions = regions().map_err(|error| ConfigError::new(format!("example1: {error}")))?;
        Ok(AssembledDisk::new(regions, Vec::new()).read_only())
    }
}

fn regions() -> Result<Regions, TooLarge> {
    let mut regions = Regions::default();
    regions.push_data(mbr::record(&[PARTITION]).to_vec().into())?;
    regions.pad_until(SIZE)?;
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_100_mib_and_the_partition_lies_within() {
        assert_eq!(regions().unwrap().size(), SIZE);
        assert!(u64::from(PARTITION.first + PARTITION.count) * 512 <= SIZE);
    }
}
