//! The data plugin: a disk whose content is described on the command line.
//!
//! * [`syntax`] reads the data language, [`eval`] finds what it stands for, [`source`] reads the files and programs it names.
//! * [`image`] is what it stands for: never longer in memory than the description, so `(0 1)*1000000000` costs nothing.
//! * [`store`] is the disk: the image and what clients wrote since.
//!
//! No request ever waits, so every answer is ready at once.
#![deny(unsafe_code)]

mod base64;
mod eval;
mod image;
mod mlock;
mod source;
mod store;
mod syntax;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Error, Extents, Flags, Handle, Op, OpenArgs, Param,
    Plugin, PluginInfo, Reach, Result, Span, Support, ThreadModel, units,
};

use image::Image;
use store::Store;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "data",
    longname: "rbdkit data plugin",
    description: "A small disk whose content is given on the command line",
    help: "[data=]DATA                     The content, in the data language
base64=BASE64                   The content, in base64
raw=BYTES                       The content as it is
size=SIZE                       Size of the disk (by default the content's)
allocator=sparse                Keep only what was written (the default)
allocator=malloc[,mlock=BOOL]   Allocate all of it at the start
NAME=DATA                       What $NAME in DATA stands for",
    magic_config_key: Some("data"),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Data::default()),
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Allocator {
    #[default]
    Sparse,
    Malloc {
        mlock: bool,
    },
}

impl Allocator {
    fn parse(param: Param<'_>) -> Result<Allocator, ConfigError> {
        let text = param.text()?;
        let (kind, option) = match text.split_once(',') {
            Some((kind, option)) => (kind, Some(option)),
            None => (text, None),
        };
        match (kind, option) {
            ("sparse", None) => Ok(Allocator::Sparse),
            ("sparse", Some(_)) => Err(param.error("sparse takes no options")),
            ("malloc", None) => Ok(Allocator::Malloc { mlock: false }),
            ("malloc", Some("mlock")) => Ok(Allocator::Malloc { mlock: true }),
            ("malloc", Some(option)) => match option.strip_prefix("mlock=").map(units::parse_bool) {
                Some(Ok(mlock)) => Ok(Allocator::Malloc { mlock }),
                Some(Err(wrong)) => Err(param.error(format!("mlock {wrong}"))),
                None => Err(param.error("the only option of malloc is mlock=true or mlock=false")),
            },
            ("zstd", _) => Err(param.error("compressed pages are not supported, use allocator=sparse")),
            _ => Err(param.error("is not an allocator: sparse, malloc or malloc,mlock=true")),
        }
    }
}

enum Content {
    Data(OsString),
    Bytes(Vec<u8>),
}

#[derive(Default)]
struct Data {
    content: Option<Content>,
    size: Option<u64>,
    allocator: Allocator,
    /// What `$NAME` stands for, before the environment is asked.
    variables: HashMap<String, OsString>,
    disk: Option<Arc<Disk>>,
}

impl Data {
    fn set_content(&mut self, content: Content) -> Result<(), ConfigError> {
        if self.content.is_some() {
            return Err(ConfigError::new("data: exactly one of data=, base64= and raw= has to be given, and once"));
        }
        self.content = Some(content);
        Ok(())
    }

    fn image(&self) -> Result<Arc<Image>, ConfigError> {
        match &self.content {
            Some(Content::Bytes(bytes)) => Ok(Arc::new(Image::of_bytes(bytes))),
            Some(Content::Data(text)) => {
                let lookup = |name: &str| self.variables.get(name).cloned().or_else(|| std::env::var_os(name));
                let wrong = |wrong: syntax::Wrong| ConfigError::new(wrong.to_string());
                let list = syntax::parse(text, &lookup).map_err(wrong)?;
                eval::evaluate(&list, source::MAX_READ).map_err(wrong)
            }
            None => Err(ConfigError::new("data: one of data=, base64= and raw= has to be given")),
        }
    }
}

impl Plugin for Data {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "data" => self.set_content(Content::Data(param.value.to_os_string())),
            "raw" => self.set_content(Content::Bytes(param.value.as_bytes().to_vec())),
            "base64" => {
                let bytes = base64::decode(param.value.as_bytes()).map_err(|wrong| param.error(wrong))?;
                self.set_content(Content::Bytes(bytes))
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
            Some(Content::Bytes(_)) if !self.variables.is_empty() => {
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
        let store = match self.allocator {
            Allocator::Sparse => Store::sparse(&image),
            Allocator::Malloc { mlock } => Store::flat(&image, size, mlock)?,
        };
        self.disk = Some(Arc::new(Disk { size, store }));
        Ok(())
    }

    fn reach(&self) -> Option<Reach> {
        Some(Reach::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle = match &self.disk {
            Some(disk) => Ok(Arc::new(DataHandle(Arc::clone(disk))) as Arc<dyn Handle>),
            None => Err(Error::new(Errno::Enxio, "data: opened before it was made ready")),
        };
        Box::pin(async move { handle })
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        [("data_base64", "yes"), ("mlock", "yes"), ("zstd", "no")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into()
    }
}

struct Disk {
    size: u64,
    store: Store,
}

struct DataHandle(Arc<Disk>);

impl Handle for DataHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        // FUA, flush and cache have nothing to do: memory is as near and as durable as this disk gets.
        Op::Ready(Ok(Capabilities {
            write: true,
            flush: true,
            rotational: false,
            trim: true,
            fast_zero: true,
            extents: true,
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.0.store.pread(&mut buffer, span, offset);
        Op::Ready((buffer, Ok(())))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        let result = self.0.store.pwrite(buffer.data(span), offset);
        Op::Ready((buffer, result))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.0.store.zero(offset, length);
        Op::Ready(Ok(()))
    }

    fn zero(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.0.store.zero(offset, length);
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        Op::Ready(Ok(self.0.store.extents(offset, length, flags.req_one)))
    }
}

#[cfg(test)]
mod tests;
