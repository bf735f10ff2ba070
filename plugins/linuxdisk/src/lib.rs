//! The linuxdisk plugin: the files of a directory on a disk with an ext2, ext3 or ext4 file system.
//!
//! mke2fs makes the file system when the server starts. It is in a file without a name, and the
//! plugin puts a partition table around it.
#![forbid(unsafe_code)]

mod size;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rbdkit_assembled::{
    Assembled, AssembledDisk, Assembly, Backing, DiskFile, Guid, Regions, TooLarge, gpt, run_tool, temporary_file,
};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, PluginInfo, ThreadModel};

use size::Size;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "linuxdisk",
    longname: "rbdkit linuxdisk plugin",
    description: "The files of a directory on a read-only disk with an ext2, ext3 or ext4 file system",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<LinuxDisk>::default()),
};

/// Where the partition begins, in bytes: 1 MiB, where every tool puts it.
const PARTITION: u64 = 1 << 20;

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::path("dir").magic().placeholder("DIRECTORY").required().help("The directory with the files"),
        ParamSpec::bytes("label").placeholder("LABEL").help("The label of the file system"),
        ParamSpec::string("type")
            .placeholder("ext2|ext3|ext4")
            .default_value("ext2")
            .help("The kind of the file system"),
        ParamSpec::string("size")
            .placeholder("[+]SIZE")
            .help("The size of the file system, or with + the free space; by default what the files need"),
    ]
}

struct LinuxDisk {
    directory: Option<PathBuf>,
    label: Option<OsString>,
    kind: String,
    size: Size,
}

impl Default for LinuxDisk {
    fn default() -> LinuxDisk {
        LinuxDisk { directory: None, label: None, kind: "ext2".to_owned(), size: Size::Needed { more: 0 } }
    }
}

impl LinuxDisk {
    /// The bytes that the directory takes, as du counts them.
    fn disk_usage(&self) -> Result<u64, ConfigError> {
        let mut command = Command::new("du");
        command.args(["-c", "-k", "-s", "--"]).args(&self.directory);
        let output = run_tool("linuxdisk", "coreutils", "du", &mut command)?;
        size::total(&output).ok_or_else(|| ConfigError::new("linuxdisk: du printed no sum"))
    }

    /// Makes the file system in an empty file.
    fn make(&self, file: &std::fs::File, inodes: Option<u64>) -> Result<(), ConfigError> {
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", &self.kind]);
        if let Some(inodes) = inodes {
            command.arg("-N").arg(inodes.to_string());
        }
        if let Some(label) = &self.label {
            command.arg("-L").arg(label);
        }
        // The file has no name but this one.
        command.arg("-d").args(&self.directory).arg("/proc/self/fd/1");
        let file = file.try_clone().map_err(|error| ConfigError::new(format!("linuxdisk: {error}")))?;
        command.stdout(Stdio::from(file));
        run_tool("linuxdisk", "e2fsprogs", "mke2fs", &mut command).map(drop)
    }
}

impl Assembly for LinuxDisk {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "dir" if self.directory.is_some() => return Err(param.error("dir= can be given only once")),
            // A path that begins with a slash cannot be taken for an option.
            "dir" => self.directory = Some(param.path().canonicalize().map_err(|error| param.error(error))?),
            "label" => self.label = Some(param.value.to_owned()),
            "type" => match param.text()? {
                kind if kind.starts_with("ext") => self.kind = kind.to_owned(),
                _ => return Err(param.not_one_of(&["ext2", "ext3", "ext4"])),
            },
            "size" => self.size = Size::parse(param)?,
            _ => return Err(param.unknown("linuxdisk")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.directory {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("linuxdisk: a directory has to be given: [dir=]DIRECTORY")),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let wrong = |error: &dyn std::fmt::Display| ConfigError::new(format!("linuxdisk: {error}"));
        let needs = self.directory.as_deref().map(size::count).unwrap_or_default();
        let size = match self.size {
            Size::Exactly(size) => size::whole_sectors(size),
            Size::Needed { more } => size::with_overhead(self.disk_usage()?.max(needs.bytes), &self.kind, more),
        };
        let size = size.ok_or_else(|| wrong(&TooLarge))?;
        let file = temporary_file().map_err(|error| wrong(&error))?;
        file.set_len(size).map_err(|error| wrong(&error))?;
        self.make(&file, size::inodes(size, needs.inodes))?;
        let file = DiskFile::from_fd(file.into()).map_err(|error| wrong(&error))?;
        let unique = Guid::random().map_err(|error| wrong(&error))?;
        let regions = regions(file.size(), unique).map_err(|error| wrong(&error))?;
        Ok(AssembledDisk::new(regions, vec![Backing::Open(file)]).read_only())
    }
}

/// A disk with one partition, which is the file 0.
fn regions(size: u64, unique: Guid) -> Result<Regions, TooLarge> {
    let end = PARTITION.checked_add(size).and_then(|end| end.checked_next_multiple_of(rbdkit_assembled::SECTOR));
    let disk = end.and_then(|end| end.checked_add(gpt::last_length(1))).ok_or(TooLarge)?;
    let name = "Linux filesystem".to_owned();
    let partition = gpt::Partition { start: PARTITION, length: size, kind: Guid::LINUX, unique, name, bootable: true };
    let tables = gpt::tables(&[partition], disk);
    let mut regions = Regions::default();
    regions.push_data(tables.first.into())?;
    regions.pad_until(PARTITION)?;
    regions.push_file(0, size)?;
    regions.pad_to_multiple_of(rbdkit_assembled::SECTOR)?;
    regions.push_data(tables.last.into())?;
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_lies_between_the_tables() {
        let size = 3 << 20;
        let regions = regions(size, Guid([1; 16])).unwrap();
        assert_eq!(regions.size(), PARTITION + size + gpt::last_length(1));
        let piece = regions.pieces(PARTITION, size).next().unwrap();
        assert_eq!((piece.source, piece.within, piece.length), (&rbdkit_assembled::Source::File(0), 0, size));
    }

    #[test]
    fn a_disk_of_a_directory_has_a_file_system_with_its_files() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("hello"), "world").unwrap();
        let mut plugin = LinuxDisk::default();
        plugin.config(Param { key: "dir", value: directory.path().as_os_str() }).unwrap();
        plugin.config(Param { key: "label", value: "ROOT".as_ref() }).unwrap();
        assert_eq!(plugin.assemble().unwrap().size(), PARTITION + (1 << 20) + gpt::last_length(1));
    }

    #[test]
    fn mistakes_are_one_line() {
        let mut plugin = LinuxDisk::default();
        let error = plugin.complete().unwrap_err().to_string();
        assert_eq!(error, "linuxdisk: a directory has to be given: [dir=]DIRECTORY");
        let error = plugin.config(Param { key: "type", value: "xfs".as_ref() }).unwrap_err().to_string();
        assert_eq!(error, "type=xfs: is not one of ext2, ext3, ext4");
        let error = plugin.config(Param { key: "dir", value: "/no/such".as_ref() }).unwrap_err().to_string();
        assert!(error.starts_with("dir=/no/such: No such file"), "{error}");
    }
}
