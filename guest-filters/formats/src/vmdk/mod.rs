//! VMware's disk images (VMDK): a sparse file, a stream of compressed grains as in OVA files, or a
//! descriptor with extents in other files.
//!
//! Those who use the decoder give the extents and the parent. The names of files in an image are
//! for messages only.

mod descriptor;
mod sparse;

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source, quoted};

use crate::block_map::{BlockMap, BlockPlace, MappedImage};
use crate::{FormatInfo, Report};
use descriptor::{Descriptor, ExtentKind, is_descriptor, text_at};
use sparse::SparseHeader;

/// The format.
pub const INFO: FormatInfo = FormatInfo {
    name: "vmdk",
    probe,
    report,
    open: |below| Vmdk::open(below, Given::default()).map(|image| Rc::new(image) as Rc<dyn Source>),
};

/// How a file of ESX begins whose format is not supported.
const SE_SPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();

/// A report shows so many names of extents.
const MOST_NAMES: usize = 20;

/// What the operator gives beside the image.
#[derive(Default)]
pub struct Given {
    /// The files of the extents, in the order of the descriptor.
    pub extents: Vec<Rc<dyn Source>>,
    /// The disk of which the image holds only what differs.
    pub parent: Option<Rc<dyn Source>>,
}

/// A VMDK image.
pub struct Vmdk {
    pieces: Vec<Piece>,
    size: u64,
    description: String,
}

/// The part of the disk that one extent has.
struct Piece {
    start: u64,
    size: u64,
    /// None reads as zero.
    source: Option<Rc<dyn Source>>,
    /// For errors. Empty if there is only one file.
    name: String,
}

fn probe(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < 8 {
        return Ok(false);
    }
    let mut magic = [0; 8];
    below.read(0, &mut magic)?;
    let sparse = [sparse::HOSTED, sparse::COWD].iter().any(|begin| magic.starts_with(*begin));
    Ok(sparse || magic == SE_SPARSE || is_descriptor(below)?)
}

/// What an image consists of.
struct VmdkParts {
    /// None of a descriptor that is a file of its own.
    header: Option<SparseHeader>,
    descriptor: Option<Descriptor>,
}

impl VmdkParts {
    fn read(below: &dyn Source) -> Result<VmdkParts, Error> {
        if !probe(below)? {
            return Err(Error::image(
                "it is not a VMDK image: it begins neither with KDMV or COWD nor with '# Disk DescriptorFile'",
            ));
        }
        if is_descriptor(below)? {
            let descriptor = Descriptor::parse(&text_at(below, 0, below.size())?)?;
            return Ok(VmdkParts { header: None, descriptor: Some(descriptor) });
        }
        let mut magic = [0; 8];
        below.read(0, &mut magic)?;
        if magic == SE_SPARSE {
            return Err(Error::image("VMDK files of the type seSparse are not supported"));
        }
        let header = SparseHeader::read(below)?;
        let (at, length) = header.descriptor;
        let descriptor = if length == 0 {
            None
        } else {
            let (at, length) = (at.saturating_mul(512), length.saturating_mul(512));
            crate::block_map::check_table(below, "the descriptor", at, length)?;
            Some(Descriptor::parse(&text_at(below, at, length)?)?)
        };
        Ok(VmdkParts { header: Some(header), descriptor })
    }

    /// The name of the parent's file, if the image has a parent.
    fn parent(&self) -> Option<&[u8]> {
        let of_header = || self.header.as_ref()?.parent.as_deref();
        self.descriptor.as_ref().and_then(Descriptor::parent).or_else(of_header)
    }

    /// The descriptor, if the extents are files of their own.
    fn split(&self) -> Option<&Descriptor> {
        let is_split = self.header.as_ref().is_none_or(SparseHeader::is_only_descriptor);
        self.descriptor.as_ref().filter(|_| is_split)
    }

