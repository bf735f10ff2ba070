//! A plugin whose only disk is put together when the server starts.

use std::sync::Arc;

use rbdkit_plugin_api::{AccessRights, BoxFuture, ConfigError, Errno, Error, Handle, OpenArgs, Param, Plugin, Result};

use crate::disk::{AssembledDisk, AssembledHandle};

/// nbdkit's optional functions that the equivalents of a disk for reading have.
pub const READING_FUNCTIONS: [&str; 6] =
    ["get_ready", "can_multi_conn", "can_cache", "can_extents", "extents", "cache"];

/// The parameters of such a plugin, and the disk that follows from them.
pub trait Assembly: Default + Send + Sync + 'static {
    /// Takes a parameter.
    ///
    /// # Errors
    /// As [`Plugin::config`].
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError>;

    /// Checks that the required parameters were given.
    ///
    /// # Errors
    /// As [`Plugin::config_complete`].
    fn complete(&self) -> Result<(), ConfigError>;

    /// Puts the disk together. Called once, when the server starts. It may run programs.
    ///
    /// # Errors
    /// One line.
    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError>;

    /// What the plugin opens while it serves ([`Plugin::access_rights`]).
    fn access_rights(&self) -> AccessRights {
        AccessRights::default()
    }

    /// nbdkit's optional functions that the plugin has ([`Plugin::optional_functions`]).
    fn functions() -> Vec<&'static str> {
        READING_FUNCTIONS.to_vec()
    }

    /// Lines for [`Plugin::dump_plugin`].
    fn dump_plugin() -> Vec<(String, String)> {
        Vec::new()
    }
}

/// The plugin of an [`Assembly`].
#[derive(Default)]
pub struct Assembled<A> {
    assembly: A,
    disk: Option<Arc<AssembledDisk>>,
}

impl<A: Assembly> Plugin for Assembled<A> {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.assembly.config(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        self.assembly.complete()
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        self.disk = Some(Arc::new(self.assembly.assemble()?));
        Ok(())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.disk.clone().ok_or_else(|| Error::new(Errno::Enxio, "opened before it was made ready"));
        Box::pin(async move { Ok(Arc::new(AssembledHandle::new(disk?)) as Arc<dyn Handle>) })
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(self.assembly.access_rights())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        A::functions()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        A::dump_plugin()
    }
}
