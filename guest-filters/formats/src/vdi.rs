//! VirtualBox's disk images (VDI): a header, a map with a number for each block, and the blocks.
//!
//! All numbers are little-endian. Block `n` of the disk is stored as block `map[n]` behind
//! `offset_data`. Two numbers are no blocks: one that was never written, and one that was
//! discarded. Both read as zero. In a differencing image the former is the parent's.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, Source, quoted, read};

use crate::block_map::{self, BlockMap, BlockPlace, MappedImage, check_block, check_table};
use crate::guid::Guid;
use crate::{FormatInfo, Report};

/// The format.
pub const INFO: FormatInfo =
    FormatInfo { name: "vdi", probe, report, open: |below| Vdi::open(below, None).map(opened) };

/// A VDI image.
pub type Vdi = MappedImage<VdiBlocks>;

/// At offset 0x40. Before it is text that any program may choose.
const SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
const SIGNATURE_AT: u64 = 0x40;

/// The header of version 1.1.
const HEADER: usize = 0x1c8;

/// The two numbers that are no blocks: it was discarded, or never written.
const DISCARDED: u32 = 0xffff_fffe;
const NEVER_WRITTEN: u32 = 0xffff_ffff;

/// Sizes of a block that are accepted. VirtualBox makes 1 MiB.
const MIN_BLOCK: u32 = 4 << 10;
const MAX_BLOCK: u32 = 1 << 30;

fn opened(image: Vdi) -> Rc<dyn Source> {
    Rc::new(image)
}

fn probe(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < SIGNATURE_AT + 4 {
        return Ok(false);
    }
    let mut signature = [0; 4];
    below.read(SIGNATURE_AT, &mut signature)?;
    Ok(signature == SIGNATURE)
}

/// What the header says.
struct VdiHeader {
    version: (u16, u16),
    kind: u32,
    description: Vec<u8>,
    map: u64,
    data: u64,
    sector: u32,
    disk: u64,
    block: u32,
    extra: u32,
    blocks: u32,
    allocated: u32,
    /// Which image the parent is, and which state of it. All zero without a parent.
    parent: [u8; 16],
    parent_state: [u8; 16],
}

impl VdiHeader {
    fn read(below: &dyn Source) -> Result<VdiHeader, Error> {
        if !probe(below)? {
            return Err(Error::image("it is not a VDI image: its signature is not at byte 64"));
        }
        let bytes = read(below, 0, below.size().min(HEADER as u64) as usize)?;
        let fields = Fields::little(&bytes, "the header");
        let mut uuids = [[0; 16]; 2];
        uuids[0].copy_from_slice(fields.bytes(0x1a8, 16)?);
        uuids[1].copy_from_slice(fields.bytes(0x1b8, 16)?);
        Ok(VdiHeader {
            version: (fields.u16(0x46)?, fields.u16(0x44)?),
            kind: fields.u32(0x4c)?,
            description: fields.text(0x54, 256)?.to_vec(),
            map: fields.u32(0x154)?.into(),
            data: fields.u32(0x158)?.into(),
            sector: fields.u32(0x168)?,
            disk: fields.u64(0x170)?,
            block: fields.u32(0x178)?,
            extra: fields.u32(0x17c)?,
            blocks: fields.u32(0x180)?,
            allocated: fields.u32(0x184)?,
            parent: uuids[0],
            parent_state: uuids[1],
        })
    }

    fn kind_name(&self) -> String {
        match self.kind {
            1 => "dynamic".into(),
            2 => "fixed".into(),
            3 => "undo".into(),
            4 => "differencing".into(),
            kind => format!("kind {kind}"),
        }
    }

    fn has_parent(&self) -> bool {
        self.parent != [0; 16] || self.parent_state != [0; 16]
    }

    fn is_differencing(&self) -> bool {
        self.kind == 4
    }

