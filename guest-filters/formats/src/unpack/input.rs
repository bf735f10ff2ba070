//! The compressed bytes, one after the other.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

/// How many bytes are read from the source at once.
const PIECE: u64 = 256 << 10;

/// Reads a source from some offset on.
pub struct Input {
    source: Rc<dyn Source>,
    /// The offset after the buffer.
    next: u64,
    buffer: Vec<u8>,
    used: usize,
    /// Why the last `Read::read` failed.
    failed: Option<Error>,
}

impl Input {
    /// Begins at `offset`, which may be beyond the end.
    pub fn new(source: Rc<dyn Source>, offset: u64) -> Input {
        Input { source, next: offset, buffer: Vec::new(), used: 0, failed: None }
    }

    /// The offset of the next byte.
    pub fn at(&self) -> u64 {
        self.next - (self.buffer.len() - self.used) as u64
    }

    /// Goes to another offset.
    pub fn go_to(&mut self, offset: u64) {
        let first = self.next - self.buffer.len() as u64;
        if (first..=self.next).contains(&offset) {
            self.used = (offset - first) as usize;
        } else {
            (self.next, self.used) = (offset, 0);
            self.buffer.clear();
        }
    }

    /// The size of the source.
    pub fn size(&self) -> u64 {
        self.source.size()
    }

    /// Some bytes that come next. None at the end.
    ///
    /// # Errors
    /// Those of the source.
    pub fn available(&mut self) -> Result<&[u8], Error> {
        if self.used == self.buffer.len() {
            let length = PIECE.min(self.source.size().saturating_sub(self.next));
            self.buffer.resize(length as usize, 0);
            self.used = 0;
            if let Err(error) = self.source.read(self.next, &mut self.buffer) {
                self.buffer.clear();
                return Err(error);
            }
            self.next += length;
        }
        Ok(&self.buffer[self.used..])
    }

    /// Takes `count` of the available bytes.
    pub fn consume(&mut self, count: usize) {
        self.used += count;
    }

    /// The next `N` bytes. `what` names them for the error if the file ends before them.
    ///
    /// # Errors
    /// Those of the source, and a line.
    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        self.fill(&mut array, what)?;
        Ok(array)
    }

    /// Fills `into` with the next bytes.
    ///
    /// # Errors
    /// As [`array`](Input::array).
    pub fn fill(&mut self, into: &mut [u8], what: &str) -> Result<(), Error> {
        let mut done = 0;
        while done < into.len() {
            let there = self.available()?;
            if there.is_empty() {
                return Err(Error::image(format!("the file ends after {} bytes, within {what}", self.source.size())));
            }
            let count = there.len().min(into.len() - done);
            into[done..done + count].copy_from_slice(&there[..count]);
            self.consume(count);
            done += count;
        }
        Ok(())
    }

    /// Whether only bytes of zero follow. Then they are taken.
    ///
    /// # Errors
    /// Those of the source.
    pub fn only_zeroes_follow(&mut self) -> Result<bool, Error> {
        let from = self.at();
        loop {
            let there = self.available()?;
            if there.is_empty() {
                return Ok(true);
            }
            if there.iter().any(|byte| *byte != 0) {
                self.go_to(from);
                return Ok(false);
            }
            let count = there.len();
            self.consume(count);
        }
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.available() {
            Ok(there) => {
                let count = there.len().min(into.len());
                into[..count].copy_from_slice(&there[..count]);
                self.consume(count);
                Ok(count)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::Error::other("the source failed"))
            }
        }
    }
}

/// An input that decoders of other crates own a share of.
#[derive(Clone)]
pub struct SharedInput(Rc<RefCell<Input>>);

impl SharedInput {
    /// Shares an input.
    pub fn new(input: Input) -> SharedInput {
        SharedInput(Rc::new(RefCell::new(input)))
    }

    /// Does something with the input.
    pub fn with<T>(&self, work: impl FnOnce(&mut Input) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }

    /// The error of a decoder that reads this input: that of the source if it failed, otherwise a
    /// line that begins with `what`.
    pub fn error(&self, what: &str, error: &io::Error) -> Error {
        let mut input = self.0.borrow_mut();
        let ended = input.used == input.buffer.len() && input.next >= input.source.size();
        match input.failed.take() {
            Some(error) => error,
            // A file that was read to its end must not hide the cause.
            None if error.kind() == io::ErrorKind::OutOfMemory => Error::image(format!(
                "{what} needs more memory than the instance may have (--filter-limit FILTER:memory=SIZE)"
            )),
            None if ended => Error::image(format!("{what}: the file ends after {} bytes", input.source.size())),
            None => Error::image(format!("{what}: {error}")),
        }
    }
}

impl Read for SharedInput {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(into)
    }
}
