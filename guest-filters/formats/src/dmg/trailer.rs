//! The trailer: the last 512 bytes of an image. It says where the data and the tables are.

use rbdkit_filter_sdk::image::{Error, Fields, Source, read};

use crate::block_map::check_table;

/// Bytes of the trailer, and of the sectors in which images count.
pub(super) const TRAILER: u64 = 512;
pub(super) const SECTOR: u64 = 512;

const SIGNATURE: [u8; 4] = *b"koly";

/// How an encrypted image of version 2 begins, and how one of version 1 ends.
const ENCRYPTED_BEGIN: [u8; 8] = *b"encrcdsa";
const ENCRYPTED_END: [u8; 8] = *b"cdsaencr";

/// The largest disk: its bytes fit into 63 bits.
const MAX_SECTORS: u64 = i64::MAX as u64 / SECTOR;

/// What the ends of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// It is an image.
    Koly,
    /// It is an encrypted image, of this version.
    Encrypted(u32),
    /// It is something else.
    Other,
}

impl Signature {
    /// # Errors
    /// Those of the source.
    pub(super) fn of(below: &dyn Source) -> Result<Signature, Error> {
        let size = below.size();
        if size < 8 {
            return Ok(Signature::Other);
        }
        let mut bytes = [0; 8];
        below.read(0, &mut bytes)?;
        if bytes == ENCRYPTED_BEGIN {
            return Ok(Signature::Encrypted(2));
        }
        below.read(size - 8, &mut bytes)?;
        if bytes == ENCRYPTED_END {
            return Ok(Signature::Encrypted(1));
        }
        if size < TRAILER {
            return Ok(Signature::Other);
        }
        below.read(size - TRAILER, &mut bytes)?;
        Ok(if bytes.starts_with(&SIGNATURE) { Signature::Koly } else { Signature::Other })
    }
}

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub start: u64,
    pub length: u64,
}

impl Area {
    /// The first byte behind it. The area has to be checked.
    pub(super) fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether a range has a byte of it.
    pub(super) fn overlaps(self, start: u64, end: u64) -> bool {
        start < self.end() && self.start < end
    }
}

/// What the trailer says.
pub(super) struct Koly {
    pub version: u32,
    pub flags: u32,
    pub running: u64,
    pub data: Area,
    pub fork: Area,
    pub segment: (u32, u32),
    pub checksum: u32,
    pub list: Area,
    pub variant: u32,
    pub sectors: u64,
    header: u32,
    /// Where the trailer is.
    at: u64,
}

impl Koly {
    /// # Errors
    /// Those of the source. A line if there is no trailer, or the image is encrypted.
    pub(super) fn read(below: &dyn Source) -> Result<Koly, Error> {
        match Signature::of(below)? {
            Signature::Koly => {}
            Signature::Encrypted(version) => {
                return Err(Error::Image(format!(
                    "the image is encrypted (version {version} of Apple's format), which is not supported: decrypt it \
                     first"
                )));
            }
            Signature::Other => {
                return Err(Error::image("it is not a DMG image: no trailer with the signature koly is at its end"));
            }
        }
        let at = below.size() - TRAILER;
        let bytes = read(below, at, TRAILER as usize)?;
        let fields = Fields::big(&bytes, "the trailer");
        let area = |at| Ok::<_, Error>(Area { start: fields.u64(at)?, length: fields.u64(at + 8)? });
        Ok(Koly {
            version: fields.u32(4)?,
            header: fields.u32(8)?,
            flags: fields.u32(12)?,
            running: fields.u64(16)?,
            data: area(24)?,
            fork: area(40)?,
            segment: (fields.u32(56)?, fields.u32(60)?),
            checksum: fields.u32(80)?,
            list: area(216)?,
            variant: fields.u32(488)?,
            sectors: fields.u64(492)?,
            at,
        })
    }

    /// # Errors
    /// A line that says what is wrong.
    pub(super) fn check(&self, below: &dyn Source) -> Result<(), Error> {
        let fail = |line: String| Err(Error::Image(line));
        if self.version != 4 {
            return fail(format!("version {} of DMG is not supported: 4 is", self.version));
        }
        if u64::from(self.header) != TRAILER {
            return fail(format!("the trailer says that it has {} bytes: {TRAILER} is the size", self.header));
        }
        let (segment, segments) = self.segment;
        if segments > 1 || segment > 1 {
            return fail(format!(
                "the image is part {segment} of {segments}, and images in several files are not supported: convert \
                 it into one file"
            ));
        }
        if self.sectors == 0 || self.sectors > MAX_SECTORS {
            return fail(format!("the disk has {} sectors: 1 to {MAX_SECTORS} are possible", self.sectors));
        }
        let areas = [(self.data, "the data"), (self.list, "the property list"), (self.fork, "the resource fork")];
        for (area, what) in areas.into_iter().filter(|(area, _)| area.length > 0) {
            check_table(below, what, area.start, area.length)?;
            if area.end() > self.at {
                return fail(format!("{what} ends at {}, and the trailer is at {}", area.end(), self.at));
            }
        }
        if self.list.length == 0 && self.fork.length == 0 {
            return fail("the image has neither a property list nor a resource fork: it has no tables".into());
        }
        Ok(())
    }

    /// Whether the image was made of a whole device or of one partition.
    pub(super) fn kind_name(&self) -> String {
        match self.variant {
            1 => "a device".into(),
            2 => "a partition".into(),
            variant => format!("kind {variant}"),
        }
    }

    pub(super) fn checksum_name(&self) -> String {
        match self.checksum {
            0 => "none".into(),
            2 => "CRC-32, not verified".into(),
            kind => format!("kind {kind}, not verified"),
        }
    }

    /// Where stored chunks may be. Some programs do not say how long the data is: then that is up
    /// to the trailer.
    pub(super) fn stored(&self) -> Area {
        match self.data.length {
            0 => Area { start: self.data.start, length: self.at.saturating_sub(self.data.start) },
            _ => self.data,
        }
    }
}