    fn create_type(&self) -> String {
        match &self.descriptor {
            Some(descriptor) => quoted(&descriptor.create_type),
            None => "none, a single extent".into(),
        }
    }

    /// # Errors
    /// A line if the type of the disk does not fit to the file, or is not supported.
    fn check_type(&self) -> Result<(), Error> {
        let Some(descriptor) = &self.descriptor else { return Ok(()) };
        let kind = &descriptor.create_type[..];
        let shown = quoted(kind);
        let known: &[&[u8]] = &[
            b"monolithicSparse",
            b"streamOptimized",
            b"monolithicFlat",
            b"twoGbMaxExtentSparse",
            b"twoGbMaxExtentFlat",
            b"vmfs",
            b"vmfsSparse",
            b"vmfsThin",
            b"vmfsPreallocated",
            b"vmfsEagerZeroedThick",
            b"custom",
        ];
        if kind.is_empty() {
            return Err(Error::image("the descriptor has no createType"));
        }
        if !known.iter().any(|known| kind.eq_ignore_ascii_case(known)) {
            return Err(Error::image(format!(
                "disks of the type {shown} are not supported: devices of a host and seSparse are not, and others \
                 do not exist"
            )));
        }
        let sparse_alone: &[&[u8]] = &[b"monolithicSparse", b"streamOptimized", b"twoGbMaxExtentSparse"];
        if self.split().is_none() {
            // Two programs could see two disks in such a file.
            if !sparse_alone.iter().any(|fits| kind.eq_ignore_ascii_case(fits)) {
                return Err(Error::image(format!(
                    "the file is sparse, and the descriptor in it says that the disk is of the type {shown}"
                )));
            }
            if descriptor.extents.len() > 1 {
                return Err(Error::image(format!(
                    "the file is one extent, and the descriptor in it names {}",
                    descriptor.extents.len()
                )));
            }
        }
        Ok(())
    }
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let parts = match VmdkParts::read(&**below) {
        Ok(parts) => parts,
        Err(Error::Image(line)) => {
            report.danger(format!("it cannot be read: {line}"));
            return Ok(report);
        }
        Err(failed) => return Err(failed),
    };
    report.fact("type", parts.create_type());
    if let Some(header) = &parts.header {
        report.fact("version", header.version);
        report.fact("grain size", header.grain.saturating_mul(512));
        report.fact("compressed", if header.is_packed { "yes" } else { "no" });
        if header.is_unclean {
            report.danger("it was not closed by the program that wrote it: its last writes may be missing");
        }
    }
    let sectors = match (parts.split(), &parts.header) {
        (Some(descriptor), _) => descriptor.sectors().ok(),
        (None, Some(header)) => Some(header.capacity),
        (None, None) => None,
    };
    report.size = sectors.and_then(|sectors| sectors.checked_mul(512));
    if let Some(descriptor) = &parts.descriptor {
        report.fact("extents", descriptor.extents.len());
        let is_split = parts.split().is_some();
        for extent in descriptor.extents.iter().filter(|extent| extent.kind != ExtentKind::Zero).take(MOST_NAMES) {
            let name = quoted(&extent.name);
            // The one name in a file with its own data is what the file was called.
            if is_split || descriptor.extents.len() > 1 || names_a_path(&extent.name) {
                report.danger(format!("it names a file with an extent: {name}"));
            } else {
                report.fact("extent's name", name);
            }
        }
        if descriptor.extents.len() > MOST_NAMES {
            report.danger(format!("it names more files: {} extents in all", descriptor.extents.len()));
        }
    }
    if let Some(name) = parts.parent() {
        report.danger(format!("it names a parent: {}", quoted(name)));
    }
    let checked = parts.check_type().and_then(|()| match &parts.header {
        Some(header) if parts.split().is_none() => header.check(&**below),
        _ => Ok(()),
    });
    if let Err(Error::Image(line)) = checked {
        report.danger(format!("it cannot be read: {line}"));
    }
    Ok(report)
}

