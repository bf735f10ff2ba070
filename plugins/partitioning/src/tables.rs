//! The partition tables, and the disk that they make of the files.

use std::fmt;

use rbdkit_assembled::mbr::{self, Entry};
use rbdkit_assembled::{Guid, Regions, TooLarge, gpt};

use crate::layout::{Layout, PRIMARY, Table};
use crate::partition_file::PartitionFile;

/// Why there can be no such disk.
#[derive(Debug)]
pub(crate) enum TableError {
    TooLarge(TooLarge),
    /// A partition is beyond what 32 bits can say.
    TooLargeForMbr,
    Random(std::io::Error),
}

impl From<TooLarge> for TableError {
    fn from(error: TooLarge) -> TableError {
        TableError::TooLarge(error)
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::TooLarge(error) => write!(f, "{error}"),
            TableError::TooLargeForMbr => {
                f.write_str("partition-type=mbr holds about 2 TB, and the disk is larger: use partition-type=gpt")
            }
            TableError::Random(error) => write!(f, "there are no random numbers for identifiers: {error}"),
        }
    }
}

/// The regions of the disk.
///
/// # Errors
/// The disk is too large, or the system has no random numbers.
pub(crate) fn regions(layout: &Layout, files: &[PartitionFile]) -> Result<Regions, TableError> {
    let (first, records, last) = match layout.table {
        Table::Mbr => {
            let (first, records) = records(layout, files)?;
            (first.to_vec(), records, Vec::new())
        }
        Table::Gpt => {
            let gpt::Tables { first, last } = guid_tables(layout, files)?;
            (first, Vec::new(), last)
        }
    };
    let mut regions = Regions::default();
    regions.push_data(first.into())?;
    for (number, (file, start)) in files.iter().zip(&layout.starts).enumerate() {
        if let Some(record) = number.checked_sub(PRIMARY - 1).and_then(|logical| records.get(logical)) {
            regions.push_data(record.to_vec().into())?;
        }
        regions.pad_until(*start)?;
        regions.push_file(number, file.size)?;
        regions.pad_to_multiple_of(rbdkit_assembled::SECTOR)?;
    }
    regions.push_data(last.into())?;
    Ok(regions)
}

/// The master boot record, and the records of the logical partitions.
fn records(layout: &Layout, files: &[PartitionFile]) -> Result<(mbr::Record, Vec<mbr::Record>), TableError> {
    let entry = |start: u64, length: u64, kind| Entry::of_bytes(start, length, kind).ok_or(TableError::TooLargeForMbr);
    let of_file = |number: usize, from: u64| {
        entry(layout.starts[number] - from, files[number].size, files[number].settings.mbr_id)
    };
    let primary = if files.len() > PRIMARY { PRIMARY - 1 } else { files.len() };
    let mut entries = (0..primary).map(|number| of_file(number, 0)).collect::<Result<Vec<_>, _>>()?;
    if let Some(first) = entries.first_mut() {
        first.bootable = true;
    }
    let mut records = Vec::new();
    if let Some(&extended) = layout.records.first() {
        // It goes on to the end of the disk.
        entries.push(entry(extended, layout.size - extended, mbr::EXTENDED)?);
        for (logical, &record) in layout.records.iter().enumerate() {
            let mut own = vec![of_file(primary + logical, record)?];
            if let Some(&next) = layout.records.get(logical + 1) {
                let number = primary + logical + 1;
                let end = layout.starts[number] + files[number].size;
                own.push(entry(next - extended, end - next, mbr::EXTENDED)?);
            }
            records.push(mbr::record(&own));
        }
    }
    Ok((mbr::record(&entries), records))
}

fn guid_tables(layout: &Layout, files: &[PartitionFile]) -> Result<gpt::Tables, TableError> {
    let mut partitions = Vec::new();
    for (number, (file, &start)) in files.iter().zip(&layout.starts).enumerate() {
        partitions.push(gpt::Partition {
            start,
            length: file.size,
            kind: file.settings.type_guid,
            unique: Guid::random().map_err(TableError::Random)?,
            name: file.name.to_str().unwrap_or_default().to_owned(),
            bootable: number == 0,
        });
    }
    Ok(gpt::tables(&partitions, layout.size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition_file::Settings;

    fn files(sizes: &[u64]) -> Vec<PartitionFile> {
        let settings = Settings { alignment: 512, ..Settings::default() };
        let one = |(number, size): (usize, &u64)| PartitionFile {
            name: format!("{number}").into(),
            size: *size,
            settings: Settings { mbr_id: number as u8 + 1, ..settings },
        };
        sizes.iter().enumerate().map(one).collect()
    }

    /// First sector, count and kind of the entries of a record.
    fn entries(record: &mbr::Record) -> Vec<(u32, u32, u8)> {
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let entry = |at: usize| &record[0x1be + 16 * at..][..16];
        (0..4).map(entry).map(|entry| (number(&entry[8..12]), number(&entry[12..]), entry[4])).collect()
    }

    #[test]
    fn logical_partitions_are_chained() {
        let files = files(&[512, 512, 512, 1000, 512, 2048]);
        let layout = Layout::new(Table::Mbr, &files).unwrap();
        let (first, records) = records(&layout, &files).unwrap();
        // Sectors: 0 table, 1 to 3 partitions, 4 record, 5 and 6 partition, 7 record, 8 partition,
        // 9 record, 10 to 13 partition.
        assert_eq!(entries(&first), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 10, 0xf)]);
        assert_eq!(records.len(), 3);
        assert_eq!(entries(&records[0])[..2], [(1, 2, 4), (3, 2, 0xf)]);
        assert_eq!(entries(&records[1])[..2], [(1, 1, 5), (5, 5, 0xf)]);
        assert_eq!(entries(&records[2])[..2], [(1, 4, 6), (0, 0, 0)]);
        assert_eq!((first[0x1be], first[0x1ce]), (0x80, 0));
        assert_eq!(regions(&layout, &files).unwrap().size(), layout.size);
    }

    #[test]
    fn both_kinds_of_table_fill_the_disk_that_was_laid_out() {
        for (table, count) in [(Table::Mbr, 1), (Table::Mbr, 4), (Table::Mbr, 40), (Table::Gpt, 1), (Table::Gpt, 200)] {
            let files = files(&vec![700; count]);
            let layout = Layout::new(table, &files).unwrap();
            let regions = regions(&layout, &files).unwrap();
            assert_eq!(regions.size(), layout.size, "{table:?} {count}");
            for (number, start) in layout.starts.iter().enumerate() {
                let piece = regions.pieces(*start, 700).next().unwrap();
                assert_eq!((piece.source, piece.within), (&rbdkit_assembled::Source::File(number), 0));
            }
        }
    }

    #[test]
    fn a_disk_beyond_32_bits_is_no_panic() {
        let files = files(&[512 << 31, 512 << 31, 512]);
        let layout = Layout::new(Table::Mbr, &files).unwrap();
        assert!(matches!(records(&layout, &files), Err(TableError::TooLargeForMbr)));
    }
}
