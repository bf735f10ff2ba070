//! The file plugin: serves a regular file or a block device, or each file in a directory as an
//! export of its own.
//!
//! The plugin is fast because it reads from the page cache in the task that parsed the request,
//! with `preadv2(RWF_NOWAIT)`, and answers at once. Small writes go into the page cache in the same
//! way. Only requests that have to wait for a disk go to a thread that may block ([`handle`]).
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | the parameters |
//! | [`source`] | where files come from: a path, a directory, a descriptor |
//! | [`links`] | symbolic links that lead out of the directory |
//! | [`served`] | which files are served |
//! | [`handle`] | which requests run at once and which on a thread |
//! | [`disk`] | the system calls, and what this file turned out not to support |
//! | [`device`] | what the kernel tells of a block device |
//! | [`evict`] | `reduce-memory-pressure` |
//! | [`error`] | errors of system calls and of inherited descriptors |
#![forbid(unsafe_code)]

mod config;
mod device;
mod disk;
mod error;
mod evict;
mod handle;
mod links;
mod served;
mod source;

use std::sync::Arc;

use rbdkit_launcher::Open;
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, DISK_FUNCTIONS, Errno, Error, ExportEntry, Handle, OpenArgs, Param,
    Plugin, PluginInfo, Result, ThreadModel, run_blocking,
};

use config::Config;
use handle::FileHandle;
use source::Source;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "file",
    longname: "rbdkit file plugin",
    description: "Serves files and block devices",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(File::default()),
};

/// The function with which a helper process opens files for a confined server, and its name.
pub const OPEN: (&str, Open) = source::OPEN;

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::path("file").magic().help("The file or block device to serve"),
        ParamSpec::path("dir")
            .alias("directory")
            .placeholder("DIRECTORY")
            .help("Serve each file in this directory as an export"),
        ParamSpec::string("fd")
            .placeholder("NUMBER")
            .help("Serve the file or block device of this inherited descriptor"),
        ParamSpec::string("dirfd").placeholder("NUMBER").help("As dir, with an inherited descriptor of the directory"),
        ParamSpec::bool("reduce-memory-pressure")
            .default_value("false")
            .help("Drop what was read and written from the page cache"),
        ParamSpec::choice("cache", config::CACHE_MODES)
            .default_value("default")
            .help("none: the older name of reduce-memory-pressure=true"),
        ParamSpec::choice("fadvise", config::ACCESS_PATTERNS)
            .default_value("normal")
            .help("How clients will read, which tells the kernel how far to read ahead"),
        ParamSpec::hidden("rdelay"),
        ParamSpec::hidden("wdelay"),
    ]
}

#[derive(Default)]
struct File {
    config: Config,
    source: Option<Arc<Source>>,
}

impl File {
    fn source(&self) -> Result<Arc<Source>> {
        match &self.source {
            Some(source) => Ok(Arc::clone(source)),
            None => Err(Error::new(Errno::Enxio, "file: used before it was configured")),
        }
    }
}

impl Plugin for File {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        self.source = Some(Arc::new(Source::new(self.config.place()?)?));
        Ok(())
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        Box::pin(async {
            let source = self.source()?;
            run_blocking(move || source.list()).await
        })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let source = self.source()?;
            let access = self.config.access();
            run_blocking(move || {
                let opened = source.open(&args.exportname, args.readonly)?;
                Ok(Arc::new(FileHandle::new(opened, access)?) as Arc<dyn Handle>)
            })
            .await
        })
    }

    fn before_confinement(&self) -> std::io::Result<()> {
        self.source.as_ref().map_or(Ok(()), |source| source.before_confinement())
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(self.config.access_rights())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own =
            ["unload", "dump_plugin", "list_exports", "close", "block_size", "can_write", "can_flush", "is_rotational"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        // The kernel zeroes and punches holes through fallocate(2), also in block devices.
        ["file_blksszget", "file_blkzeroout", "file_extents", "file_falloc_fl_punch_hole", "file_falloc_fl_zero_range"]
            .map(|key| (key.to_string(), "yes".to_string()))
            .into()
    }
}

#[cfg(test)]
mod tests;
