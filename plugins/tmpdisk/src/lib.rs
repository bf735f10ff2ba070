//! The tmpdisk plugin: a fresh disk for each connection, which goes with it.
//!
//! A command makes the disk when a client connects, by default mkfs. It runs in the helper process
//! of a launcher ([`rbdkit_disk_command`]).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::sync::{Arc, OnceLock};

use rbdkit_assembled::{AssembledDisk, AssembledHandle, DiskFile, Durability};
use rbdkit_disk_command::{CommandConfig, Created, OTHER_KEYS, begin, create};
use rbdkit_launcher::{Launcher, Order, Start, Started};
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, DiskId, Errno, Error, Handle, OpenArgs, Param, Plugin,
    PluginInfo, Result, ThreadModel, run_abandonable, temporary,
};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "tmpdisk",
    longname: "rbdkit tmpdisk plugin",
    description: "A fresh file system for each connection, discarded at its end",
    params: CommandConfig::specs,
    other_keys: Some(OTHER_KEYS),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Tmpdisk::default()),
};

/// Starts commands in the helper process of a confined server.
pub const START: Start = start;

#[derive(Default)]
struct Tmpdisk {
    config: CommandConfig,
    launcher: OnceLock<Arc<Launcher>>,
}

fn start(words: &[OsString], _: &Order) -> io::Result<Started> {
    begin(words, &temporary::large_directory()?, "disk".as_ref(), Created::Unnamed)
}

impl Plugin for Tmpdisk {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        self.config.check("tmpdisk")
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        temporary::large_directory().map_err(|error| ConfigError::new(format!("tmpdisk: {error}")))?;
        let _ = self.launcher.set(Arc::new(Launcher::new(INFO.name, START, self.config.words())));
        Ok(())
    }

    fn before_confinement(&self) -> io::Result<()> {
        self.launcher.get().map_or(Ok(()), |launcher| launcher.move_out().map(drop))
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["load", "unload", "close", "can_write", "can_flush"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let unready = || Error::new(Errno::Enxio, "tmpdisk: opened before it was made ready");
            let launcher = Arc::clone(self.launcher.get().ok_or_else(unready)?);
            // Each connection has a disk of its own, also for the filters above.
            let id = DiskId::named(&format!("client {}", args.client.id));
            run_abandonable(move |abandoned| {
                let disk = create("tmpdisk", &launcher, &Order::default(), abandoned)?;
                let disk = AssembledDisk::of_file(DiskFile::from_fd(disk)?)?.alone(Durability::Discarded);
                Ok(Arc::new(AssembledHandle::to(disk, id)) as Arc<dyn Handle>)
            })
            .await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_required_and_the_disks_name_is_the_plugins() {
        let mut plugin = Tmpdisk::default();
        let error = plugin.config_complete().unwrap_err().to_string();
        assert_eq!(error, "tmpdisk: size=SIZE has to be given, for example 1G");
        assert!(plugin.config(Param { key: "disk", value: "x".as_ref() }).is_err());
        plugin.config(Param { key: "size", value: "1M".as_ref() }).unwrap();
        plugin.config(Param { key: "os", value: "debian".as_ref() }).unwrap();
        plugin.config_complete().unwrap();
        assert_eq!(plugin.config.words(), ["1048576", "", "os", "debian"]);
    }
}
