//! The data plugin: a disk whose content is described on the command line.
//!
//! * [`scan`] and [`parse`] read the data language into a [`tree`], [`eval`] evaluates it,
//!   [`source`] reads the files and programs it names.
//! * [`image`] is the value of an expression. It takes memory in proportion to the text, so `(0
//!   1)*1000000000` costs nothing.
//! * [`sparse`] is the disk: the image and what clients wrote since.
//!
//! No request waits, so every answer is ready at once.
#![forbid(unsafe_code)]

mod error;
mod eval;
mod image;
mod parse;
mod scan;
mod source;
mod sparse;
mod tree;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rbdkit_plugin_api::base64;
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, Errno, Error, Handle, OpenArgs, OtherKeys, Param, Plugin,
    PluginInfo, Result, ThreadModel,
};
use rbdkit_ram_disk::{Allocator, Flat, Pages, RamDisk};

use error::DataError;
use image::Image;
use sparse::Sparse;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "data",
    longname: "rbdkit data plugin",
    description: "A small disk whose content is given on the command line",
    params,
    other_keys: Some(OtherKeys { form: "NAME=DATA", help: "What $NAME stands for in the data language" }),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Data::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::bytes("data").placeholder("DATA").magic().help("The content, in the data language"),
        ParamSpec::bytes("base64").placeholder("BASE64").help("The content, in base64"),
        ParamSpec::bytes("raw").placeholder("BYTES").help("The content, byte for byte"),
        ParamSpec::size("size").help("Size of the disk; without it, the content's"),
        Allocator::spec(),
    ]
}

enum GivenContent {
    Data(OsString),
    Bytes(Vec<u8>),
}

#[derive(Default)]
struct Data {
    content: Option<GivenContent>,
    size: Option<u64>,
    allocator: Allocator,
    /// The values of `$NAME`, which take precedence over the environment.
    variables: HashMap<String, OsString>,
    /// One handle for all connections.
    disk: Option<Arc<dyn Handle>>,
}

impl Data {
    fn set_content(&mut self, content: GivenContent) -> Result<(), ConfigError> {
        if self.content.is_some() {
            return Err(ConfigError::new("data: exactly one of data=, base64= and raw= has to be given, and once"));
        }
        self.content = Some(content);
        Ok(())
    }

    fn image(&self) -> Result<Arc<Image>, ConfigError> {
        match &self.content {
            Some(GivenContent::Bytes(bytes)) => Ok(Arc::new(Image::of_bytes(bytes))),
            Some(GivenContent::Data(text)) => {
                let lookup = |name: &str| self.variables.get(name).cloned().or_else(|| std::env::var_os(name));
                let wrong = |error: DataError| ConfigError::new(error.to_string());
                let list = parse::parse(text, &lookup).map_err(wrong)?;
                eval::evaluate(&list, source::MAX_READ).map_err(wrong)
            }
            None => Err(ConfigError::new("data: one of data=, base64= and raw= has to be given")),
        }
    }
}

impl Plugin for Data {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "data" => self.set_content(GivenContent::Data(param.value.to_os_string())),
            "raw" => self.set_content(GivenContent::Bytes(param.value.as_bytes().to_vec())),
            "base64" => {
                let bytes = base64::decode(param.value.as_bytes()).map_err(|wrong| param.error(wrong))?;
                self.set_content(GivenContent::Bytes(bytes))
            }
            "size" => {
                self.size = Some(param.size()?);
                Ok(())
            }
            "allocator" => {
                self.allocator = Allocator::parse(param)?;
                Ok(())
            }
            name => {
                // As in nbdkit the first one counts.
                self.variables.entry(name.to_string()).or_insert_with(|| param.value.to_os_string());
                Ok(())
            }
        }
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        match &self.content {
            None => Err(ConfigError::new("data: one of data=, base64= and raw= has to be given")),
            Some(GivenContent::Bytes(_)) if !self.variables.is_empty() => {
                let mut names: Vec<&str> = self.variables.keys().map(String::as_str).collect();
                names.sort_unstable();
                let names = names.join(", ");
                Err(ConfigError::new(format!("data: unknown parameter {names}: only data= has variables to set")))
            }
            Some(_) => Ok(()),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let image = self.image()?;
        let size = self.size.unwrap_or(image.len());
        self.disk = Some(match self.allocator {
            Allocator::Sparse => Arc::new(RamDisk::new(size, Sparse::new(&image, Pages::plain()))),
            Allocator::Zstd => Arc::new(RamDisk::new(size, Sparse::new(&image, Pages::compressed()))),
            Allocator::Malloc(residency) => {
                let flat = Flat::new(size, residency, |offset, bytes| image.read(offset, bytes));
                let flat = flat.map_err(|error| ConfigError::new(format!("data: {error}")))?;
                Arc::new(RamDisk::new(size, flat))
            }
        });
        Ok(())
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.disk.clone().ok_or_else(|| Error::new(Errno::Enxio, "data: opened before it was made ready"));
        Box::pin(async move { disk })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["unload", "dump_plugin", "get_ready", "block_size", "can_write", "can_flush"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        [("data_base64", "yes"), ("mlock", "yes"), ("zstd", "yes")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into()
    }
}

#[cfg(test)]
mod tests;
