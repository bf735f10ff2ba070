//! The memory plugin: a disk in RAM, shared by all clients, gone when the server ends.
//!
//! No operation ever waits, so every answer is ready at once. Two kinds of storage: [`sparse`] (the default) holds only pages that were
//! written, [`flat`] allocates everything when the server starts.
#![deny(unsafe_code)]

mod flat;
mod mlock;
mod sparse;

use std::convert::Infallible;
use std::sync::Arc;

use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Error, Extents, Flags, Handle, Op, OpenArgs, Param,
    Plugin, PluginInfo, Reach, Result, Span, Support, ThreadModel, units,
};

use flat::Flat;
use sparse::Sparse;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "memory",
    longname: "rbdkit memory plugin",
    description: "A disk in memory, shared by all clients and discarded at the end",
    help: "[size=]SIZE                     (required) Size of the disk
allocator=sparse                Keep only what was written (the default)
allocator=malloc[,mlock=BOOL]   Allocate all of it at the start",
    magic_config_key: Some("size"),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Memory::default()),
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
        let (kind, options) = match text.split_once(',') {
            Some((kind, options)) => (kind, Some(options)),
            None => (text, None),
        };
        match (kind, options) {
            ("sparse", None) => Ok(Allocator::Sparse),
            ("sparse", Some(_)) => Err(param.error("sparse takes no options")),
            ("malloc", None) => Ok(Allocator::Malloc { mlock: false }),
            ("malloc", Some("mlock")) => Ok(Allocator::Malloc { mlock: true }),
            ("malloc", Some(options)) => match options.strip_prefix("mlock=") {
                Some(value) => {
                    let mlock = units::parse_bool(value).map_err(|wrong| param.error(format!("mlock {wrong}")))?;
                    Ok(Allocator::Malloc { mlock })
                }
                None => Err(param.error("the only option of malloc is mlock=true or mlock=false")),
            },
            ("zstd", _) => Err(param.error("compressed pages are not supported, use allocator=sparse")),
            _ => Err(param.error("is not an allocator: sparse, malloc or malloc,mlock=true")),
        }
    }
}

#[derive(Default)]
struct Memory {
    size: Option<u64>,
    allocator: Allocator,
    store: Option<Arc<Store>>,
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
        let pages = match self.allocator {
            Allocator::Sparse => Pages::Sparse(Sparse::new(size)),
            Allocator::Malloc { mlock } => Pages::Flat(Flat::new(size, mlock)?),
        };
        self.store = Some(Arc::new(Store { size, pages }));
        Ok(())
    }

    fn reach(&self) -> Option<Reach> {
        Some(Reach::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle = match &self.store {
            Some(store) => Ok(Arc::new(MemoryHandle(Arc::clone(store))) as Arc<dyn Handle>),
            None => Err(Error::new(Errno::Enxio, "memory: opened before it was made ready")),
        };
        Box::pin(async move { handle })
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        [("mlock", "yes"), ("zstd", "no")].map(|(key, value)| (key.to_string(), value.to_string())).into()
    }
}

/// The disk.
struct Store {
    size: u64,
    pages: Pages,
}

enum Pages {
    Sparse(Sparse),
    Flat(Flat),
}

impl Store {
    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) {
        match &self.pages {
            Pages::Sparse(sparse) => {
                // Run by run, so that holes are known as such all the way to the reply.
                let mut done = 0;
                while done < span.len {
                    let at = offset + u64::from(done);
                    let (run, present) = sparse.run(at, u64::from(span.len - done));
                    let part = Span::new(span.at + done, run as u32);
                    if present {
                        fill(buffer, part, |bytes| sparse.read(bytes, at));
                    } else {
                        buffer.set_zero(part);
                    }
                    done += part.len;
                }
            }
            Pages::Flat(flat) => fill(buffer, span, |bytes| flat.read(bytes, offset)),
        }
    }

    fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match &self.pages {
            Pages::Sparse(sparse) => sparse.write(bytes, offset),
            Pages::Flat(flat) => {
                flat.write(bytes, offset);
                Ok(())
            }
        }
    }

    fn zero(&self, offset: u64, length: u64) {
        match &self.pages {
            Pages::Sparse(sparse) => sparse.zero(offset, length),
            Pages::Flat(flat) => flat.zero(offset, length),
        }
    }
}

fn fill(buffer: &mut Buffer, span: Span, write: impl FnOnce(&mut [u8])) {
    let Ok(()) = buffer.fill_with(span, |bytes| {
        write(bytes);
        Ok::<_, Infallible>(())
    });
}

struct MemoryHandle(Arc<Store>);

impl Handle for MemoryHandle {
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
        self.0.pread(&mut buffer, span, offset);
        Op::Ready((buffer, Ok(())))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        let result = self.0.pwrite(buffer.data(span), offset);
        Op::Ready((buffer, result))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.0.zero(offset, length);
        Op::Ready(Ok(()))
    }

    fn zero(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.0.zero(offset, length);
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        Op::Ready(Ok(match &self.0.pages {
            Pages::Sparse(sparse) => sparse.extents(offset, length, flags.req_one),
            Pages::Flat(flat) => flat.extents(offset, length),
        }))
    }
}

#[cfg(test)]
mod tests;
