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
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock::lock;
use crate::pipe::{self, Pipe};
use crate::shelf::{Shelf, Stir};

/// A part of a buffer: `at` bytes from its beginning, `len` bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the beginning of the buffer.
    pub at: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// The span of `len` bytes at `at`.
    pub fn new(at: u32, len: u32) -> Span {
        Span { at, len }
    }

    /// One past the last byte; none if that does not fit 32 bits.
    pub fn end(self) -> Option<u32> {
        self.at.checked_add(self.len)
    }

    fn range(self) -> Range<usize> {
        let at = self.at as usize;
        at..at + self.len as usize
    }
}

/// What is known of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nobody wrote here in this request.
    Unfilled,
    /// Reads as zero; the bytes themselves may be anything.
    Zero,
    /// The bytes count.
    Data,
}

struct Inner {
    /// Its length is the capacity of the size class.
    bytes: Vec<u8>,
    len: u32,
    /// Contiguous runs from 0 to `len`: the end of each and what it is. Neighbours differ. Empty only if `len` is 0.
    fills: Vec<(u32, Fill)>,
    /// Holds the bytes, all of them data, while they are lent.
    lent: Option<Pipe>,
    pool: Option<Arc<Shelves>>,
}

/// The payload of a request. Moving it moves a pointer.
pub struct Buffer(Option<Box<Inner>>);

impl Buffer {
    /// A buffer outside any pool, all of it unfilled.
    pub fn new(len: u32) -> Buffer {
        Buffer::with_bytes(vec![0; len as usize], len, None)
    }

    /// A buffer of these bytes (at most [`crate::MAX_REQUEST`] of them), all of it data.
    pub fn from_vec(bytes: Vec<u8>) -> Buffer {
        let len = bytes.len() as u32;
        let mut buffer = Buffer::with_bytes(bytes, len, None);
        buffer.mark(Span::new(0, len), Fill::Data);
        buffer
    }

    fn with_bytes(bytes: Vec<u8>, len: u32, pool: Option<Arc<Shelves>>) -> Buffer {
        let mut inner = Box::new(Inner { bytes, len: 0, fills: Vec::with_capacity(4), lent: None, pool });
        inner.reset(len);
        Buffer(Some(inner))
    }

    fn inner(&self) -> &Inner {
        self.0.as_deref().expect("a buffer is only empty while it is dropped")
    }

    fn inner_mut(&mut self) -> &mut Inner {
        self.0.as_deref_mut().expect("a buffer is only empty while it is dropped")
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        self.inner().len
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

    /// Declares what a run of bytes is, without touching them. `span` must lie within.
    pub fn mark(&mut self, span: Span, fill: Fill) {
        self.take_back(span);
        let inner = self.inner_mut();
        let end = span.at + span.len;
        assert!(end <= inner.len, "span outside of the buffer");
        if span.len == 0 {
            return;
        }
        if span.at == 0 && end == inner.len {
            inner.fills.clear();
            inner.fills.push((end, fill));
            return;
        }
        let fills = &mut inner.fills;
        // The runs of the first byte and of the last one, and where the first begins. What is marked in order, as plugins do, changes only the end.
        let mut first = fills.partition_point(|&(to, _)| to <= span.at);
        let mut last = fills.partition_point(|&(to, _)| to < end);
        let from = if first == 0 { 0 } else { fills[first - 1].0 };
        let (before, (mut to, after)) = (fills[first].1, fills[last]);
        let mut pieces = [(0, fill); 3];
        let mut count = 0;
        let mut add = |piece: (u32, Fill)| {
            pieces[count] = piece;
            count += 1;
        };
        if from < span.at && before != fill {
            add((span.at, before));
        } else if from == span.at && first > 0 && fills[first - 1].1 == fill {
            first -= 1;
        }
        if to > end && after != fill {
            add((end, fill));
            add((to, after));
        } else {
            if to == end && fills.get(last + 1).is_some_and(|next| next.1 == fill) {
                last += 1;
                to = fills[last].0;
            }
            add((to, fill));
        }
        fills.splice(first..=last, pieces[..count].iter().copied());
    }

    /// The runs from the beginning to the end, neighbours different.
    pub fn fills(&self) -> impl Iterator<Item = (Span, Fill)> + '_ {
        let mut from = 0;
        self.inner().fills.iter().map(move |&(to, fill)| {
            let span = Span::new(from, to - from);
            from = to;
            (span, fill)
        })
    }

