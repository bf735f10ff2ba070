//! The property list of an image: XML of the few elements that Apple's lists have.
//!
//! The list of a large image has tens of megabytes, nearly all of it tables in base64. So it is
//! read in windows, and the bytes of a table go to their reader as they come. What stands elsewhere
//! in the list is only checked for its shape.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rbdkit_filter_sdk::image::{Error, Source, quoted, read};

use super::table::{Index, TableReader};
use super::trailer::Koly;

/// The longest list that is read. The tables of the most chunks have 28 MiB, and 38 MiB in base64.
const MOST_LIST: u64 = 64 << 20;

/// Bytes that are read at once.
const WINDOW: u64 = 128 << 10;

/// The deepest nesting. Apple's lists have 6 levels.
const MOST_DEPTH: usize = 16;

/// The longest tag, and how much of a key is kept.
const MOST_TAG: usize = 1024;
const MOST_KEY: usize = 64;

/// Characters of base64 that are decoded at once.
const CHARACTERS: usize = 4096;

/// Where the tables are: the elements from the outermost on, and in each dictionary the key.
const TABLES: [(&[u8], &[u8]); 6] = [
    (b"plist", b""),
    (b"dict", b"resource-fork"),
    (b"dict", b"blkx"),
    (b"array", b""),
    (b"dict", b"Data"),
    (b"data", b""),
];

/// Reads all tables of the list.
///
/// # Errors
/// Those of the source. A line if the list or a table is wrong.
pub(super) fn tables(below: &Rc<dyn Source>, koly: &Koly, index: &mut Index) -> Result<(), Error> {
    let list = koly.list;
    if list.length > MOST_LIST {
        return Err(Error::Image(format!(
            "the property list has {} bytes: at most {MOST_LIST} are supported",
            list.length
        )));
    }
    let mut text = Text { below: &**below, at: list.start, end: list.end(), window: Vec::new(), read: 0 };
    let mut open: Vec<Element> = Vec::new();
    let mut is_over = false;
    loop {
        let is_table = is_table(&open);
        let mut table = if is_table { Some(Encoded::new(TableReader::new(koly, index)?)) } else { None };
        while let Some(part) = text.before_tag()? {
            match (&mut table, open.last_mut()) {
                (Some(table), _) => table.push(part)?,
                (None, Some(element)) => element.take(part)?,
                (None, None) => no_text(part)?,
            }
        }
        let Some(tag) = text.tag()? else { break };
        match Tag::of(&tag)? {
            Tag::Other => {}
            Tag::Open(name) | Tag::Empty(name) if is_over || table.is_some() => {
                return Err(wrong(format!("has the element {} where none can be", quoted(name))));
            }
            Tag::Open(name) => {
                if open.len() == MOST_DEPTH {
                    return Err(wrong(format!("nests more than {MOST_DEPTH} elements")));
                }
                open.push(Element { name: name.to_vec(), text: Vec::new(), key: Vec::new() });
            }
            Tag::Empty(_) => {}
            Tag::Close(name) => {
                let Some(closed) = open.pop().filter(|element| element.name == name) else {
                    return Err(wrong(format!("closes the element {}, which is not open there", quoted(name))));
                };
                if let Some(table) = table {
                    table.finish()?;
                }
                if let Some(outer) = open.last_mut().filter(|_| closed.name == b"key") {
                    outer.key = closed.text;
                }
                is_over = open.is_empty();
            }
        }
    }
    if !is_over {
        return Err(wrong("ends within an element".into()));
    }
    Ok(())
}

fn wrong(what: String) -> Error {
    Error::Image(format!("the property list {what}"))
}

/// # Errors
/// A line if there is text where only elements can be.
fn no_text(part: &[u8]) -> Result<(), Error> {
    let text = part.trim_ascii();
    if text.is_empty() { Ok(()) } else { Err(wrong(format!("has the text {} between elements", quoted(text)))) }
}

/// An element that is open.
struct Element {
    name: Vec<u8>,
    /// Of a key, as much as can be one of those that are looked for.
    text: Vec<u8>,
    /// Of a dictionary, the last key.
    key: Vec<u8>,
}

