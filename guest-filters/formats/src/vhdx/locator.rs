//! The parent locator: what a differencing disk says of its parent.
//!
//! It is a list of keys and values, both text. The identifier of the parent is compared with the
//! parent that the operator gave. The paths are for people: no file is opened by them.

use std::ops::Range;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

use super::header::utf16;
use crate::guid::Guid;

/// The type of locator whose parent is a VHDX image.
const VHDX: Guid = Guid::new(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

/// Keys that are known. Values of others are not read.
const LINKAGES: [&str; 2] = ["parent_linkage", "parent_linkage2"];
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// No known key has more bytes in UTF-16.
const MOST_KEY: u16 = 64;

/// What a locator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentLocator {
    /// The identifiers of the parent, either of which may be right.
    pub linkages: Vec<String>,
    /// The paths of the parent.
    pub paths: Vec<String>,
}

impl ParentLocator {
    /// Reads the locator, an item of the metadata.
    ///
    /// # Errors
    /// Those of the image. A line if the locator is wrong.
    pub fn read(image: &dyn Source, range: &Range<u64>) -> Result<ParentLocator, Error> {
        // An item has at most 1 MiB.
        let bytes = image::read(image, range.start, (range.end - range.start) as usize)?;
        let fields = Fields::little(&bytes, "the parent locator");
        let kind = Guid::read(fields, 0)?;
        if kind != VHDX {
            return Err(Error::image(format!("the parent locator has the type {kind}: {VHDX} is supported")));
        }
        let mut locator = ParentLocator::default();
        let mut seen = [false; LINKAGES.len() + PATHS.len()];
        for n in 0..usize::from(fields.u16(18)?) {
            let at = 20 + n * 12;
            let text = |offset: u32, length: u16| match fields.bytes(offset as usize, length.into()) {
                Ok(bytes) if offset != 0 && length != 0 && length.is_multiple_of(2) => Ok(bytes),
                _ => Err(Error::image(format!(
                    "entry {n} of the parent locator has a text of {length} bytes at {offset}, and the locator {}",
                    fields.len()
                ))),
            };
            let key = text(fields.u32(at)?, fields.u16(at + 8)?)?;
            let value = text(fields.u32(at + 4)?, fields.u16(at + 10)?)?;
            if key.len() > usize::from(MOST_KEY) {
                continue;
            }
            let key = utf16(key);
            let Some(known) = LINKAGES.iter().chain(&PATHS).position(|known| *known == key) else { continue };
            if std::mem::replace(&mut seen[known], true) {
                return Err(Error::image(format!("the parent locator has {key} twice")));
            }
            if known < LINKAGES.len() { &mut locator.linkages } else { &mut locator.paths }.push(utf16(value));
        }
        Ok(locator)
    }

    /// The paths for a message: `'..\base.vhdx' and 'C:\base.vhdx'`.
    pub fn names(&self) -> String {
        if self.paths.is_empty() {
            return "no file".into();
        }
        self.paths.iter().map(|path| quoted(path.as_bytes())).collect::<Vec<_>>().join(" and ")
    }

    /// # Errors
    /// A line if the parent with this identifier is not the one that the locator names.
    pub fn check(&self, parent: Guid) -> Result<(), Error> {
        let is_named = |text: &String| {
            let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
            Guid::parse(text) == Some(parent)
        };
        if self.linkages.iter().any(is_named) {
            return Ok(());
        }
        let named = self.linkages.iter().map(|text| quoted(text.as_bytes())).collect::<Vec<_>>().join(" or ");
        let named = if named.is_empty() { "no identifier".into() } else { named };
        Err(Error::image(format!(
            "vhdx-parent= is not the disk that the image was made for, or was changed since: the image names {named}, \
             and the parent has {{{parent}}}"
        )))
    }
}
