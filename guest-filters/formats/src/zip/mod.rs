//! zip archives: members that are stored or deflated.
//!
//! The central directory at the end of the archive counts. Each member has a local header as well,
//! which other programs may believe. A member whose two descriptions differ is refused.

mod directory;
mod inflate;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Part, Source, quoted};

use crate::members::{Files, MOST_FILES, leaves_directory};
use crate::unpack::Storage;
use crate::{FormatInfo, Opened, Report};

use directory::{Directory, Entries, data_of};
pub use directory::{Entry, MOST_ENTRIES};
use inflate::MOST_RATIO;

/// For those who do not know the format.
pub const INFO: FormatInfo = FormatInfo { name: "zip", probe, report, open };

/// A report has at most this many dangers of one kind.
const MOST_DANGERS: usize = 10;

fn probe(image: &dyn Source) -> Result<bool, Error> {
    if image.size() < 22 {
        return Ok(false);
    }
    let magic = image::read(image, 0, 4)?;
    Ok(magic == b"PK\x03\x04" || magic == b"PK\x05\x06")
}

fn report(image: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut files = Files::default();
    let (mut encrypted, mut dangers, mut seen) = (0u64, Vec::new(), BTreeSet::new());
    let walked = (|| {
        let mut entries = Entries::new(Rc::clone(image), Directory::find(&**image)?);
        while let Some(entry) = entries.next()? {
            if !entry.is_directory() {
                files.push(&entry.name, entry.size);
            }
            encrypted += u64::from(entry.flags & 1);
            let name = quoted(&entry.name);
            if dangers.len() < MOST_DANGERS {
                if leaves_directory(&entry.name) {
                    dangers.push(format!("a member's name leads out of the directory: {name}"));
                }
                if entry.is_symbolic_link {
                    dangers.push(format!("{name} is a symbolic link"));
                }
                if entry.size / MOST_RATIO > entry.stored {
                    dangers.push(format!("{name} claims {} bytes, more than {} can give", entry.size, entry.stored));
                }
                if seen.contains(&entry.name) {
                    dangers.push(format!("two members have the name {name}"));
                }
            }
            if seen.len() < MOST_FILES {
                seen.insert(entry.name);
            }
        }
        Ok(())
    })();
    match walked {
        Ok(()) => {}
        Err(Error::Image(line)) => report.danger(line),
        Err(error) => return Err(error),
    }
    report.dangers.extend(dangers);
    report.fact("files", files.count());
    if encrypted > 0 {
        report.fact("encrypted", encrypted);
    }
    if files.count() > 0 {
        report.fact("names", files.names());
    }
    Ok(report)
}

fn open(image: Rc<dyn Source>) -> Opened {
    let entry = only(&image)?;
    open_entry(image, &entry, &Storage::default())
}

/// The only file of the archive that can be the disk.
///
/// # Errors
/// A line with the names if there is none or more than one.
pub fn only(image: &Rc<dyn Source>) -> Result<Entry, Error> {
    let mut entries = Entries::new(Rc::clone(image), Directory::find(&**image)?);
    let (mut files, mut places) = (Files::default(), Vec::new());
    while let Some(entry) = entries.next()? {
        if !entry.is_directory() {
            files.push(&entry.name, entry.size);
            if places.len() < MOST_FILES {
                places.push(entry.at);
            }
        }
    }
    let number = files.only("zip-entry")?;
    entries.at(places.get(number).copied().unwrap_or_default())
}

/// The member with this name.
///
/// # Errors
/// A line if there is none, or more than one.
pub fn find(image: &Rc<dyn Source>, name: &[u8]) -> Result<Entry, Error> {
    let mut entries = Entries::new(Rc::clone(image), Directory::find(&**image)?);
    let (mut files, mut found) = (Files::default(), None);
    while let Some(entry) = entries.next()? {
        if entry.name != name {
            files.push(&entry.name, entry.size);
        } else if found.replace(entry).is_some() {
            return Err(Error::image(format!("two members have the name {}", quoted(name))));
        }
    }
    found.ok_or_else(|| {
        let names = if files.count() == 0 { "no members".into() } else { files.names() };
        Error::image(format!("the archive has no member {}; it has {names}", quoted(name)))
    })
}

/// The member whose entry in the central directory is at `at`.
///
/// # Errors
/// A line if there is no entry.
pub fn entry_at(image: &Rc<dyn Source>, at: u64) -> Result<Entry, Error> {
    Entries::new(Rc::clone(image), Directory::find(&**image)?).at(at)
}

/// Opens a member. A large one that is deflated is decoded into the storage.
///
/// # Errors
/// Those of the storage. A line if it is no file, has a form that is not supported, its two headers
/// differ, or its data is wrong.
pub fn open_entry(image: Rc<dyn Source>, entry: &Entry, storage: &Storage) -> Opened {
    let name = quoted(&entry.name);
    let refused = |why: String| Err(Error::image(format!("{name} {why}")));
    if entry.is_directory() {
        return refused("is a directory".into());
    }
    if entry.is_symbolic_link {
        return refused("is a symbolic link: choose the file, links are not followed".into());
    }
    if entry.flags & 0x2041 != 0 {
        return refused("is encrypted, which is not supported".into());
    }
    let data = data_of(&*image, &Directory::find(&*image)?, entry)?;
    let stored: Rc<dyn Source> = Rc::new(Part::new(image, data, entry.stored)?);
    match entry.method {
        0 if entry.stored != entry.size => {
            refused(format!("is stored as it is, with {} bytes, and claims {}", entry.stored, entry.size))
        }
        0 => Ok(stored),
        8 if entry.size / MOST_RATIO > entry.stored => {
            refused(format!("claims {} bytes, more than {} deflated bytes can give", entry.size, entry.stored))
        }
        8 => Ok(Rc::new(inflate::open(stored, entry, storage)?)),
        method => {
            refused(format!("is compressed by method {method}; stored (0) and deflated (8) members are supported"))
        }
    }
}
