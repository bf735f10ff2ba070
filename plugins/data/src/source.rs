//! Reads files, and the output of scripts.

use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Command, Stdio};

use rbdkit_plugin_api::stdin;

use crate::error::{Problem, ReadError};
use crate::image::Image;

/// The most bytes that all files and scripts together may put into memory. The plugin is for small
/// amounts of data, and `</dev/zero` has no end.
pub(crate) const MAX_READ: u64 = 1 << 30;

/// The unit of reading, in bytes. A unit that is all zero takes no memory.
const CHUNK: usize = 32 << 10;

/// The range `FROM..TO` of what is read, or as much of it as there is. No TO means to the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) from: u64,
    pub(crate) to: Option<u64>,
}

/// What is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Has an end, so its zeroes, which take no memory, do not count against the limit.
    RegularFile,
    /// May have no end.
    Stream,
}

/// Whether reading came to the end of a file or of a program's output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Reached,
    NotReached,
}

/// Reads files and scripts, up to a limit for all of them together.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: u64,
    left: u64,
}

impl Reader {
    /// A reader of at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Reader {
        Reader { limit, left: limit }
    }

    /// Reads a file.
    pub(crate) fn file(&mut self, name: &OsStr, range: Range) -> Result<Image, Problem> {
        self.read_file(name, range).map_err(|error| Problem::File { name: name.to_string_lossy().into_owned(), error })
    }

    fn read_file(&mut self, name: &OsStr, range: Range) -> Result<Image, ReadError> {
        let mut file = stdin::open(name)?;
        let kind = match file.metadata()?.is_file() {
            true => Kind::RegularFile,
            false => Kind::Stream,
        };
        match kind {
            Kind::RegularFile => drop(file.seek(SeekFrom::Start(range.from))?),
            Kind::Stream => self.skip(&mut file, range.from)?,
        }
        let length = range.to.map(|to| to - range.from);
        Ok(self.read(&mut file, length, kind)?.0)
    }

    /// Reads what a shell script prints. It is stopped as soon as enough was read.
    pub(crate) fn script(&mut self, script: &OsStr, range: Range) -> Result<Image, Problem> {
        self.read_script(script, range)
            .map_err(|error| Problem::Script { script: script.to_string_lossy().into_owned(), error })
    }

    fn read_script(&mut self, script: &OsStr, range: Range) -> Result<Image, ReadError> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let read = match child.stdout.take() {
            Some(mut output) => self.skip(&mut output, range.from).and_then(|()| {
                let length = range.to.map(|to| to - range.from);
                self.read(&mut output, length, Kind::Stream)
            }),
            None => Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
        };
        // The pipe is closed by now. If all output was read, the program is about to end; otherwise
        // it has to be killed.
        if !matches!(read, Ok((_, End::Reached))) {
            let _ = child.kill();
        }
        let status = child.wait()?;
        match read? {
            (_, End::Reached) if !status.success() => Err(ReadError::Failed(status)),
            (image, _) => Ok(image),
        }
    }

    /// Counts bytes against the limit.
    fn take(&mut self, bytes: usize) -> Result<(), ReadError> {
        self.left = self.left.checked_sub(bytes as u64).ok_or(ReadError::TooLong(self.limit))?;
        Ok(())
    }

    /// Reads and discards `bytes`, or all there is if that is less.
    fn skip(&mut self, source: &mut impl Read, mut bytes: u64) -> Result<(), ReadError> {
        let mut chunk = [0; 4096];
        while bytes > 0 {
            let wanted = bytes.min(chunk.len() as u64) as usize;
            let n = source.read(&mut chunk[..wanted])?;
            if n == 0 {
                break;
            }
            self.take(n)?;
            bytes -= n as u64;
        }
        Ok(())
    }

    /// Reads `length` bytes or to the end.
    fn read(&mut self, source: &mut impl Read, length: Option<u64>, kind: Kind) -> Result<(Image, End), ReadError> {
        let mut image = Image::default();
        let mut chunk = vec![0; CHUNK];
        loop {
            let left = length.map_or(u64::MAX, |length| length - image.len());
            if left == 0 {
                return Ok((image, End::NotReached));
            }
            let wanted = left.min(CHUNK as u64) as usize;
            let mut n = 0;
            while n < wanted {
                match source.read(&mut chunk[n..wanted]) {
                    Ok(0) => break,
                    Ok(more) => n += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if kind == Kind::Stream || chunk[..n].iter().any(|byte| *byte != 0) {
                self.take(n)?;
            }
            image.put_bytes(image.len(), &chunk[..n])?;
            if n < wanted {
                return Ok((image, End::Reached));
            }
        }
    }
}
