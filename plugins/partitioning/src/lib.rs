//! The partitioning plugin: a disk with a partition table, whose partitions are files.
//!
//! | module | subject |
//! |---|---|
//! | [`partition_file`] | a file, and what holds for it |
//! | [`layout`] | where partitions and tables are on the disk |
//! | [`tables`] | the tables |
#![forbid(unsafe_code)]

mod layout;
mod partition_file;
mod tables;

use rbdkit_assembled::{Access, Assembled, AssembledDisk, Assembly, Backing, DiskFile, Guid, SECTOR};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, DISK_FUNCTIONS, Param, PluginInfo, ThreadModel, units};

use layout::{Layout, Table};
use partition_file::{DEFAULT_MBR_ID, MAX_ALIGNMENT, PartitionFile, Settings};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "partitioning",
    longname: "rbdkit partitioning plugin",
    description: "A disk with a partition table, whose partitions are files",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Partitioning>::default()),
};

/// The largest sum of the files' sizes for a table of the old kind, in bytes: 2^32 - 1 sectors less
/// what alignment may take. It is nbdkit's number.
const MAX_MBR_FILES: u64 = u32::MAX as u64 * SECTOR - 5 * MAX_ALIGNMENT;

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::path("file").magic().required().repeat().help("The files, each of them a partition"),
        ParamSpec::string("partition-type")
            .placeholder("mbr|gpt")
            .help("The kind of the table; by default mbr, and gpt for more than 4 files or 2 TB"),
        ParamSpec::size("alignment")
            .repeat()
            .default_value("1M")
            .help("Partitions of later files begin at a multiple of this, from 512 to 1M"),
        ParamSpec::string("mbr-id")
            .placeholder("0xN|default")
            .repeat()
            .default_value("default")
            .help("The type byte of later files in an MBR; the default is 0x83, Linux"),
        ParamSpec::string("type-guid")
            .placeholder("GUID|default")
            .repeat()
            .default_value("default")
            .help("The type of later files in a GPT; the default is that of a Linux file system"),
    ]
}

#[derive(Default)]
struct Partitioning {
    settings: Settings,
    table: Option<Table>,
    partitions: Vec<PartitionFile>,
    files: Vec<DiskFile>,
}

impl Partitioning {
    fn add(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        let file = DiskFile::of_param(param, Access::WriteIfPermitted)?;
        if file.size() == 0 {
            return Err(param.error("zero length partitions are not allowed"));
        }
        let (name, size) = (param.path().to_path_buf(), file.size());
        self.partitions.push(PartitionFile { name, size, settings: self.settings });
        self.files.push(file);
        Ok(())
    }

    /// The kind of table that was wanted, or the one that fits.
    fn table(&self) -> Result<Table, ConfigError> {
        let sum = self.partitions.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size));
        match self.table {
            Some(Table::Mbr) if sum > MAX_MBR_FILES => Err(ConfigError::new(format!(
                "partitioning: partition-type=mbr holds about 2 TB, and the files have {sum} bytes: \
                 use partition-type=gpt"
            ))),
            Some(table) => Ok(table),
            None if sum > MAX_MBR_FILES || self.partitions.len() > 4 => Ok(Table::Gpt),
            None => Ok(Table::Mbr),
        }
    }
}

