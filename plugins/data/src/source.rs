//! Bytes from files and from programs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Command, Stdio};

use crate::image::Image;

/// The most that all files and programs together may put into memory. This plugin is for small amounts of data, and `</dev/zero`
/// has no end.
pub(crate) const MAX_READ: u64 = 1 << 30;

/// Bytes that are looked at in one piece: what is zero all along is left out.
const CHUNK: usize = 32 << 10;

/// `FROM..TO` of what is read, as far as it goes. By default to the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) from: u64,
    pub(crate) to: Option<u64>,
}

/// Reads files and programs, up to a limit over all of them.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: u64,
    left: u64,
}

impl Reader {
    /// One that reads at most so many bytes.
    pub(crate) fn new(limit: u64) -> Reader {
        Reader { limit, left: limit }
    }

    /// Reads a file.
    pub(crate) fn file(&mut self, name: &OsStr, range: Range) -> Result<Image, String> {
        let failed = |error: io::Error| format!("<{}: {error}", name.to_string_lossy());
        let mut file = File::open(name).map_err(failed)?;
        let regular = file.metadata().map_err(failed)?.is_file();
        if regular {
            file.seek(SeekFrom::Start(range.from)).map_err(failed)?;
        } else {
            self.skip(&mut file, range.from).map_err(failed)?;
        }
        let length = range.to.map(|to| to - range.from);
        self.read(&mut file, length, regular).map(|(image, _)| image).map_err(failed)
    }

    /// Reads what a shell script prints. It is stopped as soon as enough was read.
    pub(crate) fn script(&mut self, script: &OsStr, range: Range) -> Result<Image, String> {
        let failed = |error: io::Error| format!("<({}): {error}", script.to_string_lossy());
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let read = match child.stdout.take() {
            Some(mut output) => self.skip(&mut output, range.from).and_then(|()| {
                let length = range.to.map(|to| to - range.from);
                self.read(&mut output, length, false)
            }),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        // The pipe is closed by now. With all output read, the program is about to end; otherwise it has to be told.
        if !matches!(read, Ok((_, true))) {
            let _ = child.kill();
        }
        let status = child.wait().map_err(failed)?;
        match read {
            Ok((_, true)) if !status.success() => {
                Err(failed(io::Error::other(format!("the script failed ({status})"))))
            }
            Ok((image, _)) => Ok(image),
            Err(error) => Err(failed(error)),
        }
    }

    fn take(&mut self, bytes: usize) -> io::Result<()> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => self.left = left,
            None => {
                let what = format!("more than {} bytes of data; a slice [N:M] would take a part of it", self.limit);
                return Err(io::Error::other(what));
            }
        }
        Ok(())
    }

    /// Reads into nowhere. Less is there than that: so be it.
    fn skip(&mut self, source: &mut impl Read, mut bytes: u64) -> io::Result<()> {
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

    /// Reads `length` bytes or to the end, and tells whether it was the end. Zeroes of a file with an end cost nothing.
    fn read(
        &mut self,
        source: &mut impl Read,
        length: Option<u64>,
        zeroes_are_free: bool,
    ) -> io::Result<(Image, bool)> {
        let mut image = Image::default();
        let mut chunk = vec![0; CHUNK];
        loop {
            let left = length.map_or(u64::MAX, |length| length - image.len());
            if left == 0 {
                return Ok((image, false));
            }
            let wanted = left.min(CHUNK as u64) as usize;
            let mut n = 0;
            while n < wanted {
                match source.read(&mut chunk[n..wanted]) {
                    Ok(0) => break,
                    Ok(more) => n += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if !zeroes_are_free || chunk[..n].iter().any(|byte| *byte != 0) {
                self.take(n)?;
            }
            image.put_bytes(image.len(), &chunk[..n]).map_err(|wrong| io::Error::other(wrong.to_string()))?;
            if n < wanted {
                return Ok((image, true));
            }
        }
    }
}