impl Element {
    fn take(&mut self, part: &[u8]) -> Result<(), Error> {
        match &self.name[..] {
            b"plist" | b"dict" | b"array" => no_text(part)?,
            b"key" => {
                let room = MOST_KEY - self.text.len();
                self.text.extend_from_slice(&part[..part.len().min(room)]);
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_table(open: &[Element]) -> bool {
    open.len() == TABLES.len()
        && open
            .iter()
            .zip(TABLES)
            .all(|(element, (name, key))| element.name == name && (key.is_empty() || element.key == key))
}

/// What a tag does.
enum Tag<'a> {
    Open(&'a [u8]),
    Empty(&'a [u8]),
    Close(&'a [u8]),
    /// Comments, the declaration of XML, and that of the type.
    Other,
}

impl Tag<'_> {
    /// Reads what stands between the angle brackets.
    fn of(text: &[u8]) -> Result<Tag<'_>, Error> {
        let name = |text: &[u8]| text.split(u8::is_ascii_whitespace).next().unwrap_or_default().len();
        match text {
            [b'?', ..] => Ok(Tag::Other),
            [b'!', b'-', b'-', ..] => Ok(Tag::Other),
            // Entities could be declared there. Without a list of declarations there are none.
            [b'!', rest @ ..] if rest.starts_with(b"DOCTYPE") && !rest.contains(&b'[') => Ok(Tag::Other),
            [b'/', rest @ ..] => Ok(Tag::Close(&rest[..name(rest)])),
            [first, ..] if first.is_ascii_alphabetic() => match text.strip_suffix(b"/") {
                Some(rest) => Ok(Tag::Empty(&rest[..name(rest)])),
                None => Ok(Tag::Open(&text[..name(text)])),
            },
            _ => Err(wrong(format!("has the tag {}, which is not supported", quoted(text)))),
        }
    }
}

/// The list, a window at a time.
struct Text<'a> {
    below: &'a dyn Source,
    /// Where the window ends in the file, and where the list does.
    at: u64,
    end: u64,
    window: Vec<u8>,
    /// How much of the window was read.
    read: usize,
}

impl Text<'_> {
    /// What is left of the window, which is only empty at the end.
    fn left(&mut self) -> Result<&[u8], Error> {
        if self.read == self.window.len() {
            let length = WINDOW.min(self.end - self.at);
            self.window = read(self.below, self.at, length as usize)?;
            self.at += length;
            self.read = 0;
        }
        Ok(&self.window[self.read..])
    }

    /// The next piece of the text before a tag. None if there is the tag, or the end.
    fn before_tag(&mut self) -> Result<Option<&[u8]>, Error> {
        let left = self.left()?;
        let length = left.iter().position(|byte| *byte == b'<').unwrap_or(left.len());
        if length == 0 {
            return Ok(None);
        }
        self.read += length;
        Ok(Some(&self.window[self.read - length..self.read]))
    }

    /// What stands between the angle brackets that follow. None at the end.
    fn tag(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut tag = Vec::new();
        if self.left()?.is_empty() {
            return Ok(None);
        }
        self.read += 1;
        loop {
            let left = self.left()?;
            let Some(&byte) = left.first() else { return Err(wrong("ends within a tag".into())) };
            self.read += 1;
            let is_comment = tag.starts_with(b"!--");
            if byte == b'>' && (!is_comment || tag.len() >= 5 && tag.ends_with(b"--")) {
                return Ok(Some(tag));
            }
            if tag.len() == MOST_TAG {
                if !is_comment {
                    return Err(wrong(format!("has a tag of more than {MOST_TAG} bytes")));
                }
                // Of a long comment its beginning and its end are enough.
                tag.drain(3..MOST_TAG - 2);
            }
            tag.push(byte);
        }
    }
}

/// A table in base64.
struct Encoded<'a> {
    table: TableReader<'a>,
    characters: Vec<u8>,
    /// Padding came: nothing may follow.
    is_padded: bool,
}

impl<'a> Encoded<'a> {
    fn new(table: TableReader<'a>) -> Encoded<'a> {
        Encoded { table, characters: Vec::with_capacity(CHARACTERS), is_padded: false }
    }

    fn push(&mut self, part: &[u8]) -> Result<(), Error> {
        for byte in part.iter().filter(|byte| !byte.is_ascii_whitespace()) {
            self.characters.push(*byte);
            if self.characters.len() == CHARACTERS {
                self.decode()?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// A line if the characters are not base64, and those of the table.
    fn decode(&mut self) -> Result<(), Error> {
        let decoded = STANDARD.decode(&self.characters).ok().filter(|_| !self.is_padded || self.characters.is_empty());
        let Some(bytes) = decoded else { return Err(self.table.wrong("is not in base64".into())) };
        self.is_padded |= self.characters.ends_with(b"=");
        self.characters.clear();
        self.table.push(&bytes)
    }

    fn finish(mut self) -> Result<(), Error> {
        self.decode()?;
        self.table.finish()
    }
}
