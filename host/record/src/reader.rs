//! Reads a record, entry by entry. The file may be of any origin.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use rbdkit_plugin_api::text::plain;

use crate::decode::{Wrong, decode};
use crate::entry::{Call, ENTRY_HEADER, Entry, FILE_HEADER, Gate, Kind, MAGIC, MAX_BODY, Session, VERSION};

/// The most calls that have begun and not ended. A server answers at most 256 requests of a client
/// at once, so this is 256 busy clients.
const MAX_PENDING: usize = 1 << 16;

/// Why a record cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file. It is no source: its text is here already.
    #[error("{}", plain(.0))]
    Io(io::Error),
    /// A directory, a pipe or a device.
    #[error("is not a file")]
    NotAFile,
    /// Another file.
    #[error("is not a record of rbdkit --record")]
    NotARecord,
    /// A record of another version.
    #[error("is a record of version {0}, and this program reads versions 1 to {VERSION}")]
    Version(u32),
    /// An entry.
    #[error("byte {at}: {what}")]
    Entry { at: u64, what: EntryError },
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The numbers before its body.
    #[error("the entry's header is damaged")]
    Header,
    /// Its length.
    #[error("the entry is said to have {0} bytes, more than the {MAX_BODY} that are possible")]
    Length(u32),
    /// Its body.
    #[error("the entry is damaged (its checksum is wrong)")]
    Checksum,
    /// A field of it.
    #[error("{0}")]
    Field(#[from] Wrong),
    /// It cannot come here.
    #[error("{0}")]
    Order(String),
}

/// An entry, and where it stands in the file.
#[derive(Debug)]
pub struct Positioned<'a> {
    /// The first byte of its header.
    pub at: u64,
    /// The first byte behind its body. A payload of bytes is last in its body.
    pub end: u64,
    /// The entry.
    pub entry: Entry<'a>,
}

/// A call that has begun.
struct Pending {
    kind: Kind,
    range: Option<(u64, u64)>,
}

/// Reads a record from its beginning to its end.
pub struct Reader<R> {
    input: R,
    size: u64,
    at: u64,
    version: u32,
    body: Vec<u8>,
    session: Session,
    pending: HashMap<u64, Pending>,
    handles: HashMap<u32, Gate>,
    is_finished: bool,
    cut_at: Option<u64>,
}

impl Reader<BufReader<File>> {
    /// Opens a record.
    ///
    /// # Errors
    /// It cannot be read, or is no record of this version.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(ReadError::NotAFile);
        }
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Reader::new(BufReader::new(file), size)
    }
}

impl<R: Read> Reader<R> {
    /// Reads a record of `size` bytes.
    ///
    /// # Errors
    /// It cannot be read, or is no record of this version.
    pub fn new(mut input: R, size: u64) -> Result<Reader<R>, ReadError> {
        let mut header = [0; FILE_HEADER as usize];
        if size < FILE_HEADER {
            return Err(ReadError::NotARecord);
        }
        input.read_exact(&mut header)?;
        let [magic @ .., a, b, c, d] = header;
        if magic != MAGIC {
            return Err(ReadError::NotARecord);
        }
        let version = match u32::from_le_bytes([a, b, c, d]) {
            known @ 1..=VERSION => known,
            other => return Err(ReadError::Version(other)),
        };
        let mut reader = Reader {
            input,
            size,
            at: FILE_HEADER,
            version,
            body: Vec::new(),
            session: Session {
                program: String::new(),
                layer: String::new(),
                is_filter: false,
                has_payloads: false,
                began: 0,
                parameters: Vec::new(),
            },
            pending: HashMap::new(),
            handles: HashMap::new(),
            is_finished: false,
            cut_at: None,
        };
        let first = match reader.body()? {
            true => decode(&reader.body, version, |_| None).map_err(|wrong| failed(FILE_HEADER, wrong))?,
            false => return Err(failed(FILE_HEADER, order("the record ends before its first entry"))),
        };
        match first {
            Entry::Session(session) => reader.session = session,
            _ => return Err(failed(FILE_HEADER, order("the first entry does not say what is recorded"))),
        }
        Ok(reader)
    }

