//! The system use field of a record: Rock Ridge.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

/// The field goes on in at most so many other places.
const MOST_AREAS: u32 = 32;

/// Bytes of a name or a link that are put together from pieces.
const LONGEST: usize = 4096;

/// Where the field goes on: in blocks of the volume.
pub struct SystemUse<'a> {
    pub source: &'a dyn Source,
    pub block: u64,
}

/// What Rock Ridge says of a file.
#[derive(Clone, Debug, Default)]
pub struct Rock {
    pub name: Option<Vec<u8>>,
    pub mode: Option<u32>,
    pub link: Option<Vec<u8>>,
    /// The directory is elsewhere, at this block.
    pub child: Option<u32>,
    /// It is a directory that was moved here.
    pub is_moved: bool,
    pub is_compressed: bool,
    pub is_sparse: bool,
}

impl Rock {
    pub fn parse(field: &[u8], system: &SystemUse<'_>) -> Result<Rock, Error> {
        let mut rock = Rock::default();
        let mut link = Link::default();
        let mut area = field.to_vec();
        let mut areas = 0;
        while let Some((block, offset, length)) = rock.add(&area, &mut link)? {
            areas += 1;
            let start = u64::from(block) * system.block + u64::from(offset);
            if areas > MOST_AREAS || u64::from(length) > system.block {
                return Err(Error::image("the Rock Ridge field of a file goes on too often, or at a wrong place"));
            }
            area = image::read(system.source, start, length as usize)?;
        }
        rock.link = link.is_there.then_some(link.path);
        Ok(rock)
    }

    /// Reads one area. Returns where the field goes on.
    fn add(&mut self, area: &[u8], link: &mut Link) -> Result<Option<(u32, u32, u32)>, Error> {
        let mut at = 0;
        let mut more = None;
        while at + 4 <= area.len() {
            let length = usize::from(area[at + 2]);
            if length < 4 || at + length > area.len() {
                break;
            }
            let entry = &area[at..at + length];
            let fields = Fields::little(entry, "a Rock Ridge entry");
            match &entry[..2] {
                b"NM" if fields.u8(4)? & 6 == 0 => {
                    let name = self.name.get_or_insert_default();
                    name.extend(&entry[5..]);
                    if name.len() > LONGEST {
                        return Err(Error::image("the name of a file has more than 4096 bytes"));
                    }
                }
                b"PX" => self.mode = Some(fields.u32(4)?),
                b"SL" => link.add(entry.get(5..).unwrap_or_default())?,
                b"CL" => self.child = Some(fields.u32(4)?),
                b"RE" => self.is_moved = true,
                b"ZF" => self.is_compressed = true,
                b"SF" => self.is_sparse = true,
                b"CE" => more = Some((fields.u32(4)?, fields.u32(12)?, fields.u32(20)?)),
                b"ST" => break,
                _ => {}
            }
            at += length;
        }
        Ok(more)
    }
}

/// The path of a symbolic link, as it grows.
#[derive(Default)]
struct Link {
    path: Vec<u8>,
    is_there: bool,
    /// The last name goes on in the next piece.
    goes_on: bool,
}

impl Link {
    fn add(&mut self, mut pieces: &[u8]) -> Result<(), Error> {
        self.is_there = true;
        while let [flags, length, rest @ ..] = pieces {
            let length = usize::from(*length).min(rest.len());
            let (text, rest) = rest.split_at(length);
            if !self.goes_on && !self.path.is_empty() && !self.path.ends_with(b"/") {
                self.path.push(b'/');
            }
            match flags & 0xe {
                2 => self.path.push(b'.'),
                4 => self.path.extend(b".."),
                8 => self.path = b"/".to_vec(),
                _ => self.path.extend(text),
            }
            self.goes_on = flags & 1 != 0;
            pieces = rest;
            if self.path.len() > LONGEST {
                return Err(Error::image("a symbolic link has more than 4096 bytes"));
            }
        }
        Ok(())
    }
}
