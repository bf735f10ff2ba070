//! Apple's disk images (UDIF, files with the ending .dmg): a trailer, tables of chunks, and the
//! data of the chunks.
//!
//! All numbers are big-endian. The trailer says where a property list in XML is, or a resource fork
//! in older images. There the tables are, one for each partition. A table has the chunks of its
//! part of the disk in order. What no chunk describes reads as zero.

mod fork;
mod plist;
mod table;
#[cfg(test)]
mod tests;
mod trailer;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source, TableCache, read};

use crate::block_map::{BlockMap, BlockPlace, MappedImage};
use crate::codec::{Deflated, inflate, unadc, unbzip2, unlzfse};
use crate::xz::unxz;
use crate::{FormatInfo, Report};
use table::{Chunk, Coding, Index};
use trailer::{Koly, Signature};

/// The format.
pub const INFO: FormatInfo =
    FormatInfo { name: "dmg", probe, report, open: |below| Dmg::open(below).map(|image| Rc::new(image) as _) };

/// A DMG image.
pub type Dmg = MappedImage<DmgChunks>;

/// Bytes of decompressed chunks that are kept: 4 MiB, or the largest chunk, which has at most 8
/// MiB.
const KEPT: u64 = 4 << 20;

fn probe(below: &dyn Source) -> Result<bool, Error> {
    Ok(Signature::of(below)? != Signature::Other)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let koly = match Koly::read(&**below) {
        Ok(koly) => koly,
        Err(Error::Image(line)) => {
            report.danger(format!("it cannot be read: {line}"));
            return Ok(report);
        }
        Err(failed) => return Err(failed),
    };
    report.size = koly.sectors.checked_mul(trailer::SECTOR);
    report.fact("version", koly.version);
    report.fact("kind", koly.kind_name());
    report.fact("flags", format!("{:#x}", koly.flags));
    report.fact("part", format!("{} of {}", koly.segment.0, koly.segment.1));
    report.fact("bytes of data", koly.data.length);
    report.fact("bytes of the property list", koly.list.length);
    report.fact("bytes of the resource fork", koly.fork.length);
    report.fact("checksum of the data", koly.checksum_name());
    if koly.list.length > 0 && koly.fork.length > 0 {
        report.danger(
            "it has a property list and a resource fork: the tables of the list count, and those of the \
                       fork are not read, as some programs do",
        );
    }
    if koly.running > 0 {
        report.danger(format!("its data follows {} bytes of other parts, and it is the only part", koly.running));
    }
    if let Err(Error::Image(line)) = koly.check(&**below) {
        report.danger(format!("it cannot be read: {line}"));
    }
    Ok(report)
}

/// Where the chunks are.
pub struct DmgChunks {
    below: Rc<dyn Source>,
    koly: Koly,
    index: Index,
    kept: TableCache<usize, Vec<u8>>,
}

impl Dmg {
    /// Opens an image and reads its tables.
    ///
    /// # Errors
    /// Those of the source. A line if the image is wrong or not supported.
    pub fn open(below: Rc<dyn Source>) -> Result<Dmg, Error> {
        let koly = Koly::read(&*below)?;
        koly.check(&*below)?;
        let mut index = Index::default();
        if koly.list.length > 0 {
            plist::tables(&below, &koly, &mut index)?;
        } else {
            let cache = BlockCache::new(Rc::clone(&below), 16 << 10, 64 << 10);
            fork::tables(&cache, &koly, &mut index)?;
        }
        index.finish()?;
        let kept = TableCache::new(KEPT.max(index.largest) as usize);
        Ok(MappedImage(DmgChunks { below, koly, index, kept }))
    }
}

impl DmgChunks {
    /// The number of the chunk that has a byte of the disk, or of the next one.
    fn find(&self, offset: u64) -> (usize, Option<&Chunk>) {
        let chunks = &self.index.chunks;
        let number = chunks.partition_point(|chunk| chunk.start() + chunk.size() <= offset);
        (number, chunks.get(number))
    }

    /// # Errors
    /// Those of the source, and a line if the data is wrong.
    fn unpack(&self, chunk: &Chunk) -> Result<Vec<u8>, Error> {
        let size = chunk.size();
        let wrong = |what: String| {
            Error::Image(format!("the chunk for byte {} of the disk, stored at {}, {what}", chunk.start(), chunk.at))
        };
        let packed = read(&*self.below, chunk.at, chunk.length as usize)?;
        // One more byte shows whether the data gives more than the chunk has.
        let mut data = vec![0; size as usize + 1];
        let got = match chunk.coding() {
            Coding::Zlib => inflate(Deflated::Zlib, &packed, &mut data),
            Coding::Bzip2 => unbzip2(&packed, &mut data),
            Coding::Lzfse => unlzfse(&packed, &mut data),
            Coding::Xz => unxz(&packed, &mut data),
            Coding::Adc => unadc(&packed, &mut data),
            Coding::Raw => return Err(wrong("is not compressed".into())),
        };
        match got {
            Ok(got) if got as u64 == size => {}
            Ok(got) if got as u64 > size => return Err(wrong(format!("gives more than its {size} bytes"))),
            Ok(got) => return Err(wrong(format!("gives {got} bytes, and {size} are needed"))),
            Err(Error::Image(line)) => return Err(wrong(format!("cannot be unpacked: {line}"))),
            Err(failed) => return Err(failed),
        }
        data.truncate(size as usize);
        Ok(data)
    }
}

impl BlockMap for DmgChunks {
    fn size(&self) -> u64 {
        // `check` has bounded it.
        self.koly.sectors * trailer::SECTOR
    }

    fn stored_in(&self) -> &dyn Source {
        &*self.below
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        Ok(match self.find(offset).1 {
            None => (BlockPlace::Zero, self.size().saturating_sub(offset).max(1)),
            Some(chunk) if offset < chunk.start() => (BlockPlace::Zero, chunk.start() - offset),
            Some(chunk) => {
                let within = offset - chunk.start();
                let place = match chunk.coding() {
                    Coding::Raw => BlockPlace::Stored(chunk.at + within),
                    _ => BlockPlace::Packed,
                };
                (place, chunk.size() - within)
            }
        })
    }

    fn unpacked(&self, offset: u64) -> Result<(Rc<Vec<u8>>, usize), Error> {
        let (number, chunk) = self.find(offset);
        let Some(chunk) = chunk.filter(|chunk| chunk.start() <= offset) else {
            return Err(Error::Image(format!("no chunk has byte {offset} of the disk")));
        };
        let data = self.kept.get_or(number, || {
            let data = self.unpack(chunk)?;
            let weight = data.len();
            Ok::<_, Error>((data, weight))
        })?;
        Ok((data, (offset - chunk.start()) as usize))
    }

    fn description(&self) -> Option<String> {
        Some(format!("DMG image, {}", self.koly.kind_name()))
    }
}
