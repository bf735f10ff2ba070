//! Serves one partition of a disk, where it is.

use std::rc::Rc;

use rbdkit_filter_formats::guid::Guid;
use rbdkit_filter_formats::partition::{Choice as Wanted, Options, Trust, open_chosen};
use rbdkit_filter_sdk::image::{Error, Format, Images, InPlace, Next, Part};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The number of the partition, from 1. Logical partitions of an MBR count from 5.
        #[param(check = more_than_zero)]
        partition: Option<u32>,
        /// The label of the partition, in a GPT or an Apple partition map.
        partition_label: Option<String>,
        /// The GUID of the partition, in a GPT.
        partition_guid: Option<String>,
        /// The type of the partition: a GUID, efi, linux, swap, lvm, raid or windows in a GPT, two
        /// hexadecimal digits in an MBR, a name in an Apple partition map.
        partition_type: Option<String>,
        /// The bytes of a sector, 512 or 4096. By default it is the smallest block of the layer
        /// below if that is one of the two, and otherwise 512.
        #[param(check = is_a_sector)]
        partition_sectorsize: Option<Size>,
        /// Which table of a GPT counts if the two disagree.
        partition_gpt: Table = Table::Agree,
    }
}

fn more_than_zero(number: &u32) -> Result<(), String> {
    if *number > 0 { Ok(()) } else { Err("partitions count from 1".into()) }
}

fn is_a_sector(size: &Size) -> Result<(), String> {
    if matches!(size.0, 512 | 4096) { Ok(()) } else { Err("must be 512 or 4096".into()) }
}

/// Which table of a GPT counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// They have to agree, or one is damaged.
    Agree,
    /// The first.
    Primary,
    /// The one at the end of the disk.
    Backup,
}

impl Choice for Table {
    const CHOICES: &'static [(&'static str, Table)] =
        &[("agree", Table::Agree), ("primary", Table::Primary), ("backup", Table::Backup)];
}

/// The filter.
pub struct Partition {
    wanted: Wanted,
    sector: Option<u32>,
    trust: Trust,
    images: Images<Part>,
}

impl Filter for Partition {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("partition", env!("CARGO_PKG_VERSION"), "serves a partition of a disk")
            .help("One of partition, partition-label, partition-guid and partition-type is needed.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let mut wanted = Vec::new();
        wanted.extend(settings.partition.map(Wanted::Number));
        wanted.extend(settings.partition_label.map(Wanted::Label));
        if let Some(text) = settings.partition_guid {
            let guid = Guid::parse(&text).ok_or_else(|| {
                format!("partition-guid={text}: is not a GUID, such as 0fc63daf-8483-4772-8e79-3d69d8477de4")
            })?;
            wanted.push(Wanted::Guid(guid));
        }
        if let Some(text) = settings.partition_type {
            let kind = Wanted::parse_type(&text).map_err(|line| format!("partition-type={text}: {line}"))?;
            wanted.push(Wanted::Type(kind));
        }
        let names = "partition, partition-label, partition-guid, partition-type";
        if wanted.len() > 1 {
            return Err(format!("only one of these parameters can choose a partition: {names}"));
        }
        let wanted =
            wanted.pop().ok_or_else(|| format!("one of these parameters has to choose a partition: {names}"))?;
        let trust = match settings.partition_gpt {
            Table::Agree => Trust::Agree,
            Table::Primary => Trust::Primary,
            Table::Backup => Trust::Backup,
        };
        let sector = settings.partition_sectorsize.map(|size| size.0 as u32);
        Ok(Partition { wanted, sector, trust, images: Images::default() })
    }
}

impl Format for Partition {
    type Image = Part;

    fn open_image(&self) -> Result<Part, Error> {
        let smallest = next::block_size().map_or(512, |sizes| sizes.minimum);
        let sector = self.sector.unwrap_or(if smallest == 4096 { 4096 } else { 512 });
        let options = Options { sector: Some(sector), trust: self.trust };
        open_chosen(Rc::new(Next::new()?), options, &self.wanted)
    }

    fn images(&self) -> &Images<Part> {
        &self.images
    }
}

impl InPlace for Partition {
    fn start(image: &Part) -> Option<u64> {
        Some(image.start())
    }
}

rbdkit_filter_sdk::export_image_in_place!(Partition);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    /// A disk of 4 MiB with one partition of 64 sectors in sector 8.
    fn disk(sector: u32) -> Vec<u8> {
        let mut disk: Vec<u8> = (0..4u32 << 20).map(|at| (at / 512) as u8).collect();
        disk[446..510].fill(0);
        disk[450] = 0x83;
        disk[454] = 8;
        disk[458] = 64;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(disk.len() as u32 > 72 * sector);
        disk
    }

    #[test]
    fn a_partition_is_read_and_written_where_it_is() {
        let host = Host::new(Disk::new(disk(512))).serve::<Partition>(&["partition=1"]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!(client.size(), 64 * 512);
        assert_eq!(client.pread(511, 2).unwrap(), [8, 9]);
        host.take_calls();
        client.pwrite(0, b"new", CommandFlags::FUA).unwrap();
        client.trim(512, 512, CommandFlags::empty()).unwrap();
        assert_eq!(host.take_calls(), ["pwrite 4096 3 fua", "trim 4608 512"]);
        assert_eq!(client.pwrite(64 * 512, b"x", CommandFlags::empty()), Err(Errno::Einval));
    }

    #[test]
    fn the_sector_is_the_smallest_block_below_or_what_the_operator_says() {
        let large = BlockSizes { minimum: 4096, preferred: 4096, maximum: 1 << 20 };
        let size = |disk: Disk, words: &[&str]| {
            Host::new(disk).serve::<Partition>(words).unwrap().connect().map(|client| client.size())
        };
        let with = |size: &str| ["partition=1".to_string(), format!("partition-sectorsize={size}")];
        assert_eq!(size(Disk::new(disk(4096)).block_sizes(large), &["partition=1"]), Ok(64 * 4096));
        let words = with("4k");
        assert_eq!(size(Disk::new(disk(4096)), &words.each_ref().map(String::as_str)), Ok(64 * 4096));
        let words = with("512");
        let words = words.each_ref().map(String::as_str);
        assert_eq!(size(Disk::new(disk(4096)).block_sizes(large), &words), Ok(64 * 512));
    }

    #[test]
    fn parameters_that_are_wrong_give_a_line() {
        let refused = |words: &[&str]| Host::new(Disk::zeroes(4096)).serve::<Partition>(words).err().unwrap();
        let names = "partition, partition-label, partition-guid, partition-type";
        assert_eq!(refused(&[]), format!("partition: one of these parameters has to choose a partition: {names}"));
        let two = refused(&["partition=1", "partition-label=a"]);
        assert_eq!(two, format!("partition: only one of these parameters can choose a partition: {names}"));
        assert_eq!(refused(&["partition=0"]), "partition: partition=0: partitions count from 1");
        let size = refused(&["partition=1", "partition-sectorsize=1k"]);
        assert!(size.ends_with("must be 512 or 4096"), "{size}");
        let guid = "partition: partition-guid=1: is not a GUID, such as 0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(refused(&["partition-guid=1"]), guid);
        assert!(
            refused(&["partition-type=xyz"]).starts_with("partition: partition-type=xyz: is not a type of a partition")
        );
    }

    #[test]
    fn a_disk_without_the_partition_fails_the_connection_with_a_line() {
        let host = Host::new(Disk::new(disk(512))).serve::<Partition>(&["partition=2"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        assert_eq!(host.take_log(), ["error: there is no partition with the number 2; there are 1"]);
    }
}
