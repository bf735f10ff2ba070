//! Where partitions and tables are on the disk.

use rbdkit_assembled::{SECTOR, TooLarge, gpt};

use crate::partition_file::PartitionFile;

/// The kind of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Mbr,
    Gpt,
}

/// The most partitions of an MBR without an extended one.
pub(crate) const PRIMARY: usize = 4;

/// Offsets on the disk, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) table: Table,
    /// Where each partition begins.
    pub(crate) starts: Vec<u64>,
    /// Where the record of each logical partition is: of the fourth partition and of those after
    /// it, if there are more than four in an MBR.
    pub(crate) records: Vec<u64>,
    /// The size of the disk.
    pub(crate) size: u64,
}

impl Layout {
    /// Places the partitions: each at its alignment, and rounded up to whole sectors.
    ///
    /// # Errors
    /// The disk would be too large.
    pub(crate) fn new(table: Table, files: &[PartitionFile]) -> Result<Layout, TooLarge> {
        let mut layout = Layout { table, starts: Vec::new(), records: Vec::new(), size: 0 };
        layout.size = match table {
            Table::Mbr => SECTOR,
            Table::Gpt => gpt::first_length(files.len()),
        };
        for (number, file) in files.iter().enumerate() {
            if table == Table::Mbr && files.len() > PRIMARY && number >= PRIMARY - 1 {
                layout.records.push(layout.size);
                layout.size = layout.size.checked_add(SECTOR).ok_or(TooLarge)?;
            }
            let start = layout.size.checked_next_multiple_of(file.settings.alignment).ok_or(TooLarge)?;
            let end = start.checked_add(file.size).and_then(|end| end.checked_next_multiple_of(SECTOR));
            layout.starts.push(start);
            layout.size = end.ok_or(TooLarge)?;
        }
        if table == Table::Gpt {
            layout.size = layout.size.checked_add(gpt::last_length(files.len())).ok_or(TooLarge)?;
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition_file::Settings;

    fn files(sizes: &[u64], alignment: u64) -> Vec<PartitionFile> {
        let settings = Settings { alignment, ..Settings::default() };
        sizes.iter().map(|size| PartitionFile { name: "x".into(), size: *size, settings }).collect()
    }

    #[test]
    fn partitions_are_aligned_and_rounded_up_to_sectors() {
        let layout = Layout::new(Table::Mbr, &files(&[1, 513, 4096], 4096)).unwrap();
        assert_eq!(layout.starts, [4096, 8192, 12288]);
        assert_eq!((layout.size, layout.records.len()), (16384, 0));
        let layout = Layout::new(Table::Gpt, &files(&[1], 512)).unwrap();
        assert_eq!((layout.starts, layout.size), (vec![34 * 512], (34 + 1 + 33) * 512));
    }

    #[test]
    fn each_logical_partition_has_a_record_before_it() {
        let layout = Layout::new(Table::Mbr, &files(&[512; 6], 512)).unwrap();
        assert_eq!(layout.starts, [512, 1024, 1536, 2560, 3584, 4608]);
        assert_eq!(layout.records, [2048, 3072, 4096]);
        assert!(Layout::new(Table::Mbr, &files(&[512; 4], 512)).unwrap().records.is_empty());
    }

    #[test]
    fn sizes_that_overflow_are_an_error() {
        for sizes in [&[u64::MAX][..], &[i64::MAX as u64, i64::MAX as u64, 4096]] {
            assert_eq!(Layout::new(Table::Gpt, &files(sizes, 1 << 20)), Err(TooLarge));
        }
    }
}
