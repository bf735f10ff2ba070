//! The floppy plugin: the files of a directory on a disk with a FAT32 file system.
//!
//! The directory is read when the server starts. The tables of the file system are made in memory
//! then; the content of the files is read from them whenever a client reads it.
//!
//! | module | subject |
//! |---|---|
//! | [`tree`] | the files and directories |
//! | [`table`] | the entries of a directory on the disk |
//! | [`label`] | the label |
//! | [`names`] | short and long names |
//! | [`volume`] | where everything is on the disk, and the sectors that say so |
//! | [`time`] | dates and times |

mod label;
mod names;
mod table;
mod time;
mod tree;
mod volume;

use std::path::PathBuf;

use rbdkit_assembled::{Assembled, AssembledDisk, Assembly};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{AccessRights, ConfigError, Param, PluginInfo, ThreadModel};

use label::Label;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "floppy",
    longname: "rbdkit floppy plugin",
    description: "The files of a directory on a read-only disk with a FAT32 file system",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Floppy>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::path("dir").magic().placeholder("DIRECTORY").required().help("The directory with the files"),
        ParamSpec::string("label")
            .placeholder("LABEL")
            .default_value(label::DEFAULT_LABEL)
            .help("The label of the file system, up to 11 ASCII characters"),
        ParamSpec::size("size").help("The size of the disk; by default what the files need"),
    ]
}

#[derive(Default)]
struct Floppy {
    directory: Option<PathBuf>,
    label: Label,
    size: Option<u64>,
}

impl Assembly for Floppy {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "dir" if self.directory.is_some() => return Err(param.error("dir= can be given only once")),
            // The server changes its directory when it goes into the background.
            "dir" => self.directory = Some(param.path().canonicalize().map_err(|error| param.error(error))?),
            "label" => {
                let wrong = || param.error("is not a label: up to 11 ASCII characters");
                self.label = Label::new(param.text()?).ok_or_else(wrong)?;
            }
            "size" => self.size = Some(param.size()?).filter(|size| *size > 0),
            _ => return Err(param.unknown("floppy")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.directory {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("floppy: a directory has to be given: [dir=]DIRECTORY")),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let directory = self.directory.clone().unwrap_or_default();
        let tree = tree::read(&directory).map_err(ConfigError::new)?;
        volume::disk(&tree, self.label, self.size).map_err(|error| ConfigError::new(format!("floppy: {error}")))
    }

    fn access_rights(&self) -> AccessRights {
        AccessRights { read: self.directory.iter().cloned().collect(), ..AccessRights::default() }
    }
}
