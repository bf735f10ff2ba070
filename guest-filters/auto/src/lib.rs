//! Finds out what an image is, and serves the disk in it.

use std::rc::Rc;
use std::time::Duration;

use rbdkit_filter_formats::auto::{self, Found, MAX_DEPTH, Wanted};
use rbdkit_filter_sdk::image::{Error, ExtentList, Format, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The formats from the outermost to the innermost, with commas (gzip,qcow2), or raw.
        /// Default: what the signatures say.
        format: Option<String>,
        /// How many formats within each other are opened, 1 to 8.
        auto_depth: u32 = 4,
        /// Serve a report of what the image is, in JSON, instead of the disk.
        auto_report: bool = false,
    }
}

/// The filter.
pub struct Auto {
    wanted: Wanted,
    report: bool,
    images: Images<Opened>,
}

/// What a connection reads.
pub struct Opened {
    source: Rc<dyn Source>,
    names: String,
}

impl Source for Opened {
    fn size(&self) -> u64 {
        self.source.size()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.source.read(offset, into)
    }
    fn read_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Error> {
        self.source.read_buffer(offset, length, buffer, at)
    }
    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.source.extents(list)
    }
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.source.cache(offset, length)
    }
    fn description(&self) -> Option<String> {
        Some(self.names.clone())
    }
}

/// Says once for each connection what was found, on the instance that prepares it.
fn tell(found: &Found) {
    match found.size {
        Some(size) => info!("the image is {}; the disk has {size} bytes", found.names()),
        None => info!("the image is {}", found.names()),
    }
    for (name, danger) in found.dangers() {
        warn!("{name}: {danger}");
    }
}

/// A slot of the connection, in which its first instance notes that it has told.
const TOLD: slots::Slot = slots::Slot { scope: Scope::Connection, index: 0 };

impl Filter for Auto {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("auto", env!("CARGO_PKG_VERSION"), "finds out what an image is and serves the disk in it")
            .help("It logs what it found, and what is dangerous in the image. It never follows the name of a file.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let depth = settings.auto_depth;
        if depth == 0 || depth > MAX_DEPTH {
            return Err(format!("auto-depth={depth}: is not from 1 to {MAX_DEPTH}"));
        }
        let wanted = match settings.format {
            Some(names) => Wanted::named(&names)?,
            None => Wanted::Found { depth },
        };
        Ok(Auto { wanted, report: settings.auto_report, images: Images::default() })
    }
}

/// What the compressions among the formats wish.
impl Wishes for Auto {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30), Wish::Memory(160 << 20)]
    }
}

impl Format for Auto {
    type Image = Opened;

    fn open_image(&self) -> Result<Opened, Error> {
        let next: Rc<dyn Source> = Rc::new(Next::new()?);
        let file_size = next.size();
        let (found, image) = auto::open(next, &self.wanted)?;
        if self.report {
            let report = auto::json(&found, file_size);
            return Ok(Opened { source: Rc::new(report.into_bytes()), names: "report".into() });
        }
        if TOLD.get().a == 0 {
            slots::add(TOLD.scope, TOLD.index, 1);
            tell(&found);
        }
        let names = found.names();
        match image {
            Some(source) => Ok(Opened { source, names }),
            None => Err(Error::Image(found.refused.unwrap_or_default())),
        }
    }

    fn images(&self) -> &Images<Opened> {
        &self.images
    }
}

impl Threading for Auto {
    fn thread_model(&self) -> ThreadModel {
        match &self.wanted {
            // Their decoders go on where the last request of the connection ended.
            Wanted::Named(entries) if entries.iter().any(|entry| STREAMS.contains(&entry.info.name)) => {
                ThreadModel::SerializeRequests
            }
            _ => ThreadModel::Parallel,
        }
    }
}

/// Formats that are decoded from the start on.
const STREAMS: [&str; 7] = ["gzip", "xz", "lzip", "zstd", "lz4", "bzip2", "zip"];

rbdkit_filter_sdk::export_image!(Auto, threading, wishes);
