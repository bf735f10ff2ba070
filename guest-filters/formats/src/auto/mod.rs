//! Finds out what an image is, and opens it: a format, or formats within each other.
//!
//! Signatures are looked for in the order of [`FORMATS`]. An image that has the signatures of two
//! formats is refused: two programs would see two different disks in it. So is an image that begins
//! as a format does and also as a disk does, with a partition table or a file system: somebody who
//! may write to a disk can make its first bytes look like an image.

mod describe;
mod found;
mod list;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, quoted};

pub use describe::json;
pub use found::{Found, Layer};
pub use list::{Entry, FORMATS, Place};

use crate::Report;

/// At most so many formats within each other.
pub const MAX_DEPTH: u32 = 8;

/// Which formats to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the signatures say, at most so many formats within each other.
    Found {
        /// 1 to [`MAX_DEPTH`].
        depth: u32,
    },
    /// These, from the outermost to the innermost. `raw` is the end of the list.
    Named(Vec<&'static Entry>),
}

impl Wanted {
    /// Reads the names of formats, separated by commas. `raw` alone opens nothing.
    ///
    /// # Errors
    /// A line for a name that is no format, and for too many.
    pub fn named(text: &str) -> Result<Wanted, String> {
        let mut entries = Vec::new();
        let names: Vec<&str> = text.split(',').collect();
        for (n, name) in names.iter().enumerate() {
            if *name == "raw" && n + 1 == names.len() {
                break;
            }
            let entry = FORMATS.iter().find(|entry| entry.info.name == *name && entry.place != Place::Content);
            entries.push(entry.ok_or_else(|| {
                let known = FORMATS.iter().filter(|entry| entry.place != Place::Content).map(|entry| entry.info.name);
                let known = known.collect::<Vec<_>>().join(", ");
                format!("format={}: {} is not one of {known}, or raw at the end", text, quoted(name.as_bytes()))
            })?);
        }
        if entries.len() > MAX_DEPTH as usize {
            return Err(format!("format={text}: has more than {MAX_DEPTH} formats"));
        }
        Ok(Wanted::Named(entries))
    }
}

/// Opens what is in `source`. What was found is described also if the image is refused; then there
/// is no image.
///
/// # Errors
/// Those of the layer below.
pub fn open(source: Rc<dyn Source>, wanted: &Wanted) -> Result<(Found, Option<Rc<dyn Source>>), Error> {
    let mut found = Found::default();
    let image = match open_into(&mut found, source, wanted) {
        Ok(image) => Some(image),
        Err(Error::Image(line)) => {
            found.refused = Some(line);
            None
        }
        Err(error) => return Err(error),
    };
    found.size = image.as_ref().map(|image| image.size());
    Ok((found, image))
}

fn open_into(found: &mut Found, source: Rc<dyn Source>, wanted: &Wanted) -> Result<Rc<dyn Source>, Error> {
    let mut image = source;
    match wanted {
        Wanted::Named(entries) => {
            for entry in entries {
                if !(entry.info.probe)(&*image)? {
                    return Err(Error::image(format!(
                        "{} is asked for, and {} does not have its signature",
                        entry.info.name,
                        found.inside()
                    )));
                }
                image = open_one(found, entry, image)?;
            }
        }
        Wanted::Found { depth } => {
            while let Some(entry) = identify(found, &*image)? {
                if found.layers.len() >= *depth as usize {
                    return Err(Error::image(format!(
                        "{} in {}: formats are nested more than {depth} deep (auto-depth)",
                        entry.info.name,
                        found.names()
                    )));
                }
                image = open_one(found, entry, image)?;
            }
        }
    }
    for entry in signatures(&*image)? {
        // Of what stands in the disk only a description is wanted.
        if let Ok(report) = (entry.info.report)(&image) {
            found.content.push(Layer { name: entry.info.name, report });
        }
    }
    Ok(image)
}

/// Describes a format and opens it.
fn open_one(found: &mut Found, entry: &Entry, image: Rc<dyn Source>) -> Result<Rc<dyn Source>, Error> {
    let name = entry.info.name;
    let about = |error: Error| match error {
        Error::Image(line) => Error::Image(format!("{name}: {line}")),
        error => error,
    };
    let report = (entry.info.report)(&image);
    let (report, refused) = match report {
        Ok(report) => (report, None),
        Err(Error::Image(line)) => (Report::default(), Some(Error::Image(line))),
        Err(error) => return Err(error),
    };
    found.layers.push(Layer { name, report });
    match refused {
        Some(error) => Err(about(error)),
        None => (entry.info.open)(image).map_err(about),
    }
}

/// The formats whose signatures an image has.
fn signatures(image: &dyn Source) -> Result<Vec<&'static Entry>, Error> {
    let mut having = Vec::new();
    for entry in FORMATS {
        if (entry.info.probe)(image)? {
            having.push(entry);
        }
    }
    Ok(having)
}

/// The format of an image, or none if it is a raw disk. What it could be is noted if it is
/// ambiguous.
///
/// # Errors
/// A line if the image has the signatures of two formats.
fn identify(found: &mut Found, image: &dyn Source) -> Result<Option<&'static Entry>, Error> {
    let having = signatures(image)?;
    let opened = having.iter().filter(|entry| entry.place != Place::Content);
    let header = opened.clone().find(|entry| entry.place == Place::Header);
    // What stands at the end of an image leaves its start to the disk.
    let is_ambiguous = opened.clone().count() > 1 || header.is_some() && having.len() > 1;
    if is_ambiguous {
        found.ambiguous = having.iter().map(|entry| entry.info.name).collect();
        return Err(Error::image(format!(
            "{} is ambiguous: it has the signatures of {}; format=NAME says which one it is, and format=raw \
             that it is a raw disk",
            found.inside(),
            found.ambiguous.join(" and ")
        )));
    }
    Ok(opened.copied().next())
}
