//! The object plugin: serves a disk that lies in an object store.
//!
//! The disk is one object, which is read, or many objects of one size, which are read and written.
//! The protocols, signatures and credentials of the services are object_store's; the connections,
//! the attempts and the conditions are this crate's.
//!
//! | module | subject |
//! |---|---|
//! | [`config`], [`access`] | the parameters, and what requests open |
//! | [`handle`] | what a client sees |
//! | [`single`] | a disk that is one object |
//! | [`blocks`], [`mod@write`], [`erase`], [`pieces`], [`locks`] | a disk of many objects |
//! | [`generation`], [`tags`] | who may write, and what is known of the objects |
//! | [`store`] | requests, which are tried again |
//! | [`http`] | the HTTP client below object_store |

#![forbid(unsafe_code)]

mod access;
mod blocks;
mod config;
mod erase;
mod generation;
mod handle;
mod http;
mod locks;
mod pieces;
mod single;
mod store;
mod tags;
mod write;

use std::sync::Arc;

use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo,
    Result, StopScope, ThreadModel,
};

use crate::http::Connector;
use blocks::Blocks;
use config::{Config, Layout, Settings};
use handle::{BlocksHandle, SingleHandle};
use single::Single;
use store::backend::Configured;
use store::{FIRST_WAIT, Patience, Store};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "object",
    longname: "rbdkit object plugin",
    description: "Serves a disk in an object store: S3, Google Cloud Storage, Azure Blob",
    params: config::params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(ObjectPlugin::default()),
};

#[derive(Default)]
struct ObjectPlugin {
    config: Config,
    opened: Option<Opened>,
}

/// What all connections share.
struct Opened {
    settings: Arc<Settings>,
    store: Arc<Store>,
    /// For a disk of many objects.
    blocks: Option<Arc<Blocks>>,
}

impl Plugin for ObjectPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        let settings = Arc::new(self.config.settings()?);
        let connector = Connector::new(settings.http.clone()).map_err(ConfigError::new)?;
        let maker = Configured { settings: Arc::clone(&settings), connector };
        let patience = Patience { first: FIRST_WAIT, all: settings.retry_time };
        let store = Arc::new(Store::new(Box::new(maker), patience).map_err(ConfigError::new)?);
        let blocks = match settings.layout {
            Layout::One => None,
            Layout::Many { size, object_size } => {
                let key = settings.key.clone();
                Some(Arc::new(Blocks::new(Arc::clone(&store), settings.shown(), key, size, object_size)))
            }
        };
        self.opened = Some(Opened { settings, store, blocks });
        Ok(())
    }

    fn access_rights(&self) -> Option<AccessRights> {
        self.opened.as_ref().map(|opened| access::access_rights(&opened.settings))
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let Some(opened) = &self.opened else {
                return Err(Error::new(Errno::Enxio, "object: used before it was configured"));
            };
            match &opened.blocks {
                Some(blocks) => {
                    blocks.check().await?;
                    let blocks = Arc::clone(blocks);
                    Ok(Arc::new(BlocksHandle { blocks, readonly: args.readonly }) as Arc<dyn Handle>)
                }
                None => {
                    let settings = &opened.settings;
                    let store = Arc::clone(&opened.store);
                    let single = Single::open(store, settings.key.clone(), settings.shown()).await?;
                    Ok(Arc::new(SingleHandle(Arc::new(single))) as Arc<dyn Handle>)
                }
            }
        })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["close", "block_size", "can_write", "can_flush", "is_rotational"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn stop(&self, scope: StopScope) {
        if let Some(opened) = &self.opened {
            opened.store.stop(scope);
        }
    }
}

#[cfg(test)]
mod tests;