    /// What is recorded.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where the entry begins in whose middle the file ends, once [`Reader::next`] has given None.
    /// None: the file ends with a whole entry.
    pub fn cut_at(&self) -> Option<u64> {
        self.cut_at
    }

    /// The next entry. None at the end.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged. Nothing can be read after that.
    #[expect(clippy::should_implement_trait, reason = "an iterator's items cannot borrow from it")]
    pub fn next(&mut self) -> Result<Option<Positioned<'_>>, ReadError> {
        let at = self.at;
        if !self.body()? {
            return Ok(None);
        }
        if self.is_finished {
            return Err(failed(at, order("an entry follows the last one")));
        }
        let pending = &self.pending;
        let range_of = |number: u64| pending.get(&number).and_then(|call| call.range);
        let entry = decode(&self.body, self.version, range_of).map_err(|wrong| failed(at, wrong))?;
        match &entry {
            Entry::Session(_) => return Err(failed(at, order("a second entry says what is recorded"))),
            Entry::Finish(_) => self.is_finished = true,
            Entry::Start(start) => {
                let pending = Pending { kind: start.call.kind(), range: start.call.range() };
                if self.pending.insert(start.number, pending).is_some() {
                    return Err(failed(at, EntryError::Order(format!("call {} begins twice", start.number))));
                }
                if self.pending.len() > MAX_PENDING {
                    let what = format!("more than {MAX_PENDING} calls are under way at once");
                    return Err(failed(at, EntryError::Order(what)));
                }
                let is_open = matches!(start.call, Call::Open { .. });
                match self.handles.get(&start.handle) {
                    _ if start.call.kind().is_before_open() => {
                        if start.handle != 0 {
                            return Err(failed(at, order("the call is of no handle, and names one")));
                        }
                    }
                    None if is_open => {
                        self.handles.insert(start.handle, start.gate);
                    }
                    Some(gate) if !is_open && *gate == start.gate => {}
                    Some(_) if is_open => return Err(failed(at, order("a handle is opened twice"))),
                    _ => return Err(failed(at, order("the call is of a handle that was not opened"))),
                }
            }
            Entry::End(end) => match self.pending.remove(&end.number) {
                Some(begun) if begun.kind == end.kind => {}
                _ => {
                    let what = format!("a {} of the number {} ends that did not begin", end.kind.name(), end.number);
                    return Err(failed(at, EntryError::Order(what)));
                }
            },
        }
        Ok(Some(Positioned { at, end: self.at, entry }))
    }

    /// Reads the next body. False at the end of the file, or if the file ends within the entry.
    fn body(&mut self) -> Result<bool, ReadError> {
        let at = self.at;
        let left = self.size - at;
        if left < ENTRY_HEADER as u64 {
            self.cut_at = (left > 0).then_some(at);
            return Ok(false);
        }
        let mut header = [0; ENTRY_HEADER];
        self.input.read_exact(&mut header)?;
        let number = |from: usize| {
            let bytes: [u8; 4] = header[from..from + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let (length, sum) = (number(0), number(4));
        if number(8) != crc32c::crc32c(&header[..8]) {
            return Err(failed(at, EntryError::Header));
        }
        if length > MAX_BODY {
            return Err(failed(at, EntryError::Length(length)));
        }
        if u64::from(length) > left - ENTRY_HEADER as u64 {
            self.cut_at = Some(at);
            // Nothing is read after this.
            self.at = self.size;
            return Ok(false);
        }
        self.body.resize(length as usize, 0);
        self.input.read_exact(&mut self.body)?;
        self.at = at + ENTRY_HEADER as u64 + u64::from(length);
        match crc32c::crc32c(&self.body) == sum {
            true => Ok(true),
            false => Err(failed(at, EntryError::Checksum)),
        }
    }
}

fn order(what: &str) -> EntryError {
    EntryError::Order(what.to_string())
}

fn failed(at: u64, what: impl Into<EntryError>) -> ReadError {
    ReadError::Entry { at, what: what.into() }
}
