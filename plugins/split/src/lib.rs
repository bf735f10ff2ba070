//! The split plugin: one disk out of several files, one behind the other.
#![forbid(unsafe_code)]

use rbdkit_assembled::{Access, Assembled, AssembledDisk, Assembly, Backing, DiskFile, Regions};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, DISK_FUNCTIONS, Param, PluginInfo, ThreadModel};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "split",
    longname: "rbdkit split plugin",
    description: "One disk out of several files, one behind the other",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Split>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::path("file").magic().required().repeat().help("The files, in the order of the disk")]
}

#[derive(Default)]
struct Split {
    files: Vec<DiskFile>,
}

impl Assembly for Split {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "file" => self.files.push(DiskFile::of_param(param, Access::WriteIfPermitted)?),
            _ => return Err(param.unknown("split")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.files.is_empty() {
            true => Err(ConfigError::new("split: at least one file has to be given: [file=]FILENAME")),
            false => Ok(()),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let mut regions = Regions::default();
        for (number, file) in self.files.iter().enumerate() {
            let pushed = regions.push_file(number, file.size());
            pushed.map_err(|error| ConfigError::new(format!("split: {error}")))?;
        }
        Ok(AssembledDisk::new(regions, self.files.drain(..).map(Backing::Open).collect()))
    }

    fn functions() -> Vec<&'static str> {
        [&["get_ready", "can_write", "can_flush"][..], &DISK_FUNCTIONS].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_one_another_and_empty_ones_take_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let mut split = Split::default();
        for (name, length) in [("a", 700), ("b", 0), ("c", 512)] {
            let path = directory.path().join(name);
            std::fs::write(&path, vec![1; length]).unwrap();
            split.config(Param { key: "file", value: path.as_os_str() }).unwrap();
        }
        split.complete().unwrap();
        assert_eq!(split.assemble().unwrap().size(), 1212);
    }

    #[test]
    fn mistakes_are_one_line() {
        let mut split = Split::default();
        let error = split.complete().unwrap_err().to_string();
        assert_eq!(error, "split: at least one file has to be given: [file=]FILENAME");
        let error = split.config(Param { key: "file", value: "/no/such".as_ref() }).unwrap_err().to_string();
        assert!(error.starts_with("file=/no/such: No such file or directory"), "{error}");
        let error = split.config(Param { key: "file", value: "/dev/null".as_ref() }).unwrap_err().to_string();
        assert_eq!(error, "file=/dev/null: it is neither a regular file nor a block device");
    }
}
