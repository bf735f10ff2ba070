//! tar archives: ustar, with the extensions of GNU tar and of pax. OVA files are such archives.
//!
//! An archive has no index. A member is found by a walk from header to header, which ends at the
//! first member with the name.

mod header;
mod pax;
mod sparse;
mod walk;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{self, Error, ExtentList, Part, Source, quoted};

use crate::members::{Files, leaves_directory};
use crate::{FormatInfo, Opened, Report};

use walk::Holes;
pub use walk::{Kind, Limits, MOST_HEADERS, Member, Walk};

/// Hard links that name hard links are followed so often.
const MOST_LINKS: usize = 8;

/// For those who do not know the format.
pub const INFO: FormatInfo = FormatInfo { name: "tar", probe, report, open };

fn probe(image: &dyn Source) -> Result<bool, Error> {
    if image.size() < header::BLOCK {
        return Ok(false);
    }
    let block = image::read(image, 0, header::BLOCK as usize)?;
    Ok(matches!(header::Header::parse(&block, 0), Ok(Some(header)) if header.has_magic))
}

/// A report looks at no more headers than this.
const MOST_REPORTED: u64 = 100_000;

/// A report has at most this many dangers of one kind.
const MOST_DANGERS: usize = 10;

fn report(image: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut walk = Walk::new(Rc::clone(image), 0, Limits { headers: MOST_REPORTED, ..Limits::default() });
    let (mut files, mut members, mut links, mut others) = (Files::default(), 0u64, 0u64, 0u64);
    let mut seen = std::collections::BTreeSet::new();
    let danger = |report: &mut Report, line: String| {
        if report.dangers.len() < MOST_DANGERS {
            report.danger(line);
        }
    };
    loop {
        let member = match walk.next_member() {
            Ok(Some(member)) => member,
            Ok(None) => break,
            Err(Error::Image(line)) => {
                report.danger(format!("the list of members ends early: {line}"));
                break;
            }
            Err(error) => return Err(error),
        };
        members += 1;
        match member.kind {
            Kind::File => files.push(&member.name, member.size),
            Kind::HardLink | Kind::SymbolicLink => links += 1,
            Kind::Other => others += 1,
            Kind::Directory => {}
        }
        if leaves_directory(&member.name) {
            danger(&mut report, format!("a member's name leads out of the directory: {}", quoted(&member.name)));
        }
        let is_link = matches!(member.kind, Kind::HardLink | Kind::SymbolicLink);
        if is_link && leaves_directory(&member.link) {
            let (name, link) = (quoted(&member.name), quoted(&member.link));
            danger(&mut report, format!("{name} is a link that leads out of the directory: {link}"));
        }
        if member.kind == Kind::File && seen.contains(&member.name) {
            danger(&mut report, format!("two members have the name {}", quoted(&member.name)));
        }
        if seen.len() < crate::members::MOST_FILES {
            seen.insert(member.name);
        }
    }
    report.fact("members", members);
    report.fact("files", files.count());
    if links > 0 {
        report.fact("links", links);
    }
    if others > 0 {
        report.fact("devices and others", others);
    }
    if files.count() > 0 {
        report.fact("names", files.names());
    }
    Ok(report)
}

fn open(image: Rc<dyn Source>) -> Opened {
    let member = only(&image, Limits::default())?;
    Ok(Rc::new(open_member(image, member)?))
}

/// The only file of the archive that can be the disk.
///
/// # Errors
/// A line with the names if there is none or more than one.
pub fn only(image: &Rc<dyn Source>, limits: Limits) -> Result<Member, Error> {
    let mut walk = Walk::new(Rc::clone(image), 0, limits);
    let (mut files, mut headers) = (Files::default(), Vec::new());
    while let Some(member) = walk.next_member()? {
        if member.kind == Kind::File {
            files.push(&member.name, member.size);
            if headers.len() < crate::members::MOST_FILES {
                headers.push(member.header);
            }
        }
    }
    let number = files.only("tar-entry")?;
    member_at(image, headers.get(number).copied().unwrap_or_default())
}