fn names_a_path(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'/' | b'\\' | b':'))
}

impl Vmdk {
    /// Opens an image.
    ///
    /// # Errors
    /// Those of the sources. A line if the image is wrong or not supported, or if it needs an
    /// extent or a parent that is not given.
    pub fn open(below: Rc<dyn Source>, given: Given) -> Result<Vmdk, Error> {
        let parts = VmdkParts::read(&*below)?;
        parts.check_type()?;
        match (parts.parent(), &given.parent) {
            (Some(name), None) => {
                return Err(Error::image(format!(
                    "the image holds only what differs from the parent {}: give that disk as vmdk-parent=DISK",
                    quoted(name)
                )));
            }
            (None, Some(_)) => return Err(Error::image("vmdk-parent is given, and the image has no parent")),
            _ => {}
        }
        let description = match &parts.descriptor {
            Some(descriptor) => format!("VMDK image, {}", quoted(&descriptor.create_type)),
            None => "VMDK image, a single extent".to_string(),
        };
        if let Some(descriptor) = parts.split() {
            let pieces = pieces(descriptor, given)?;
            return Ok(Vmdk { size: descriptor.sectors()? * 512, pieces, description });
        }
        if !given.extents.is_empty() {
            return Err(Error::image("vmdk-extent is given, and the image is one file with all of its data"));
        }
        let Some(header) = parts.header else { return Err(Error::image("the image has no header")) };
        let size = header.capacity * 512;
        let source = sparse::open(below, header, given.parent.map(|parent| (parent, 0)), 1)?;
        let pieces = vec![Piece { start: 0, size, source: Some(Rc::new(source)), name: String::new() }];
        Ok(Vmdk { pieces, size, description })
    }

    /// The extent at `offset`, the offset in it, and how much of it follows.
    fn piece(&self, offset: u64) -> Result<(&Piece, u64, u64), Error> {
        let next = self.pieces.partition_point(|piece| piece.start <= offset);
        let piece =
            next.checked_sub(1).and_then(|at| self.pieces.get(at)).filter(|piece| offset - piece.start < piece.size);
        let piece = piece
            .ok_or_else(|| Error::image(format!("byte {offset} is not within the disk of {} bytes", self.size)))?;
        let within = offset - piece.start;
        Ok((piece, within, piece.size - within))
    }

    /// # Errors
    /// A line for a range that is not within the disk.
    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => {
                Err(Error::image(format!("{length} bytes at {offset} are not within the disk of {} bytes", self.size)))
            }
        }
    }
}

impl Piece {
    /// Says of which extent an error is.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::Image(line) if !self.name.is_empty() => Error::Image(format!("{}: {line}", self.name)),
            error => error,
        }
    }
}

/// The pieces of a disk whose extents are given.
fn pieces(descriptor: &Descriptor, given: Given) -> Result<Vec<Piece>, Error> {
    descriptor.sectors()?;
    let with_files: Vec<_> = descriptor.extents.iter().filter(|extent| extent.kind != ExtentKind::Zero).collect();
    if let Some(missing) = with_files.get(given.extents.len()) {
        return Err(Error::image(format!(
            "the image has its data in other files: give extent {} of {}, which it calls {}, as vmdk-extent=FILE",
            given.extents.len() + 1,
            with_files.len(),
            quoted(&missing.name)
        )));
    }
    if given.extents.len() > with_files.len() {
        return Err(Error::image(format!(
            "vmdk-extent is given {} times, and the image has {} extents in files",
            given.extents.len(),
            with_files.len()
        )));
    }
    let (mut pieces, mut start) = (Vec::with_capacity(descriptor.extents.len()), 0);
    let mut files = given.extents.into_iter();
    for line in &descriptor.extents {
        let size = line.sectors * 512;
        let nth = pieces.len() + 1;
        let mut piece = Piece { start, size, source: None, name: format!("extent {nth} ({})", quoted(&line.name)) };
        if line.kind != ExtentKind::Zero
            && let Some(file) = files.next()
        {
            let parent = given.parent.clone().map(|parent| (parent, start));
            let opened = match line.kind {
                ExtentKind::Sparse => open_sparse(file, line.sectors, parent, with_files.len()),
                _ => open_flat(file, line.offset, size),
            };
            piece.source = Some(opened.map_err(|error| piece.named(error))?);
        }
        pieces.push(piece);
        start += size;
    }
    // An empty extent has no byte, and must not hide its neighbour.
    pieces.retain(|piece| piece.size > 0);
    Ok(pieces)
}