    /// Lets `write` put bytes into `span`, which is data afterwards if `write` succeeds. It must overwrite all of it:
    /// it finds whatever an earlier request left. `span` must lie within.
    pub fn fill_with<E>(&mut self, span: Span, write: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(self.contains(span), "span outside of the buffer");
        self.take_back(span);
        let result = write(&mut self.inner_mut().bytes[span.range()]);
        self.mark(span, if result.is_ok() { Fill::Data } else { Fill::Unfilled });
        result
    }

    /// Copies `data` to `at`. It must fit.
    pub fn put(&mut self, at: u32, data: &[u8]) {
        let span = Span::new(at, data.len() as u32);
        assert!(self.contains(span), "span outside of the buffer");
        self.take_back(span);
        self.inner_mut().bytes[span.range()].copy_from_slice(data);
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
        if let [(_, Fill::Data)] = self.inner().fills[..] {
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
            self.inner_mut().bytes[hole.range()].fill(0);
        }
        self.mark(span, Fill::Data);
    }

    /// The bytes of `span`, zeroes written where they were only promised.
    pub fn bytes(&mut self, span: Span) -> &[u8] {
        self.materialize(span);
        &self.inner().bytes[span.range()]
    }

    /// The bytes of a span that is data already: a write's payload below the gate, or after [`Buffer::materialize`].
    ///
    /// # Panics
    /// If part of it is not data, or only lent: showing bytes that nobody wrote would be a leak.
    pub fn data(&self, span: Span) -> &[u8] {
        assert!(self.contains(span), "span outside of the buffer");
        assert!(self.inner().lent.is_none(), "bytes that are lent");
        assert!(self.is_data(span), "bytes that nobody filled");
        &self.inner().bytes[span.range()]
    }

    fn is_data(&self, span: Span) -> bool {
        if let [(_, Fill::Data)] = self.inner().fills[..] {
            return true;
        }
        span.len == 0
            || self
                .fills()
                .all(|(run, fill)| fill == Fill::Data || run.at + run.len <= span.at || run.at >= span.at + span.len)
    }

