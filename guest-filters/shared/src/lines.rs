//! The lines of a text file that the operator named in a parameter.

use std::cell::OnceCell;

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::params::ReadFile;

/// The longest file in bytes. A call of the filter may have to read it, and may compute for a
/// second: in that time it reads more than 100 MiB.
pub const MAX_FILE: u64 = 16 << 20;

/// The longest line in bytes.
pub const MAX_LINE: usize = 1024;

/// How many bytes are read at once.
const PIECE: u32 = 256 << 10;

/// Calls `each` with the number and the text of each line, from 1 on. The text has no blanks at its
/// ends.
///
/// # Errors
/// One line for the user: the parameter and what is wrong, with the number of the line if `each`
/// found it.
fn read_lines(file: &ReadFile, mut each: impl FnMut(u64, &str) -> Result<(), String>) -> Result<(), String> {
    let name = file.param();
    let failed = |error: Errno| format!("{name}: the file cannot be read ({error:?})");
    let size = file.size().map_err(failed)?;
    if size > MAX_FILE {
        return Err(format!("{name}: the file has {size} bytes, more than {MAX_FILE}"));
    }
    let mut splitter = Splitter::default();
    let mut offset = 0;
    let mut line = |number, text: &[u8]| {
        let text = std::str::from_utf8(text).map_err(|_| format!("{name}: line {number}: is not text"))?;
        each(number, text.trim()).map_err(|wrong| format!("{name}: line {number}: {wrong}"))
    };
    while offset < MAX_FILE {
        let bytes = file.read(offset, PIECE).map_err(failed)?;
        if bytes.is_empty() {
            break;
        }
        offset += bytes.len() as u64;
        splitter.push(&bytes, &mut line).map_err(|wrong| wrong.into_message(name))?;
    }
    splitter.finish(&mut line).map_err(|wrong| wrong.into_message(name))
}

/// Makes a list of the lines of a file.
pub trait LineReader: Default {
    /// The list.
    type List;

    /// Takes the next line, whose number counts from 1.
    ///
    /// # Errors
    /// What is wrong with the line.
    fn line(&mut self, number: u64, text: &str) -> Result<(), String>;

    /// The list, after the last line.
    ///
    /// # Errors
    /// What is wrong with the lines together.
    fn finish(self) -> Result<Self::List, String>;
}

/// A file that is read once. Each instance of a filter reads it when it needs it first.
pub struct ListFile<R: LineReader> {
    file: ReadFile,
    list: OnceCell<R::List>,
}

impl<R: LineReader> ListFile<R> {
    /// A file that has not been read yet.
    pub fn new(file: ReadFile) -> ListFile<R> {
        ListFile { file, list: OnceCell::new() }
    }

    /// The list.
    ///
    /// # Errors
    /// One line for the user: the parameter and what is wrong, with the number of the line if there
    /// is one.
    pub fn list(&self) -> Result<&R::List, String> {
        if let Some(list) = self.list.get() {
            return Ok(list);
        }
        let mut reader = R::default();
        read_lines(&self.file, |number, text| reader.line(number, text))?;
        let list = reader.finish().map_err(|wrong| format!("{}: {wrong}", self.file.param()))?;
        Ok(self.list.get_or_init(|| list))
    }
}

/// Makes lines of pieces.
#[derive(Default)]
struct Splitter {
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    /// How many lines have ended.
    ended: u64,
}

/// Why splitting ended early.
#[derive(Debug, PartialEq)]
enum Wrong {
    TooLong(u64),
    /// The line's own message.
    Line(String),
}

impl Wrong {
    fn into_message(self, name: &str) -> String {
        match self {
            Wrong::TooLong(number) => format!("{name}: line {number}: is longer than {MAX_LINE} bytes"),
            Wrong::Line(message) => message,
        }
    }
}

impl Splitter {
    fn push(&mut self, bytes: &[u8], line: &mut impl FnMut(u64, &[u8]) -> Result<(), String>) -> Result<(), Wrong> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end])?;
            self.end(line)?;
            rest = &rest[end + 1..];
        }
        self.extend(rest)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        if self.begun.len() + bytes.len() > MAX_LINE {
            return Err(Wrong::TooLong(self.ended + 1));
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, line: &mut impl FnMut(u64, &[u8]) -> Result<(), String>) -> Result<(), Wrong> {
        self.ended += 1;
        line(self.ended, &self.begun).map_err(Wrong::Line)?;
        self.begun.clear();
        Ok(())
    }

    fn finish(mut self, line: &mut impl FnMut(u64, &[u8]) -> Result<(), String>) -> Result<(), Wrong> {
        if self.begun.is_empty() { Ok(()) } else { self.end(line) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&str]) -> Result<Vec<(u64, String)>, Wrong> {
        let mut lines = Vec::new();
        let mut line = |number, text: &[u8]| {
            lines.push((number, String::from_utf8(text.to_vec()).unwrap()));
            Ok(())
        };
        let mut splitter = Splitter::default();
        for piece in pieces {
            splitter.push(piece.as_bytes(), &mut line)?;
        }
        splitter.finish(&mut line)?;
        Ok(lines)
    }

    #[test]
    fn lines_are_whole_wherever_the_pieces_end_and_the_last_one_needs_no_newline() {
        let lines = split(&["on", "e\n\ntw", "o\nthree"]).unwrap();
        assert_eq!(lines, [(1, "one".into()), (2, String::new()), (3, "two".into()), (4, "three".into())]);
        assert_eq!(split(&["one\n"]).unwrap().len(), 1);
        assert_eq!(split(&[]).unwrap(), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_before_it_ends() {
        let long = "x".repeat(MAX_LINE);
        assert!(split(&["a\n", &long, "\n"]).is_ok());
        assert_eq!(split(&["a\n", &long, "x"]), Err(Wrong::TooLong(2)));
    }
}
