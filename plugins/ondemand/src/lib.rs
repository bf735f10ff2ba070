//! The ondemand plugin: a disk for each export name, made when a client first asks for it.
//!
//! The disks are files in a directory. A client that opens one locks it.
//!
//! | module | subject |
//! |---|---|
//! | [`names`] | export names and names of files |
//! | [`exports`] | opens, makes and lists disks |
//! | [`file_lock`] | the lock on an open disk |

mod exports;
mod file_lock;
mod names;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_disk_command::{CommandConfig, OTHER_KEYS};
use rbdkit_launcher::{Open, Start};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, DISK_FUNCTIONS, Errno, Error, ExportEntry, Handle, OpenArgs, Param,
    Plugin, PluginInfo, Result, ThreadModel, run_blocking,
};

use exports::{Exports, WhenLocked};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: exports::PLUGIN,
    longname: "rbdkit ondemand plugin",
    description: "A file system for each export name, made when a client first asks for it",
    params,
    other_keys: Some(OTHER_KEYS),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(OnDemand::default()),
};

/// Starts commands in the helper process of a confined server.
pub const START: Start = exports::start;

/// The function with which a helper process opens disks for a confined server, and its name.
pub const OPEN: (&str, Open) = (INFO.name, exports::open_disk);

fn params() -> Vec<ParamSpec> {
    let own = [
        ParamSpec::path("dir").placeholder("DIRECTORY").required().help("The directory of the disks"),
        ParamSpec::bool("wait")
            .default_value("false")
            .help("Whether a client waits while another one has the disk open"),
    ];
    CommandConfig::specs().into_iter().chain(own).collect()
}

#[derive(Default)]
struct OnDemand {
    config: CommandConfig,
    directory: Option<PathBuf>,
    when_locked: WhenLocked,
    exports: Option<Arc<Exports>>,
}

impl OnDemand {
    fn exports(&self) -> Result<Arc<Exports>> {
        let unready = || Error::new(Errno::Enxio, "ondemand: used before it was made ready");
        self.exports.clone().ok_or_else(unready)
    }
}

impl Plugin for OnDemand {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            // The server changes its directory when it goes into the background.
            "dir" => self.directory = Some(param.path().canonicalize().map_err(|error| param.error(error))?),
            "wait" => self.when_locked = if param.bool()? { WhenLocked::Wait } else { WhenLocked::Refuse },
            _ => self.config.set(param)?,
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        self.config.check("ondemand")?;
        match self.directory {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("ondemand: dir=DIRECTORY has to be given: the disks are files in it")),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let directory = self.directory.clone().unwrap_or_default();
        let mut words: Vec<OsString> = vec![directory.clone().into()];
        words.extend(self.config.words());
        let exports = Exports::new(&directory, words, self.when_locked)
            .map_err(|error| ConfigError::new(format!("dir={}: {error}", directory.display())))?;
        self.exports = Some(Arc::new(exports));
        Ok(())
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        Box::pin(async {
            let exports = self.exports()?;
            run_blocking(move || exports.list().map(Some)).await
        })
    }

    fn default_export(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<String>> {
        Box::pin(async { Ok(names::DEFAULT.to_owned()) })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move { self.exports()?.open(&args.exportname, args.readonly).await })
    }

    fn before_confinement(&self) -> io::Result<()> {
        self.exports.as_ref().map_or(Ok(()), |exports| exports.move_out())
    }

    /// Lists are read from the directory. Disks are opened by the helper.
    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights { read: self.directory.iter().cloned().collect(), ..AccessRights::default() })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["unload", "get_ready", "list_exports", "default_export", "close", "can_write", "can_flush"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }
}
