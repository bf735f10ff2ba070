//! The payload of a request, and the pool that payloads come from.
//!
//! A [`Buffer`] is owned by the operation in flight on it, so nothing can recycle it under a running operation. It knows of each of
//! its bytes whether it is *unfilled* (left over from an earlier request: must never be shown), *zero* (known without the
//! bytes being written) or *data*. What nothing filled reads as zero; and a reply can send a hole for what is known to be zero
//! without looking at a single byte.
//!
//! All of a buffer's bytes may also be *lent*: they are not in memory of ours yet but in the pages of the file that they are read
//! from, which a pipe refers to ([`Buffer::lend`]). Who wants to see or change them copies them by that, as reading the file would have done;
//! who passes them on to a socket does not ([`Buffer::send_lent`]), which spares half of the work of a long read.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::pipe::{self, Pipe};
use crate::span::{Fill, Span};
use crate::storage::{SizeClasses, Storage};

/// The payload of a request. Moving it moves a pointer.
pub struct Buffer(Option<Box<Storage>>);

impl Buffer {
    /// A buffer outside any pool, all of it unfilled.
    pub fn new(len: u32) -> Buffer {
        Buffer(Some(Storage::new(vec![0; len as usize], len, None)))
    }

    /// A buffer of these bytes (at most [`crate::MAX_REQUEST`] of them), all of it data.
    pub fn from_vec(bytes: Vec<u8>) -> Buffer {
        let len = bytes.len() as u32;
        let mut buffer = Buffer(Some(Storage::new(bytes, len, None)));
        buffer.mark(Span::new(0, len), Fill::Data);
        buffer
    }

    pub(crate) fn from_storage(storage: Box<Storage>) -> Buffer {
        Buffer(Some(storage))
    }

    fn storage(&self) -> &Storage {
        self.0.as_deref().expect("a buffer is only empty while it is dropped")
    }

    fn storage_mut(&mut self) -> &mut Storage {
        self.0.as_deref_mut().expect("a buffer is only empty while it is dropped")
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        self.storage().len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `span` lies within.
    pub fn contains(&self, span: Span) -> bool {
        span.end().is_some_and(|end| end <= self.len())
    }

    /// All of it.
    pub fn span(&self) -> Span {
        Span::new(0, self.len())
    }

    /// Declares what the bytes of `span` are, without touching them. `span` must lie within the buffer.
    pub fn mark(&mut self, span: Span, fill: Fill) {
        self.take_back(span);
        let storage = self.storage_mut();
        assert!(span.at + span.len <= storage.len, "span outside of the buffer");
        storage.fills.mark(span, fill, storage.len);
    }

    /// The runs of bytes of one kind, in ascending order; neighbours differ.
    pub fn fills(&self) -> impl Iterator<Item = (Span, Fill)> + '_ {
        self.storage().fills.iter()
    }

    /// Lets `write` put bytes into `span`, which is data afterwards if `write` succeeds. It must overwrite all of it:
    /// it finds whatever an earlier request left. `span` must lie within.
    pub fn fill_with<E>(&mut self, span: Span, write: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(self.contains(span), "span outside of the buffer");
        self.take_back(span);
        let result = write(&mut self.storage_mut().bytes[span.range()]);
        self.mark(span, if result.is_ok() { Fill::Data } else { Fill::Unfilled });
        result
    }

    /// Copies `data` to `at`. It must fit.
    pub fn put(&mut self, at: u32, data: &[u8]) {
        let span = Span::new(at, data.len() as u32);
        assert!(self.contains(span), "span outside of the buffer");
        self.take_back(span);
        self.storage_mut().bytes[span.range()].copy_from_slice(data);
        self.mark(span, Fill::Data);
    }

    /// Makes `span` read as zero without writing it.
    pub fn set_zero(&mut self, span: Span) {
        self.mark(span, Fill::Zero);
    }

    /// Writes the zeroes that were only promised within `span`, which is data afterwards, and copies what is only lent.
    pub fn materialize(&mut self, span: Span) {
        assert!(self.contains(span), "span outside of the buffer");
        self.copy_lent();
        if self.storage().fills.is_all_data() {
            return;
        }
        let holes: Vec<Span> = self
            .fills()
            .filter(|(_, fill)| *fill != Fill::Data)
            .filter_map(|(run, _)| {
                let from = run.at.max(span.at);
                let to = (run.at + run.len).min(span.at + span.len);
                (from < to).then(|| Span::new(from, to - from))
            })
            .collect();
        if holes.is_empty() {
            return;
        }
        for hole in holes {
            self.storage_mut().bytes[hole.range()].fill(0);
        }
        self.mark(span, Fill::Data);
    }

    /// The bytes of `span`, zeroes written where they were only promised.
    pub fn bytes(&mut self, span: Span) -> &[u8] {
        self.materialize(span);
        &self.storage().bytes[span.range()]
    }

    /// The bytes of a span that is data already: a write's payload below the gate, or after [`Buffer::materialize`].
    ///
    /// # Panics
    /// If part of it is not data, or only lent: showing bytes that nobody wrote would be a leak.
    pub fn data(&self, span: Span) -> &[u8] {
        assert!(self.contains(span), "span outside of the buffer");
        assert!(self.storage().lent.is_none(), "bytes that are lent");
        assert!(self.storage().fills.is_data(span), "bytes that nobody filled");
        &self.storage().bytes[span.range()]
    }