    /// Whether every byte of `span` is zero; looks at bytes only where nothing is known of them.
    pub fn is_zero(&mut self, span: Span) -> bool {
        assert!(self.contains(span), "span outside of the buffer");
        self.copy_lent();
        self.fills().all(|(run, fill)| {
            let from = run.at.max(span.at);
            let to = (run.at + run.len).min(span.at + span.len);
            from >= to || fill != Fill::Data || all_zero(&self.inner().bytes[from as usize..to as usize])
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
        self.inner_mut().lent = None;
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
            self.inner_mut().lent = Some(pipe);
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
        self.inner().lent.as_ref().map_or(0, Pipe::left)
    }

    /// Lets `send` take bytes that are lent out of the pipe, from the front: it gets the pipe's end and how many there are, and answers how many it
    /// took. What was sent is gone: only for who is the last to need the buffer.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn send_lent(&mut self, send: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>) -> io::Result<usize> {
        match &mut self.inner_mut().lent {
            Some(pipe) => pipe.empty(send),
            None => Ok(0),
        }
    }

    /// What is lent is either replaced (`span` is all of it) or copied, before `span` is changed.
    fn take_back(&mut self, span: Span) {
        if self.inner().lent.is_some() {
            if span == self.span() {
                self.inner_mut().lent = None;
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
        let inner = self.inner_mut();
        if let Some(mut pipe) = inner.lent.take() {
            let copied = pipe.copy_out(&mut inner.bytes[..inner.len as usize]);
            copied.expect("a pipe that holds pages can be read");
        }
    }

    /// A copy of the bytes and of what is known of them, from the same pool.
    pub fn duplicate(&mut self) -> Buffer {
        self.copy_lent();
        let inner = self.inner();
        let mut copy = match &inner.pool {
            Some(shelves) => Shelves::take(shelves, inner.len),
            None => Buffer::new(inner.len),
        };
        let to = copy.inner_mut();
        to.fills.clone_from(&inner.fills);
        let len = inner.len as usize;
        to.bytes[..len].copy_from_slice(&inner.bytes[..len]);
        copy
    }

    /// An unfilled buffer of `len` bytes from the same pool as this one.
    pub fn sibling(&self, len: u32) -> Buffer {
        match &self.inner().pool {
            Some(shelves) => Shelves::take(shelves, len),
            None => Buffer::new(len),
        }
    }
}

fn all_zero(bytes: &[u8]) -> bool {
    // Word by word: the compiler makes vector code of it.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

impl Inner {
    fn reset(&mut self, len: u32) {
        self.len = len;
        self.lent = None;
        self.fills.clear();
        if len > 0 {
            self.fills.push((len, Fill::Unfilled));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(mut inner) = self.0.take()
            && let Some(pool) = inner.pool.take()
        {
            inner.lent = None;
            pool.give_back(inner);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("Buffer")
            .field("len", &inner.len)
            .field("fills", &inner.fills)
            .field("lent", &inner.lent)
            .finish()
    }
}

/// Capacities of pooled buffers: 4 KiB (the commonest request), then steps of four up to 4 MiB. Larger ones are rare enough that the
/// allocator's mmap is not what costs.
const CLASSES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// Bytes kept on each shelf at most for the next request: what nbdcopy has in flight, 64 requests of 256 KiB. They stay for as long as they are needed
/// ([`Pool::free_spare`]), so this is no measure of an idle server.
const KEEP_BYTES: usize = 16 << 20;

/// A shared store of buffers, by size class. Cloning it shares it. What it keeps is bounded (some 96 MiB in all), and none of it for ever
/// ([`Pool::free_spare`]); what it hands out is not: the server counts the bytes in flight before it asks.
#[derive(Clone)]
pub struct Pool(Arc<Shelves>);

/// Buffers of a class.
type Class = Mutex<Shelf<Box<Inner>>>;

fn locked(class: &Class) -> MutexGuard<'_, Shelf<Box<Inner>>> {
    lock(class)
}

#[derive(Default)]
struct Shelves {
    classes: [Class; CLASSES.len()],
    stir: Arc<Stir>,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::new()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Pool {
        Pool(Arc::default())
    }

    /// A buffer of `len` bytes, all of it unfilled.
    pub fn take(&self, len: u32) -> Buffer {
        Shelves::take(&self.0, len)
    }

    /// Tells whether buffers come back, for who calls [`Pool::free_spare`]. Others may stir as well: whatever makes it worth looking for what can be
    /// freed.
    pub fn stir(&self) -> &Arc<Stir> {
        &self.0.stir
    }

    /// Frees the buffers that nobody has needed since this was last called, and the pipes for what is lent. Two calls in a row without a stir
    /// between them leave none.
    pub fn free_spare(&self) {
        for class in &self.0.classes {
            // Dropped when it is unlocked again: who wants a buffer does not wait for the system to take pages back.
            let spare = locked(class).spare(0);
            drop(spare);
        }
        pipe::close_spare();
    }

    /// How many buffers it keeps, for tests of who frees them.
    pub fn kept(&self) -> usize {
        self.0.classes.iter().map(|class| locked(class).len()).sum()
    }
}

impl Shelves {
    fn class(len: usize) -> Option<usize> {
        CLASSES.iter().position(|capacity| len <= *capacity)
    }

    fn take(shelves: &Arc<Shelves>, len: u32) -> Buffer {
        let Some(class) = Shelves::class(len as usize) else {
            return Buffer::new(len);
        };
        let kept = locked(&shelves.classes[class]).take();
        match kept {
            Some(mut inner) => {
                inner.reset(len);
                inner.pool = Some(Arc::clone(shelves));
                Buffer(Some(inner))
            }
            None => Buffer::with_bytes(vec![0; CLASSES[class]], len, Some(Arc::clone(shelves))),
        }
    }

    fn give_back(&self, inner: Box<Inner>) {
        let Some(class) = Shelves::class(inner.bytes.len()) else { return };
        let mut shelf = locked(&self.classes[class]);
        if shelf.len() * CLASSES[class] < KEEP_BYTES {
            shelf.put(inner);
        }
        // With the shelf locked: who asks whether there was a stir before locking it finds what was put there, or is stirred once more.
        self.stir.stir();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fills(buffer: &Buffer) -> Vec<(u32, u32, Fill)> {
        buffer.fills().map(|(span, fill)| (span.at, span.len, fill)).collect()
    }

    #[test]
    fn a_recycled_buffer_never_shows_old_bytes() {
        let pool = Pool::new();
        let mut first = pool.take(4096);
        first
            .fill_with(first.span(), |bytes| {
                bytes.fill(7);
                Ok::<_, ()>(())
            })
            .unwrap();
        drop(first);
        let mut second = pool.take(100);
        second.put(10, &[1]);
        let all = second.span();
        let bytes = second.bytes(all);
        assert_eq!(bytes[10], 1);
        assert!(bytes.iter().enumerate().all(|(i, b)| i == 10 || *b == 0));
    }

    #[test]
    fn buffers_that_nobody_has_needed_for_a_while_are_freed() {
        let pool = Pool::new();
        let burst: Vec<Buffer> = (0..8).map(|n| pool.take(4096 << (n % 2 * 4))).collect();
        assert_eq!((pool.kept(), pool.stir().settle()), (0, false));
        drop(burst);
        assert_eq!((pool.kept(), pool.stir().settle()), (8, true));
        // They were in use since the last look. From then on only one is.
        pool.free_spare();
        assert_eq!(pool.kept(), 8);
        for _ in 0..3 {
            drop(pool.take(4096));
        }
        pool.free_spare();
        assert_eq!((pool.kept(), pool.stir().settle()), (1, true));
        pool.free_spare();
        assert_eq!((pool.kept(), pool.stir().settle()), (0, false));
        assert_eq!(pool.take(4096).len(), 4096);
    }

    #[test]
    fn marks_split_and_merge_runs() {
        let mut buffer = Buffer::new(100);
        buffer.mark(Span::new(20, 10), Fill::Data);
        buffer.mark(Span::new(40, 10), Fill::Zero);
        assert_eq!(
            fills(&buffer),
            [
                (0, 20, Fill::Unfilled),
                (20, 10, Fill::Data),
                (30, 10, Fill::Unfilled),
                (40, 10, Fill::Zero),
                (50, 50, Fill::Unfilled)
            ]
        );
        buffer.mark(Span::new(30, 10), Fill::Data);
        buffer.mark(Span::new(0, 20), Fill::Data);
        assert_eq!(fills(&buffer), [(0, 40, Fill::Data), (40, 10, Fill::Zero), (50, 50, Fill::Unfilled)]);
        buffer.mark(Span::new(25, 75), Fill::Zero);
        assert_eq!(fills(&buffer), [(0, 25, Fill::Data), (25, 75, Fill::Zero)]);
        buffer.materialize(Span::new(0, 100));
        assert_eq!(fills(&buffer), [(0, 100, Fill::Data)]);
    }

    #[test]
    fn marks_agree_with_a_plain_model() {
        // A linear congruential generator is random enough to meet every order of overlaps.
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % limit
        };
        for _ in 0..200 {
            let mut buffer = Buffer::new(64);
            let mut model = [Fill::Unfilled; 64];
            for _ in 0..30 {
                let at = next(64);
                let len = next(64 - at + 1);
                let fill = [Fill::Unfilled, Fill::Zero, Fill::Data][next(3) as usize];
                buffer.mark(Span::new(at as u32, len as u32), fill);
                model[at as usize..(at + len) as usize].fill(fill);
                let flat: Vec<Fill> =
                    buffer.fills().flat_map(|(span, fill)| std::iter::repeat_n(fill, span.len as usize)).collect();
                assert_eq!(flat, model);
                let runs = fills(&buffer);
                assert!(runs.windows(2).all(|pair| pair[0].2 != pair[1].2), "{runs:?}");
            }
        }
    }

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