fn open_sparse(
    file: Rc<dyn Source>,
    sectors: u64,
    parent: Option<(Rc<dyn Source>, u64)>,
    files: usize,
) -> crate::Opened {
    let header = SparseHeader::read(&*file)?;
    if header.capacity != sectors {
        return Err(Error::image(format!(
            "the file given for it has {} sectors, and the descriptor says {sectors}",
            header.capacity
        )));
    }
    Ok(Rc::new(sparse::open(file, header, parent, files)?))
}

fn open_flat(file: Rc<dyn Source>, offset: u64, size: u64) -> crate::Opened {
    let start = offset.saturating_mul(512);
    let there = file.size();
    if start.checked_add(size).is_none_or(|end| end > there) {
        return Err(Error::image(format!(
            "the file given for it has {there} bytes, and the descriptor says {size} bytes from {start} on"
        )));
    }
    Ok(Rc::new(MappedImage(Flat { file, start, size })))
}

/// An extent that is stored byte by byte.
struct Flat {
    file: Rc<dyn Source>,
    start: u64,
    size: u64,
}

impl BlockMap for Flat {
    fn size(&self) -> u64 {
        self.size
    }

    fn stored_in(&self) -> &dyn Source {
        &*self.file
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        Ok((BlockPlace::Stored(self.start + offset), self.size - offset))
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn description(&self) -> Option<String> {
        None
    }
}

impl Source for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        self.check(offset, into.len() as u64)?;
        while !into.is_empty() {
            let (piece, within, left) = self.piece(offset)?;
            let (part, rest) = into.split_at_mut((into.len() as u64).min(left) as usize);
            match &piece.source {
                Some(source) => source.read(within, part).map_err(|error| piece.named(error))?,
                None => part.fill(0),
            }
            offset += part.len() as u64;
            into = rest;
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.check(offset, length.into())?;
        let mut done = 0;
        while done < length {
            let (piece, within, left) = self.piece(offset + u64::from(done))?;
            let part = u64::from(length - done).min(left) as u32;
            let to = at + done;
            match &piece.source {
                Some(source) => {
                    source.read_buffer(within, part, buffer, to).map_err(|error| piece.named(error))?;
                }
                None => buffer.fill(to..to + part, 0),
            }
            done += part;
        }
        Ok(())
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.check(list.at(), list.left())?;
        let start = list.at();
        while !list.is_full() {
            let (piece, within, left) = self.piece(list.at())?;
            let (wanted, before) = (left.min(list.left()), list.at());
            match &piece.source {
                None => list.push_hole(wanted),
                Some(source) => match list.push_from(&**source, within, wanted) {
                    Err(Error::Image(_)) if before > start => break,
                    result => result.map_err(|error| piece.named(error))?,
                },
            }
            // The extent has looked at as many places as it may. The client asks again.
            if list.at() < before + wanted {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check(offset, length)?;
        let mut done = 0;
        while done < length {
            let (piece, within, left) = self.piece(offset + done)?;
            let part = left.min(length - done);
            if let Some(source) = &piece.source {
                source.cache(within, part).map_err(|error| piece.named(error))?;
            }
            done += part;
        }
        Ok(())
    }

    fn description(&self) -> Option<String> {
        Some(self.description.clone())
    }
}

#[cfg(test)]
mod tests;
