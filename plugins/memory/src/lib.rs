//! The memory plugin: a disk in RAM, shared by all clients, gone when the server ends.
//!
//! No operation waits, so every answer is ready at once. There are two kinds of storage: [`sparse`]
//! (the default) holds only pages that were written, which may be compressed, and [`Flat`]
//! allocates the whole disk when the server starts.
#![forbid(unsafe_code)]

mod sparse;

use std::sync::Arc;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo,
    Result, ThreadModel,
};
use rbdkit_ram_disk::{Allocator, Flat, Pages, RamDisk};

use sparse::Sparse;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "memory",
    longname: "rbdkit memory plugin",
    description: "A disk in memory, shared by all clients and discarded at the end",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Memory::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").magic().required().help("Size of the disk"), Allocator::spec()]
}

#[derive(Default)]
struct Memory {
    size: Option<u64>,
    allocator: Allocator,
    /// One handle for all connections.
    disk: Option<Arc<dyn Handle>>,
}

impl Plugin for Memory {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            "allocator" => self.allocator = Allocator::parse(param)?,
            _ => return Err(param.unknown("memory")),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("memory: size=SIZE has to be given, for example size=1G or just 1G")),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let size = self.size.unwrap_or(0);
        self.disk = Some(match self.allocator {
            Allocator::Sparse => Arc::new(RamDisk::new(size, Sparse::new(size, Pages::plain()))),
            Allocator::Zstd => Arc::new(RamDisk::new(size, Sparse::new(size, Pages::compressed()))),
            Allocator::Malloc(residency) => {
                let flat = Flat::new(size, residency, |_, _| {});
                let flat = flat.map_err(|error| ConfigError::new(format!("memory: {error}")))?;
                Arc::new(RamDisk::new(size, flat))
            }
        });
        Ok(())
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.disk.clone().ok_or_else(|| Error::new(Errno::Enxio, "memory: opened before it was made ready"));
        Box::pin(async move { disk })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["unload", "dump_plugin", "get_ready", "block_size", "can_write", "can_flush"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        [("mlock", "yes"), ("zstd", "yes")].map(|(key, value)| (key.to_string(), value.to_string())).into()
    }
}

#[cfg(test)]
mod tests;
