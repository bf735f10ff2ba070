//! The example2 plugin: a file, for reading.
//!
//! It is the example for a plugin with a parameter, with lines in `--dump-plugin`, and with a state
//! for each connection: the file is opened for each.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_assembled::{Access, AssembledDisk, AssembledHandle, DiskFile};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DiskId, Handle, OpenArgs, Param, Plugin, PluginInfo, Result, ThreadModel,
    run_blocking,
};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "example2",
    longname: "rbdkit example plugin 2",
    description: "An example: a read-only file",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Example2::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::path("file").required().help("The file to serve")]
}

#[derive(Default)]
struct Example2 {
    file: Option<PathBuf>,
}

impl Plugin for Example2 {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            // The server changes its directory when it goes into the background.
            "file" => self.file = Some(param.path().canonicalize().map_err(|error| param.error(error))?),
            _ => return Err(param.unknown("example2")),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        match self.file {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("example2: file=FILENAME has to be given")),
        }
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let path = self.file.clone().unwrap_or_default();
        Box::pin(async move {
            run_blocking(move || {
                let disk = AssembledDisk::of_file(DiskFile::open(&path, Access::Read)?)?.read_only();
                Ok(Arc::new(AssembledHandle::to(disk, DiskId::DEFAULT)) as Arc<dyn Handle>)
            })
            .await
        })
    }

    /// The file is opened again for each connection.
    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights { read: self.file.iter().cloned().collect(), ..AccessRights::default() })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        vec!["unload", "dump_plugin", "close", "can_multi_conn", "can_cache", "can_extents", "extents", "cache"]
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        vec![("example2_extra".to_string(), "hello".to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_required_and_has_to_exist() {
        let mut plugin = Example2::default();
        assert_eq!(plugin.config_complete().unwrap_err().to_string(), "example2: file=FILENAME has to be given");
        let error = plugin.config(Param { key: "file", value: "/no/such".as_ref() }).unwrap_err().to_string();
        assert!(error.starts_with("file=/no/such: No such file"), "{error}");
    }
}
