//! The central directory, and the local header of one member.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

/// The directory has at most this many entries and bytes. They are read in about a second.
pub const MOST_ENTRIES: u64 = 1_000_000;
pub const MOST_BYTES: u64 = 256 << 20;

/// How much of the directory is read at once, in bytes. No entry is larger: its three texts have 16
/// bits for their lengths.
const WINDOW: u64 = 256 << 10;

/// The record at the end of an archive has 22 bytes and a comment.
const END: u64 = 22;

/// Where the directory is.
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    pub start: u64,
    pub end: u64,
    pub count: u64,
}

impl Directory {
    /// Finds the directory from the end of the archive.
    ///
    /// # Errors
    /// A line if there is none, or if two records claim to be the end.
    pub fn find(image: &dyn Source) -> Result<Directory, Error> {
        let length = (END + 0xffff).min(image.size());
        let from = image.size() - length;
        let tail = image::read(image, from, length as usize)?;
        let is_end = |at: &usize| {
            let rest = &tail[*at..];
            rest.starts_with(b"PK\x05\x06") && rest.len() >= 22 && {
                rest.len() - 22 == usize::from(u16::from_le_bytes([rest[20], rest[21]]))
            }
        };
        let ends: Vec<usize> = (0..tail.len()).filter(is_end).collect();
        let &[at] = ends.as_slice() else {
            return Err(Error::image(match ends.len() {
                0 => "it is not a zip archive, or it was cut: it has no end of a central directory".to_string(),
                count => {
                    format!("the archive has {count} ends of a central directory: programs do not agree which counts")
                }
            }));
        };
        let fields = Fields::little(&tail[at..], "the end of the central directory");
        let at = from + at as u64;
        let (disk, disk_of_start) = (fields.u16(4)?, fields.u16(6)?);
        let (here, all) = (u64::from(fields.u16(8)?), u64::from(fields.u16(10)?));
        let (size, start) = (u64::from(fields.u32(12)?), u64::from(fields.u32(16)?));
        let mut directory = Directory { start, end: at, count: all };
        let mut told = size;
        let locator = at.checked_sub(20).map(|place| image::read(image, place, 20)).transpose()?;
        if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
            (directory, told) = large(image, &locator, at - 20, &fields)?;
        } else if disk != 0 || disk_of_start != 0 || here != all {
            return Err(Error::image("the archive is split into several files, which is not supported"));
        }
        if directory.start.checked_add(told) != Some(directory.end) {
            return Err(Error::image(format!(
                "the central directory has {told} bytes from {} on, and does not end where its end \
                 record begins, at {}",
                directory.start, directory.end
            )));
        }
        if directory.count > MOST_ENTRIES || told > MOST_BYTES {
            return Err(Error::image(format!(
                "the central directory has {} members in {told} bytes; at most {MOST_ENTRIES} in {MOST_BYTES} are read",
                directory.count
            )));
        }
        Ok(directory)
    }
}

/// The directory as the record with 64 bits has it. Returns how many bytes it says, too.
fn large(image: &dyn Source, locator: &[u8], locator_at: u64, small: &Fields) -> Result<(Directory, u64), Error> {
    let locator = Fields::little(locator, "the zip64 locator");
    let at = locator.u64(8)?;
    let place = locator_at.checked_sub(56);
    if place != Some(at) {
        return Err(Error::image(format!(
            "the zip64 end record is said to be at {at}, and its locator is at {locator_at}"
        )));
    }
    let record = image::read(image, at, 56)?;
    let fields = Fields::little(&record, "the zip64 end record");
    if fields.bytes(0, 4)? != b"PK\x06\x06" {
        return Err(Error::image(format!("the zip64 end record at {at} has no signature")));
    }
    if fields.u32(16)? != 0 || fields.u32(20)? != 0 || fields.u64(24)? != fields.u64(32)? {
        return Err(Error::image("the archive is split into several files, which is not supported"));
    }
    let (count, size, start) = (fields.u64(32)?, fields.u64(40)?, fields.u64(48)?);
    let agree = |small: u64, large: u64, most: u64| small == most || small == large;
    if !agree(small.u16(10)?.into(), count, 0xffff)
        || !agree(small.u32(12)?.into(), size, 0xffff_ffff)
        || !agree(small.u32(16)?.into(), start, 0xffff_ffff)
    {
        return Err(Error::image("the two end records of the archive, with 32 and with 64 bits, do not agree"));
    }
    Ok((Directory { start, end: at, count }, size))
}