impl Assembly for Partitioning {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        let is = |word: &str| param.value.eq_ignore_ascii_case(word);
        match param.key {
            "file" => self.add(param)?,
            "partition-type" if is("mbr") || is("dos") => self.table = Some(Table::Mbr),
            "partition-type" if is("gpt") => self.table = Some(Table::Gpt),
            "partition-type" => return Err(param.not_one_of(&["mbr", "gpt"])),
            "alignment" => {
                let alignment = param.size()?;
                if !(SECTOR..=MAX_ALIGNMENT).contains(&alignment) || !alignment.is_multiple_of(SECTOR) {
                    return Err(param.error("is not a multiple of 512 from 512 to 1M"));
                }
                self.settings.alignment = alignment;
            }
            "mbr-id" if is("default") => self.settings.mbr_id = DEFAULT_MBR_ID,
            "mbr-id" => {
                let number = units::parse_whole(param.text()?, u8::MAX.into());
                self.settings.mbr_id = number.map_err(|wrong| param.error(wrong + ", and not default"))? as u8;
            }
            "type-guid" if is("default") => self.settings.type_guid = Guid::LINUX,
            "type-guid" => {
                let example = "is neither default nor a GUID, for example 0FC63DAF-8483-4772-8E79-3D69D8477DE4";
                self.settings.type_guid = Guid::parse(param.text()?).ok_or_else(|| param.error(example))?;
            }
            _ => return Err(param.unknown("partitioning")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.partitions.is_empty() {
            true => Err(ConfigError::new("partitioning: at least one file has to be given: [file=]FILENAME")),
            false => self.table().map(drop),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let layout = Layout::new(self.table()?, &self.partitions).map_err(tables::TableError::from);
        let regions = layout.and_then(|layout| tables::regions(&layout, &self.partitions));
        let regions = regions.map_err(|error| ConfigError::new(format!("partitioning: {error}")))?;
        Ok(AssembledDisk::new(regions, self.files.drain(..).map(Backing::Open).collect()))
    }

    fn functions() -> Vec<&'static str> {
        [&["get_ready", "can_write", "can_flush"][..], &DISK_FUNCTIONS].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(key: &str, value: &str) -> String {
        Partitioning::default().config(Param { key, value: value.as_ref() }).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_one_line() {
        for value in ["511", "0", "2M", "1000"] {
            assert_eq!(
                wrong("alignment", value),
                format!("alignment={value}: is not a multiple of 512 from 512 to 1M")
            );
        }
        assert_eq!(wrong("mbr-id", "256"), "mbr-id=256: is not a whole number from 0 to 255, and not default");
        assert_eq!(
            wrong("type-guid", "1234"),
            "type-guid=1234: is neither default nor a GUID, for example 0FC63DAF-8483-4772-8E79-3D69D8477DE4"
        );
        assert_eq!(wrong("partition-type", "bsd"), "partition-type=bsd: is not one of mbr, gpt");
        let error = Partitioning::default().complete().unwrap_err().to_string();
        assert_eq!(error, "partitioning: at least one file has to be given: [file=]FILENAME");
    }

    #[test]
    fn an_empty_file_is_no_partition() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(wrong("file", path), format!("file={path}: zero length partitions are not allowed"));
    }

    #[test]
    fn settings_hold_for_the_files_after_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000).unwrap();
        let mut plugin = Partitioning::default();
        let path = file.path().to_str().unwrap();
        let params = [
            ("file", path),
            ("mbr-id", "0x82"),
            ("alignment", "512"),
            ("file", path),
            ("mbr-id", "DEFAULT"),
            ("type-guid", "{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}"),
            ("file", path),
        ];
        for (key, value) in params {
            plugin.config(Param { key, value: value.as_ref() }).unwrap();
        }
        let settings: Vec<_> = plugin.partitions.iter().map(|file| file.settings).collect();
        assert_eq!(settings.iter().map(|one| one.mbr_id).collect::<Vec<_>>(), [0x83, 0x82, 0x83]);
        assert_eq!(settings.iter().map(|one| one.alignment).collect::<Vec<_>>(), [1 << 20, 512, 512]);
        let types: Vec<_> = settings.iter().map(|one| one.type_guid == Guid::LINUX).collect();
        assert_eq!(types, [true, true, false]);
    }

    #[test]
    fn many_files_or_large_ones_get_a_table_of_the_new_kind() {
        let with = |sizes: &[u64], table| {
            let file = |size: &u64| PartitionFile { name: "x".into(), size: *size, settings: Settings::default() };
            let plugin = Partitioning { partitions: sizes.iter().map(file).collect(), table, ..Default::default() };
            plugin.table().map_err(|error| error.to_string())
        };
        assert_eq!(with(&[512; 4], None), Ok(Table::Mbr));
        assert_eq!(with(&[512; 5], None), Ok(Table::Gpt));
        assert_eq!(with(&[512; 5], Some(Table::Mbr)), Ok(Table::Mbr));
        assert_eq!(with(&[MAX_MBR_FILES], None), Ok(Table::Mbr));
        assert_eq!(with(&[MAX_MBR_FILES, 1], None), Ok(Table::Gpt));
        assert!(with(&[MAX_MBR_FILES, 1], Some(Table::Mbr)).unwrap_err().contains("use partition-type=gpt"));
        assert_eq!(with(&[u64::MAX, u64::MAX], None), Ok(Table::Gpt));
    }
}
