//! The example4 plugin: a disk in memory, which all clients share.
//!
//! nbdkit has it as the example of a plugin in Perl. Here it is the example of a plugin that uses a
//! library of this tree for its disk ([`rbdkit_ram_disk`]).
#![forbid(unsafe_code)]

use std::sync::Arc;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo,
    Result, ThreadModel,
};
use rbdkit_ram_disk::{Flat, RamDisk, Residency};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "example4",
    longname: "rbdkit example plugin 4",
    description: "An example: a disk in memory, discarded at the end",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Example4::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").required().help("Size of the disk")]
}

#[derive(Default)]
struct Example4 {
    size: Option<u64>,
    /// One handle for all connections.
    disk: Option<Arc<dyn Handle>>,
}

impl Plugin for Example4 {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            _ => return Err(param.unknown("example4")),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("example4: size=SIZE has to be given")),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let size = self.size.unwrap_or(0);
        let flat = Flat::new(size, Residency::Swappable, |_, _| {});
        let flat = flat.map_err(|_| ConfigError::new(format!("example4: no memory for {size} bytes")))?;
        self.disk = Some(Arc::new(RamDisk::new(size, flat)));
        Ok(())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.disk.clone().ok_or_else(|| Error::new(Errno::Enxio, "opened before it was made ready"));
        Box::pin(async move { disk })
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        [&["dump_plugin", "get_ready", "block_size", "can_write", "can_flush"][..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        vec![("example4_extra".to_string(), "hello".to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_required() {
        let mut plugin = Example4::default();
        assert_eq!(plugin.config_complete().unwrap_err().to_string(), "example4: size=SIZE has to be given");
        plugin.config(Param { key: "size", value: "1M".as_ref() }).unwrap();
        plugin.config_complete().unwrap();
        plugin.get_ready().unwrap();
        assert!(plugin.disk.is_some());
    }
}