/// A member as the central directory describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where the entry is.
    pub at: u64,
    pub name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub stored: u64,
    pub size: u64,
    pub local: u64,
    pub is_symbolic_link: bool,
    /// The bytes of the entry itself.
    length: u64,
}

impl Entry {
    pub fn is_directory(&self) -> bool {
        self.name.ends_with(b"/")
    }

    fn parse(bytes: &[u8], at: u64) -> Result<Entry, Error> {
        let what = format!("the entry of the central directory at {at}");
        let fields = Fields::little(bytes, &what);
        if fields.bytes(0, 4)? != b"PK\x01\x02" {
            return Err(Error::image(format!("{what} has no signature")));
        }
        let (name, extra, comment) = (fields.u16(28)?, fields.u16(30)?, fields.u16(32)?);
        let (name, extra, comment) = (usize::from(name), usize::from(extra), usize::from(comment));
        let mut entry = Entry {
            at,
            name: fields.bytes(46, name)?.to_vec(),
            flags: fields.u16(8)?,
            method: fields.u16(10)?,
            crc: fields.u32(16)?,
            stored: fields.u32(20)?.into(),
            size: fields.u32(24)?.into(),
            local: fields.u32(42)?.into(),
            is_symbolic_link: fields.u8(5)? == 3 && fields.u32(38)? >> 28 == 0xa,
            length: (46 + name + extra + comment) as u64,
        };
        fields.bytes(46 + name + extra, comment)?;
        let places = [&mut entry.size, &mut entry.stored, &mut entry.local];
        replace_saturated(fields.bytes(46 + name, extra)?, places, &what)?;
        Ok(entry)
    }
}

/// Replaces numbers that have all 32 bits set by those of the extra field with 64 bits.
fn replace_saturated<const N: usize>(extra: &[u8], places: [&mut u64; N], what: &str) -> Result<(), Error> {
    let fields = Fields::little(extra, what);
    let (mut at, mut found) = (0, None);
    while at + 4 <= extra.len() {
        let (kind, length) = (fields.u16(at)?, usize::from(fields.u16(at + 2)?));
        let body = fields.bytes(at + 4, length)?;
        if kind == 1 {
            if found.is_some() {
                return Err(Error::image(format!("{what} has two zip64 fields")));
            }
            found = Some(body);
        }
        at += 4 + length;
    }
    let fields = Fields::little(found.unwrap_or_default(), what);
    let mut at = 0;
    for place in places {
        if *place == 0xffff_ffff && found.is_some() {
            *place = fields.u64(at)?;
            at += 8;
        }
    }
    Ok(())
}

/// Reads entries one after the other.
pub struct Entries {
    image: Rc<dyn Source>,
    directory: Directory,
    at: u64,
    read: u64,
    window: (u64, Vec<u8>),
}

impl Entries {
    pub fn new(image: Rc<dyn Source>, directory: Directory) -> Entries {
        Entries { image, directory, at: directory.start, read: 0, window: (0, Vec::new()) }
    }

    /// The entry at an offset.
    pub fn at(&mut self, at: u64) -> Result<Entry, Error> {
        let end = |window: &(u64, Vec<u8>)| window.0 + window.1.len() as u64;
        // 46 bytes and three texts.
        let most = (46 + 3 * 0xffff).min(self.directory.end.saturating_sub(at));
        if at < self.window.0 || at + most > end(&self.window) {
            let length = WINDOW.min(self.directory.end.saturating_sub(at));
            self.window = (at, image::read(&*self.image, at, length as usize)?);
        }
        Entry::parse(&self.window.1[(at - self.window.0) as usize..], at)
    }