    /// # Errors
    /// A line that says what is wrong.
    fn check(&self, below: &dyn Source) -> Result<(), Error> {
        let fail = |line: String| Err(Error::Image(line));
        if self.version != (1, 1) {
            return fail(format!("version {}.{} of VDI is not supported: 1.1 is", self.version.0, self.version.1));
        }
        let is_possible = match self.kind {
            1 | 2 => !self.has_parent(),
            4 => self.parent != [0; 16],
            _ => false,
        };
        if !is_possible {
            return fail(format!(
                "VDI images of the kind {} with the parent {} are not supported: dynamic and fixed ones without a \
                 parent are, and differencing ones with one",
                self.kind_name(),
                uuid(&self.parent)
            ));
        }
        if self.sector != 512 {
            return fail(format!("sectors of {} bytes are not supported: 512 is the size", self.sector));
        }
        if !self.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block) {
            return fail(format!(
                "blocks of {} bytes are not supported: a power of two from {MIN_BLOCK} to {MAX_BLOCK} is",
                self.block
            ));
        }
        if self.extra != 0 {
            return fail(format!("blocks with {} more bytes each are not supported", self.extra));
        }
        let holds = u64::from(self.blocks) * u64::from(self.block);
        if self.disk > holds {
            return fail(format!(
                "the disk has {} bytes, and its {} blocks of {} bytes hold {holds}",
                self.disk, self.blocks, self.block
            ));
        }
        check_table(below, "the block map", self.map, u64::from(self.blocks) * 4)
    }

    /// VirtualBox makes images of any size. A disk has whole sectors.
    fn size(&self) -> u64 {
        self.disk.next_multiple_of(512)
    }
}

/// As VirtualBox shows it.
fn uuid(bytes: &[u8; 16]) -> String {
    Guid(*bytes).to_string().to_lowercase()
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let header = VdiHeader::read(&**below)?;
    let mut report = Report { size: header.disk.checked_next_multiple_of(512), ..Report::default() };
    report.fact("version", format!("{}.{}", header.version.0, header.version.1));
    report.fact("kind", header.kind_name());
    report.fact("block size", header.block);
    report.fact("blocks", header.blocks);
    report.fact("allocated blocks", header.allocated);
    if !header.description.is_empty() {
        report.fact("description", quoted(&header.description));
    }
    if header.has_parent() {
        report.danger(format!("it needs a parent image: {}", uuid(&header.parent)));
    }
    if let Err(Error::Image(line)) = header.check(&**below) {
        report.danger(format!("it cannot be read: {line}"));
    }
    Ok(report)
}

/// Where the blocks are.
pub struct VdiBlocks {
    tables: BlockCache,
    header: VdiHeader,
    parent: Option<(Rc<dyn Source>, u64)>,
}

impl Vdi {
    /// Opens an image. `parent` is the disk of which a differencing image holds what differs.
    ///
    /// # Errors
    /// Those of the source. A line if the image is wrong or not supported, or if it needs a parent
    /// that is not given.
    pub fn open(below: Rc<dyn Source>, parent: Option<Rc<dyn Source>>) -> Result<Vdi, Error> {
        let header = VdiHeader::read(&*below)?;
        header.check(&*below)?;
        match &parent {
            None if header.is_differencing() => {
                return Err(Error::image(format!(
                    "the image holds only what differs from the image {}: give that disk as vdi-parent=DISK",
                    uuid(&header.parent)
                )));
            }
            Some(_) if !header.is_differencing() => {
                return Err(Error::image("vdi-parent is given, and the image has no parent"));
            }
            _ => {}
        }
        let parent = parent.map(|parent| (parent, 0));
        Ok(MappedImage(VdiBlocks { tables: block_map::table_cache(&below), header, parent }))
    }
}

impl BlockMap for VdiBlocks {
    fn size(&self) -> u64 {
        self.header.size()
    }

    fn stored_in(&self) -> &dyn Source {
        &**self.tables.source()
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let header = &self.header;
        let block = u64::from(header.block);
        let (number, within) = (offset / block, offset % block);
        let stored = u32::from_le_bytes(self.tables.array(header.map + number * 4)?);
        let place = match stored {
            NEVER_WRITTEN => BlockPlace::Absent,
            DISCARDED => BlockPlace::Zero,
            _ => {
                let at = header.data + u64::from(stored) * block;
                check_block(self.stored_in(), || format!("block {number}"), at)?;
                BlockPlace::Stored(at + within)
            }
        };
        Ok((place, block - within))
    }

    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        self.parent.as_ref()
    }

    fn is_fixed(&self) -> bool {
        self.header.kind == 2
    }

    fn description(&self) -> Option<String> {
        Some(format!("VDI image, {}", self.header.kind_name()))
    }
}

#[cfg(test)]
mod tests;
