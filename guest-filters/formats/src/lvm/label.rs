//! From the label of a physical volume to the text of its metadata.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

use crate::checksum::crc32_raw;

const SECTOR: u64 = 512;

/// The checksums begin with this number.
const FIRST_CRC: u32 = 0xf597_a6cf;

/// A metadata text may have this many bytes. LVM reserves 1 MiB for an area.
const MOST_TEXT: u64 = 1 << 20;

/// At most this many areas of one kind are read. LVM makes one or two.
const MOST_AREAS: usize = 16;

const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// What the label says.
pub struct Label {
    /// The identifier of the physical volume: 32 characters.
    pub id: String,
    /// Where metadata is: offset and size in bytes.
    areas: Vec<(u64, u64)>,
}

/// The sector of the label, one of the first four. None if there is none.
pub fn find(image: &dyn Source) -> Result<Option<u64>, Error> {
    for sector in 0..4 {
        if image.size() >= (sector + 1) * SECTOR {
            let bytes = image::read(image, sector * SECTOR, 32)?;
            if bytes.starts_with(b"LABELONE") && bytes.ends_with(b"LVM2 001") {
                return Ok(Some(sector));
            }
        }
    }
    Ok(None)
}

impl Label {
    /// # Errors
    /// A line if there is no label, or it is wrong.
    pub fn read(image: &dyn Source) -> Result<Label, Error> {
        let sector = find(image)?.ok_or_else(|| {
            Error::image("it is not a physical volume of LVM2: none of the first four sectors has its label")
        })?;
        let bytes = image::read(image, sector * SECTOR, SECTOR as usize)?;
        let fields = Fields::little(&bytes, "the label of LVM");
        if fields.u64(8)? != sector {
            return Err(Error::image(format!(
                "the label of LVM in sector {sector} says that it is in {}",
                fields.u64(8)?
            )));
        }
        if crc32_raw(FIRST_CRC, &bytes[20..]) != fields.u32(16)? {
            return Err(Error::image(format!("the label of LVM in sector {sector} has a wrong checksum")));
        }
        let mut at = fields.u32(20)? as usize;
        let id = fields.bytes(at, 32)?;
        if !id.iter().all(u8::is_ascii_graphic) {
            return Err(Error::image(format!("the identifier of the physical volume is {}", quoted(id))));
        }
        let id = String::from_utf8_lossy(id).into_owned();
        at = at.saturating_add(40);
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            loop {
                let (offset, size) = (fields.u64(at)?, fields.u64(at.saturating_add(8))?);
                at = at.saturating_add(16);
                if offset == 0 {
                    break;
                }
                if list.len() == MOST_AREAS {
                    return Err(Error::image(format!("the label of LVM names more than {MOST_AREAS} areas")));
                }
                list.push((offset, size));
            }
        }
        let [_, areas] = lists;
        Ok(Label { id, areas })
    }

    /// The texts of the areas that have one. Others of the volume group may have them instead.
    ///
    /// # Errors
    /// A line if an area is wrong.
    pub fn texts(&self, image: &dyn Source) -> Result<Vec<Vec<u8>>, Error> {
        let mut texts = Vec::new();
        for (offset, _) in &self.areas {
            texts.extend(text_of(image, *offset)?);
        }
        Ok(texts)
    }
}

fn text_of(image: &dyn Source, area: u64) -> Result<Option<Vec<u8>>, Error> {
    let what = format!("the metadata area of LVM at {area}");
    let wrong = |why: String| Error::image(format!("{what} {why}"));
    let header = image::read(image, area, SECTOR as usize)?;
    let fields = Fields::little(&header, &what);
    if crc32_raw(FIRST_CRC, &header[4..]) != fields.u32(0)? {
        return Err(wrong("has a wrong checksum".into()));
    }
    if fields.bytes(4, 16)? != AREA_MAGIC || fields.u32(20)? != 1 || fields.u64(24)? != area {
        return Err(wrong("has a header that is not of version 1, or of another place".into()));
    }
    let area_size = fields.u64(32)?;
    let (offset, size, crc, flags) = (fields.u64(40)?, fields.u64(48)?, fields.u32(56)?, fields.u32(60)?);
    if offset == 0 || flags & 1 != 0 {
        return Ok(None);
    }
    if size > MOST_TEXT || offset < SECTOR || offset >= area_size || size > area_size - SECTOR {
        return Err(wrong(format!(
            "of {area_size} bytes says that its text has {size} bytes at {offset}; at most {MOST_TEXT} are read"
        )));
    }
    // The area is a ring behind its header.
    let first = size.min(area_size - offset);
    let place = area.checked_add(offset).ok_or_else(|| wrong("is beyond the end".into()))?;
    let mut text = image::read(image, place, first as usize)?;
    text.extend(image::read(image, area + SECTOR, (size - first) as usize)?);
    if crc32_raw(FIRST_CRC, &text) != crc {
        return Err(wrong("has a text with a wrong checksum".into()));
    }
    Ok(Some(text))
}
