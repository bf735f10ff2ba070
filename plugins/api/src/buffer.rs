//! The payload of a request.
//!
//! The operation in flight owns its [`Buffer`], so no other request can use the memory at the same
//! time. A buffer knows for each byte whether it is *unfilled* (left over from an earlier request,
//! and never sent), *zero* (without the byte being written) or *data*. Unfilled bytes read as zero.
//! A reply sends a hole for zeroes without reading the bytes.
//!
//! All bytes of a buffer may also be *spliced*: they are not in its memory but in a pipe that
//! refers to the pages of the file they are read from ([`Buffer::splice_from`]). If a layer needs
//! the bytes, the buffer then copies them, as reading the file would have done. The server splices
//! them to the socket ([`Buffer::splice_out`]) without a copy, which saves half of the work of a
//! long read.

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

    /// Its length in bytes.
    pub fn len(&self) -> u32 {
        self.storage().len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `span` lies within the buffer.
    pub fn contains(&self, span: Span) -> bool {
        span.end().is_some_and(|end| end <= self.len())
    }

    /// The whole buffer.
    pub fn span(&self) -> Span {
        Span::new(0, self.len())
    }

    /// Declares the kind of the bytes of `span`, without writing them. `span` must lie within the
    /// buffer.
    pub fn mark(&mut self, span: Span, fill: Fill) {
        self.unsplice(span);
        let storage = self.storage_mut();
        assert!(span.at + span.len <= storage.len, "span outside of the buffer");
        storage.fills.mark(span, fill, storage.len);
    }

    /// The runs of bytes of one kind, in ascending order; neighbours differ.
    pub fn fills(&self) -> impl Iterator<Item = (Span, Fill)> + '_ {
        self.storage().fills.iter()
    }

    /// Lets `write` put bytes into `span`, which is data afterwards if `write` succeeds. `write`
    /// must overwrite all of it: the bytes are those of an earlier request. `span` must lie within
    /// the buffer.
    pub fn fill_with<E>(&mut self, span: Span, write: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(self.contains(span), "span outside of the buffer");
        self.unsplice(span);
        let result = write(&mut self.storage_mut().bytes[span.range()]);
        self.mark(span, if result.is_ok() { Fill::Data } else { Fill::Unfilled });
        result
    }

    /// Lets `work` change the bytes of `span`, which is data afterwards. Bytes that nobody filled
    /// are zero. `span` must lie within the buffer.
    pub fn modify(&mut self, span: Span, work: impl FnOnce(&mut [u8])) {
        self.materialize(span);
        work(&mut self.storage_mut().bytes[span.range()]);
    }

    /// Copies `data` to `at`. It must fit into the buffer.
    pub fn put(&mut self, at: u32, data: &[u8]) {
        let span = Span::new(at, data.len() as u32);
        assert!(self.contains(span), "span outside of the buffer");
        self.unsplice(span);
        self.storage_mut().bytes[span.range()].copy_from_slice(data);
        self.mark(span, Fill::Data);
    }

    /// Makes `span` read as zero without writing it.
    pub fn set_zero(&mut self, span: Span) {
        self.mark(span, Fill::Zero);
    }

    /// Makes `span` data: writes zeroes that are only marked, and copies spliced bytes.
    pub fn materialize(&mut self, span: Span) {
        assert!(self.contains(span), "span outside of the buffer");
        self.copy_spliced();
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

    /// The bytes of `span`, after [`Buffer::materialize`].
    pub fn bytes(&mut self, span: Span) -> &[u8] {
        self.materialize(span);
        &self.storage().bytes[span.range()]
    }

    /// The bytes of a span that is data already: the payload of a write below the gate, or after
    /// [`Buffer::materialize`].
    ///
    /// # Panics
    /// If a part of it is not data, or is spliced. Returning bytes of an earlier request would be a
    /// leak.
    pub fn data(&self, span: Span) -> &[u8] {
        assert!(self.contains(span), "span outside of the buffer");
        assert!(self.storage().pipe.is_none(), "bytes that are spliced");
        assert!(self.storage().fills.is_data(span), "bytes that nobody filled");
        &self.storage().bytes[span.range()]
    }

    /// The bytes of spans that are data already, in ascending order and without overlap. Whoever
    /// owns the buffer may overwrite them, to encrypt them for example.
    ///
    /// # Panics
    /// As [`Buffer::data`], or the spans overlap.
    pub fn data_parts_mut(&mut self, spans: impl Iterator<Item = Span>) -> impl Iterator<Item = &mut [u8]> {
        let Storage { bytes, len, fills, pipe, .. } = self.storage_mut();
        assert!(pipe.is_none(), "bytes that are spliced");
        let (mut rest, mut from) = (&mut bytes[..*len as usize], 0);
        spans.map(move |span| {
            assert!(fills.is_data(span), "bytes that nobody filled");
            let (_, behind) = std::mem::take(&mut rest).split_at_mut((span.at - from) as usize);
            let (part, behind) = behind.split_at_mut(span.len as usize);
            (rest, from) = (behind, span.at + span.len);
            part
        })
    }

    /// Whether every byte of `span` is zero. Reads only bytes that are data.
    pub fn is_zero(&mut self, span: Span) -> bool {
        assert!(self.contains(span), "span outside of the buffer");
        self.copy_spliced();
        self.fills().all(|(run, fill)| {
            let from = run.at.max(span.at);
            let to = (run.at + run.len).min(span.at + span.len);
            from >= to || fill != Fill::Data || is_all_zero(&self.storage().bytes[from as usize..to as usize])
        })
    }

    /// Whether a read of `span` can be spliced: it is the whole buffer, not so short that copying
    /// costs less, and not so long that it does not fit into a pipe.
    pub fn can_splice(&self, span: Span) -> bool {
        !self.storage().never_splice && span == self.span() && (pipe::MIN_SPLICE..=pipe::MAX_SPLICE).contains(&span.len)
    }

    /// From now on the bytes are not spliced. For a buffer whose bytes will be encrypted: taking
    /// them out of a pipe costs more than reading them.
    pub fn never_splice(&mut self) {
        self.copy_spliced();
        self.storage_mut().never_splice = true;
    }

    /// Fills the buffer through a pipe, without copying.
    ///
    /// Calls `fill` with the end of the pipe to write to and the number of bytes that are still
    /// missing; `fill` returns how many it put into the pipe (`splice` from a file). Returns how
    /// many bytes the buffer has from its beginning on. If `fill` ended early, the rest is
    /// unfilled. None: the buffer is too short or too long, or there are too many pipes. The caller
    /// then reads in the ordinary way.
    ///
    /// The pages still belong to the file, so the answer may contain a later write to the same
    /// range. The protocol allows that for a read that has not been answered yet.
    pub fn splice_from(&mut self, mut fill: impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize>) -> Option<u32> {
        let len = self.len();
        if !self.can_splice(self.span()) {
            return None;
        }
        let mut pipe = Pipe::take()?;
        self.storage_mut().pipe = None;
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
            self.storage_mut().pipe = Some(pipe);
            return Some(len);
        }
        let part = Span::new(0, filled);
        match self.fill_with(part, |bytes| pipe.copy_out(bytes)) {
            Ok(()) => Some(filled),
            Err(_) => None,
        }
    }

    /// How many bytes are spliced and not yet sent.
    pub fn spliced(&self) -> u32 {
        self.storage().pipe.as_ref().map_or(0, Pipe::left)
    }

    /// Lets `send` take spliced bytes out of the pipe, from the front. `send` gets the end of the
    /// pipe to read from and the number of bytes in it, and returns how many it took. Those bytes
    /// are gone, so only the last user of the buffer may call it.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn splice_out(&mut self, send: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>) -> io::Result<usize> {
        match &mut self.storage_mut().pipe {
            Some(pipe) => pipe.empty(send),
            None => Ok(0),
        }
    }

    /// Before `span` is changed: drops spliced bytes if `span` is the whole buffer, and copies them
    /// otherwise.
    fn unsplice(&mut self, span: Span) {
        if self.storage().pipe.is_some() {
            if span == self.span() {
                self.storage_mut().pipe = None;
            } else {
                self.copy_spliced();
            }
        }
    }

    /// Copies spliced bytes into the buffer's own memory.
    ///
    /// # Panics
    /// If the kernel does not return the bytes that the pipe holds.
    fn copy_spliced(&mut self) {
        let storage = self.storage_mut();
        if let Some(mut pipe) = storage.pipe.take() {
            let copied = pipe.copy_out(&mut storage.bytes[..storage.len as usize]);
            copied.expect("a pipe that holds pages can be read");
        }
    }

    /// A copy of the bytes and their kinds, from the same pool.
    pub fn duplicate(&mut self) -> Buffer {
        self.copy_spliced();
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
            storage.pipe = None;
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
            .field("pipe", &storage.pipe)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_changed_where_they_are() {
        let mut buffer = Buffer::new(10);
        buffer.put(1, &[1; 3]);
        buffer.put(6, &[2; 4]);
        let spans = [Span::new(1, 2), Span::new(6, 4)];
        for (part, byte) in buffer.data_parts_mut(spans.into_iter()).zip([7, 8]) {
            part.fill(byte);
        }
        assert_eq!(buffer.bytes(buffer.span()), [0, 7, 7, 1, 0, 0, 8, 8, 8, 8]);
    }

    #[test]
    #[should_panic(expected = "nobody filled")]
    fn parts_that_nobody_filled_are_not_given_away() {
        let mut buffer = Buffer::new(10);
        buffer.put(1, &[1; 3]);
        let _ = buffer.data_parts_mut(std::iter::once(Span::new(3, 2))).count();
    }

    #[test]
    fn zero_is_known_without_reading_the_bytes() {
        let mut buffer = Buffer::from_vec(vec![0; 40]);
        assert!(buffer.is_zero(buffer.span()));
        buffer.put(33, &[1]);
        assert!(!buffer.is_zero(buffer.span()));
        assert!(buffer.is_zero(Span::new(0, 33)));
        buffer.set_zero(Span::new(33, 1));
        assert!(buffer.is_zero(buffer.span()));
    }
}
