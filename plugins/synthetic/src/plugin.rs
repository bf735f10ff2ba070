//! Parameters and life of a plugin whose disk is computed.

use std::sync::Arc;

use rbdkit_plugin_api::{AccessRights, BoxFuture, ConfigError, Errno, Error, Handle, OpenArgs, Param, Plugin, Result};

use crate::content::{Content, SyntheticDisk};

/// The parameters of such a plugin, and the disk that follows from them.
pub trait Plan: Default + Send + Sync + 'static {
    /// The disk.
    type Content: Content;

    /// nbdkit's optional functions that the plugin has ([`Plugin::optional_functions`]).
    const FUNCTIONS: &'static [&'static str];

    /// Takes a parameter.
    ///
    /// # Errors
    /// As [`Plugin::config`].
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError>;

    /// Makes the disk. Called once, when the server starts.
    ///
    /// # Errors
    /// One line: a parameter is missing, or there is no memory.
    fn content(&self) -> Result<Self::Content, ConfigError>;
}

/// The plugin of a [`Plan`].
#[derive(Default)]
pub struct Synthetic<P> {
    plan: P,
    /// One handle for all connections.
    disk: Option<Arc<dyn Handle>>,
}

impl<P: Plan> Plugin for Synthetic<P> {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.plan.config(param)
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        self.disk = Some(Arc::new(SyntheticDisk::new(self.plan.content()?)));
        Ok(())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        P::FUNCTIONS.to_vec()
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.disk.clone().ok_or_else(|| Error::new(Errno::Enxio, "opened before it was made ready"));
        Box::pin(async move { disk })
    }
}

/// The size that the plugin `name` cannot do without.
///
/// # Errors
/// One line: it was not given.
pub fn required_size(size: Option<u64>, name: &str) -> Result<u64, ConfigError> {
    size.ok_or_else(|| ConfigError::new(format!("{name}: size=SIZE has to be given, for example size=1G or just 1G")))
}