    /// The next entry. None at the end of the directory.
    ///
    /// # Errors
    /// A line if an entry is wrong, or there are more or fewer than the end record says.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.at == self.directory.end {
            if self.read != self.directory.count {
                return Err(Error::image(format!(
                    "the central directory has {} members, and its end record says {}",
                    self.read, self.directory.count
                )));
            }
            return Ok(None);
        }
        if self.read == self.directory.count {
            return Err(Error::image(format!(
                "the central directory has more members than its end record says, {}",
                self.read
            )));
        }
        let entry = self.at(self.at)?;
        self.at += entry.length;
        self.read += 1;
        Ok(Some(entry))
    }
}

/// Reads the local header of a member and what follows its data, and compares both with the
/// central directory. Returns where the data begins.
///
/// # Errors
/// A line if they do not agree.
pub fn data_of(image: &dyn Source, directory: &Directory, entry: &Entry) -> Result<u64, Error> {
    let name = quoted(&entry.name);
    let differs = |what: &str| {
        Error::image(format!(
            "{name}: the local header at {} and the central directory do not agree: {what}",
            entry.local
        ))
    };
    let beyond = || {
        Error::image(format!("{name} is not within the archive: it has {} bytes from {} on", entry.stored, entry.local))
    };
    let start = entry.local.checked_add(30).filter(|end| *end <= directory.start).ok_or_else(beyond)?;
    let header = image::read(image, entry.local, 30)?;
    let fields = Fields::little(&header, "a local header");
    if fields.bytes(0, 4)? != b"PK\x03\x04" {
        return Err(Error::image(format!("{name} has no local header at {}", entry.local)));
    }
    let (name_length, extra_length) = (u64::from(fields.u16(26)?), u64::from(fields.u16(28)?));
    let data = start + name_length + extra_length;
    let end = data.checked_add(entry.stored).filter(|end| *end <= directory.start).ok_or_else(beyond)?;
    let texts = image::read(image, start, (name_length + extra_length) as usize)?;
    let (local_name, extra) = texts.split_at(name_length as usize);
    if local_name != entry.name {
        return Err(differs(&format!("the name is {}", quoted(local_name))));
    }
    if fields.u16(8)? != entry.method {
        return Err(differs(&format!("methods {} and {}", fields.u16(8)?, entry.method)));
    }
    if (fields.u16(6)? ^ entry.flags) & 9 != 0 {
        return Err(differs(&format!("flags {:#x} and {:#x}", fields.u16(6)?, entry.flags)));
    }
    let (mut size, mut stored) = (u64::from(fields.u32(22)?), u64::from(fields.u32(18)?));
    replace_saturated(extra, [&mut size, &mut stored], "a local header")?;
    let told = (fields.u32(14)?, stored, size);
    let right = (entry.crc, entry.stored, entry.size);
    if entry.flags & 8 == 0 {
        if told != right {
            return Err(differs(&format!("checksum and sizes {told:x?} and {right:x?}")));
        }
        return Ok(data);
    }
    // The numbers come after the data. In the header they are 0, or already known.
    for (told, right) in [(u64::from(told.0), u64::from(right.0)), (told.1, right.1), (told.2, right.2)] {
        if told != 0 && told != right && told != 0xffff_ffff {
            return Err(differs(&format!("{told:x} and {right:x} among checksum and sizes")));
        }
    }
    let after = image::read(image, end, (directory.start - end).min(24) as usize)?;
    let mut small = entry.crc.to_le_bytes().to_vec();
    let mut large = small.clone();
    for number in [entry.stored, entry.size] {
        small.extend((number as u32).to_le_bytes());
        large.extend(number.to_le_bytes());
    }
    let bare = after.strip_prefix(b"PK\x07\x08").unwrap_or(&after);
    let is_small = entry.stored.max(entry.size) <= 0xffff_ffff && bare.starts_with(&small);
    if !is_small && !bare.starts_with(&large) {
        return Err(Error::image(format!(
            "{name}: what follows its data, at {end}, and the central directory do not agree"
        )));
    }
    Ok(data)
}