    /// Whether every byte of `span` is zero; looks at bytes only where nothing is known of them.
    pub fn is_zero(&mut self, span: Span) -> bool {
        assert!(self.contains(span), "span outside of the buffer");
        self.copy_lent();
        self.fills().all(|(run, fill)| {
            let from = run.at.max(span.at);
            let to = (run.at + run.len).min(span.at + span.len);
            from >= to || fill != Fill::Data || is_all_zero(&self.storage().bytes[from as usize..to as usize])
        })
    }

    /// Whether a read of `span` may be lent: it is all of the buffer, and neither so short that copying costs less nor so long that it does not
    /// fit a pipe.
    pub fn is_lendable(&self, span: Span) -> bool {
        span == self.span() && (pipe::SHORTEST..=pipe::LONGEST).contains(&span.len)
    }

    /// Lets `fill` put all of the bytes into a pipe by reference: it gets the pipe's end and how many bytes there is to be, and answers
    /// how many it put there (`splice` from a file). Answers how many bytes the buffer has then from its beginning on: all of them, or less if
    /// `fill` had no more, and the rest is unfilled. None: this buffer cannot be lent to, as it is too short, too long or there are too many
    /// such already; read the ordinary way.
    ///
    /// The pages stay as they are in the file: a write to the same place that comes later may show in what is read. That is as much as a client can ask for
    /// of a read that has not been answered yet.
    pub fn lend(&mut self, mut fill: impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize>) -> Option<u32> {
        let len = self.len();
        if !self.is_lendable(self.span()) {
            return None;
        }
        let mut pipe = Pipe::take()?;
        self.storage_mut().lent = None;
        let mut filled = 0;
        while filled < len {
            match pipe.fill(len - filled, &mut fill) {
                Ok(count) if count > 0 => filled += count,
                _ => break,
            }
        }
        self.mark(self.span(), Fill::Unfilled);
        if filled == len {
            self.mark(self.span(), Fill::Data);
            self.storage_mut().lent = Some(pipe);
            return Some(len);
        }
        let part = Span::new(0, filled);
        match self.fill_with(part, |bytes| pipe.copy_out(bytes)) {
            Ok(()) => Some(filled),
            Err(_) => None,
        }
    }

    /// How many bytes are lent and not yet sent.
    pub fn lent(&self) -> u32 {
        self.storage().lent.as_ref().map_or(0, Pipe::left)
    }

    /// Lets `send` take bytes that are lent out of the pipe, from the front: it gets the pipe's end and how many there are, and answers how many it
    /// took. What was sent is gone: only for who is the last to need the buffer.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn send_lent(&mut self, send: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>) -> io::Result<usize> {
        match &mut self.storage_mut().lent {
            Some(pipe) => pipe.empty(send),
            None => Ok(0),
        }
    }

    /// What is lent is either replaced (`span` is all of it) or copied, before `span` is changed.
    fn take_back(&mut self, span: Span) {
        if self.storage().lent.is_some() {
            if span == self.span() {
                self.storage_mut().lent = None;
            } else {
                self.copy_lent();
            }
        }
    }

    /// Copies what is lent into the buffer's own memory.
    ///
    /// # Panics
    /// If the kernel does not hand out pages that it holds.
    fn copy_lent(&mut self) {
        let storage = self.storage_mut();
        if let Some(mut pipe) = storage.lent.take() {
            let copied = pipe.copy_out(&mut storage.bytes[..storage.len as usize]);
            copied.expect("a pipe that holds pages can be read");
        }
    }

    /// A copy of the bytes and of what is known of them, from the same pool.
    pub fn duplicate(&mut self) -> Buffer {
        self.copy_lent();
        let from = self.storage();
        let mut to = match &from.classes {
            Some(classes) => SizeClasses::take(classes, from.len),
            None => Storage::new(vec![0; from.len as usize], from.len, None),
        };
        to.fills.clone_from(&from.fills);
        let len = from.len as usize;
        to.bytes[..len].copy_from_slice(&from.bytes[..len]);
        Buffer(Some(to))
    }
}

/// Whether every byte is zero.
pub fn is_all_zero(bytes: &[u8]) -> bool {
    // The compiler turns comparisons of words into vector code.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(mut storage) = self.0.take()
            && let Some(classes) = storage.classes.take()
        {
            storage.lent = None;
            classes.give_back(storage);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = self.storage();
        f.debug_struct("Buffer")
            .field("len", &storage.len)
            .field("fills", &storage.fills)
            .field("lent", &storage.lent)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_known_without_looking() {
        let mut buffer = Buffer::from_vec(vec![0; 40]);
        assert!(buffer.is_zero(buffer.span()));
        buffer.put(33, &[1]);
        assert!(!buffer.is_zero(buffer.span()));
        assert!(buffer.is_zero(Span::new(0, 33)));
        buffer.set_zero(Span::new(33, 1));
        assert!(buffer.is_zero(buffer.span()));
    }
}