/// The first member with this name. A hard link is followed.
///
/// # Errors
/// A line if there is no such member, or it is no file.
pub fn find(image: &Rc<dyn Source>, name: &[u8], limits: Limits) -> Result<Member, Error> {
    let mut member = first(image, name, limits)?;
    for _ in 0..MOST_LINKS {
        if member.kind != Kind::HardLink {
            break;
        }
        // The file of a hard link is before it. Of several with its name it is the last.
        let mut walk = Walk::new(Rc::clone(image), 0, limits);
        let mut target = None;
        while let Some(earlier) = walk.next_member()?.filter(|earlier| earlier.header < member.header) {
            if earlier.name == member.link {
                target = Some(earlier);
            }
        }
        member = target.ok_or_else(|| {
            let (name, link) = (quoted(&member.name), quoted(&member.link));
            Error::image(format!("{name} is a hard link to {link}, and no member before it has that name"))
        })?;
    }
    check_is_file(&member)?;
    Ok(member)
}

fn first(image: &Rc<dyn Source>, name: &[u8], limits: Limits) -> Result<Member, Error> {
    let mut walk = Walk::new(Rc::clone(image), 0, limits);
    let mut files = Files::default();
    loop {
        match walk.next_member() {
            Ok(Some(member)) if member.name == name => return Ok(member),
            Ok(Some(member)) => files.push(&member.name, member.size),
            Ok(None) if files.count() == 0 => return Err(Error::image("the tar archive has no members")),
            Ok(None) => {
                let (name, names) = (quoted(name), files.names());
                return Err(Error::image(format!("the archive has no member {name}; it has {names}")));
            }
            Err(Error::Image(line)) => return Err(Error::image(format!("looking for {}: {line}", quoted(name)))),
            Err(error) => return Err(error),
        }
    }
}

/// The member whose first header begins at `header`.
///
/// # Errors
/// A line if there is no header, or the member is no file.
pub fn member_at(image: &Rc<dyn Source>, header: u64) -> Result<Member, Error> {
    // A member has a handful of headers in front of it.
    let member = Walk::new(Rc::clone(image), header, Limits { headers: 64, ..Limits::default() }).next_member()?;
    let member = member.ok_or_else(|| Error::image(format!("the archive has no header at {header} any more")))?;
    check_is_file(&member)?;
    Ok(member)
}

fn check_is_file(member: &Member) -> Result<(), Error> {
    let name = quoted(&member.name);
    Err(Error::image(match member.kind {
        Kind::File => return Ok(()),
        Kind::SymbolicLink => {
            format!("{name} is a symbolic link to {}: choose the file, links are not followed", quoted(&member.link))
        }
        Kind::HardLink => format!("{name} is a hard link behind more than {MOST_LINKS} hard links"),
        Kind::Directory => format!("{name} is a directory"),
        Kind::Other => format!("{name} is not a regular file"),
    }))
}

/// A member, opened.
pub struct Content {
    source: Rc<dyn Source>,
    /// Where the file begins in the archive, if it has no holes.
    start: Option<u64>,
}

/// Opens a member.
///
/// # Errors
/// A line if the map of its holes is wrong.
pub fn open_member(image: Rc<dyn Source>, member: Member) -> Result<Content, Error> {
    let stored: Rc<dyn Source> = Rc::new(Part::new(image, member.data, member.stored)?);
    let at = member.header;
    let (runs, stored) = match member.holes {
        Holes::None => return Ok(Content { source: stored, start: Some(member.data) }),
        Holes::Known(runs) => (runs, stored),
        Holes::BeforeData => {
            let (runs, length) = sparse::read_map(&*stored, at)?;
            let rest = stored
                .size()
                .checked_sub(length)
                .ok_or_else(|| Error::image(format!("the map of the sparse member at {at} ends beyond the member")))?;
            (runs, Rc::new(Part::new(stored, length, rest)?) as Rc<dyn Source>)
        }
    };
    Ok(Content { source: Rc::new(sparse::Sparse::new(stored, member.size, &runs, at)?), start: None })
}

impl Content {
    /// Where the file begins in the archive. None for a file with holes, whose bytes are in several
    /// places.
    pub fn start(&self) -> Option<u64> {
        self.start
    }
}

impl Source for Content {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.source.read(offset, into)
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.source.read_buffer(offset, length, buffer, at)
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.source.extents(list)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.source.cache(offset, length)
    }
}
