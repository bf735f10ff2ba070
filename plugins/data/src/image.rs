//! The value of an expression: a sequence of bytes, held as pieces that may be repeated or shared
//! without being copied.
//!
//! `(0 1)*1000000000` is one piece that refers to two bytes; a name that is used a thousand times
//! is a thousand references. So the memory of an image is proportional to the length of the text
//! that describes it, and not to the size of the disk.
//!
//! Invariants of [`Image`]: pieces do not overlap, are not empty and end within `len`. Bytes
//! between them read as zero. A repeated image is not empty. No chain of references is longer than
//! [`MAX_DEPTH`], so that recursion along it is safe.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest image, in bytes: the most that NBD and nbdkit can serve.
pub(crate) const MAX_LEN: u64 = i64::MAX as u64;

/// The longest chain of images that refer to one another. Reading recurses along it, with some 200
/// bytes of stack for each.
const MAX_DEPTH: u32 = 256;

/// An image of several pieces is copied into one piece if it is not longer than this, in bytes.
/// Reading then takes fewer steps, and the memory is still proportional to the text.
const FLATTEN: u64 = 4096;

/// The unit of extents, see [`Image::run`].
pub(crate) const PAGE: u64 = rbdkit_ram_disk::PAGE as u64;

#[derive(Clone, Debug)]
enum Content {
    /// `bytes[from..]`.
    Bytes { bytes: Arc<[u8]>, from: usize },
    /// One byte, repeated; not zero.
    Fill(u8),
    /// Another image, beginning at `from`.
    Part { image: Arc<Image>, from: u64 },
    /// Another image over and over, beginning at `phase` of it.
    Repeat { image: Arc<Image>, phase: u64 },
}

impl Content {
    /// The content after the first `by` bytes.
    fn skip(&self, by: u64) -> Content {
        match self {
            Content::Bytes { bytes, from } => Content::Bytes { bytes: Arc::clone(bytes), from: from + by as usize },
            Content::Fill(byte) => Content::Fill(*byte),
            Content::Part { image, from } => Content::Part { image: Arc::clone(image), from: from + by },
            Content::Repeat { image, phase } => Content::Repeat {
                image: Arc::clone(image),
                // Both are below 2^63.
                phase: (phase + by % image.len) % image.len,
            },
        }
    }

    fn depth(&self) -> u32 {
        match self {
            Content::Bytes { .. } | Content::Fill(_) => 0,
            Content::Part { image, .. } | Content::Repeat { image, .. } => image.depth,
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    len: u64,
    content: Content,
}

/// Why an image cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the data goes beyond the largest size of a disk, 2^63 - 1 bytes")]
    TooLong,
    #[error("expressions are made of one another in too many steps")]
    TooDeep,
}

/// Bytes from 0 to `len`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    len: u64,
    /// The pieces, by offset.
    pieces: BTreeMap<u64, Piece>,
    /// One more than the depth of the deepest image that it refers to.
    depth: u32,
}

impl Image {
    /// These bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Image {
        let mut image = Image::default();
        let fits = image.put_bytes(0, bytes);
        debug_assert!(fits.is_ok(), "a slice is shorter than 2^63 bytes");
        image
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Extends the image to at least this length.
    pub(crate) fn extend_to(&mut self, len: u64) -> Result<(), ImageError> {
        if len > MAX_LEN {
            return Err(ImageError::TooLong);
        }
        self.len = self.len.max(len);
        Ok(())
    }

    /// Makes the bytes from `start` to `end` zero, without changing the length.
    pub(crate) fn cut(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&at, piece)) = self.pieces.range_mut(..start).next_back() {
            let piece_end = at + piece.len;
            if piece_end > start {
                let tail =
                    (piece_end > end).then(|| Piece { len: piece_end - end, content: piece.content.skip(end - at) });
                piece.len = start - at;
                if let Some(tail) = tail {
                    self.pieces.insert(end, tail);
                }
            }
        }
        while let Some((&at, _)) = self.pieces.range(start..end).next() {
            let Some(piece) = self.pieces.remove(&at) else { break };
            let piece_end = at + piece.len;
            if piece_end > end {
                self.pieces.insert(end, Piece { len: piece_end - end, content: piece.content.skip(end - at) });
            }
        }
    }

    /// Overwrites the bytes at `at`, and extends the image if necessary. No content is zeroes.
    fn put(&mut self, at: u64, len: u64, content: Option<Content>) -> Result<(), ImageError> {
        if len == 0 {
            return Ok(());
        }
        let end = at.checked_add(len).ok_or(ImageError::TooLong)?;
        self.extend_to(end)?;
        self.cut(at, end);
        if let Some(content) = content {
            let depth = content.depth() + 1;
            if depth > MAX_DEPTH {
                return Err(ImageError::TooDeep);
            }
            self.depth = self.depth.max(depth);
            self.pieces.insert(at, Piece { len, content });
        }
        Ok(())
    }

    /// Puts bytes at `at`.
    pub(crate) fn put_bytes(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let content = match bytes {
            [first, rest @ ..] if rest.iter().all(|byte| byte == first) => {
                (*first != 0).then_some(Content::Fill(*first))
            }
            _ => Some(Content::Bytes { bytes: bytes.into(), from: 0 }),
        };
        self.put(at, bytes.len() as u64, content)
    }

    /// Puts a copy of an image at `at`, its zeroes included.
    pub(crate) fn put_image(&mut self, at: u64, image: &Arc<Image>) -> Result<(), ImageError> {
        self.put_part(at, image, 0, image.len)
    }

    /// Puts `image[from..from + len]`, which must lie within it, at `at`.
    fn put_part(&mut self, at: u64, image: &Arc<Image>, from: u64, len: u64) -> Result<(), ImageError> {
        // If the image has at most one piece, copying that is cheaper than a reference, and keeps
        // chains short.
        if image.pieces.len() > 1 {
            let content = (!image.is_zero(from, len)).then(|| Content::Part { image: Arc::clone(image), from });
            return self.put(at, len, content);
        }
        self.put(at, len, None)?;
        if let Some((&start, piece)) = image.pieces.first_key_value() {
            let first = start.max(from);
            let last = (start + piece.len).min(from + len);
            if first < last {
                self.put(at + (first - from), last - first, Some(piece.content.skip(first - start)))?;
            }
        }
        Ok(())
    }

    /// Makes the image shareable: a small one becomes one piece.
    pub(crate) fn share(self) -> Arc<Image> {
        if self.pieces.len() > 1 && self.len <= FLATTEN {
            let mut bytes = vec![0; self.len as usize];
            self.read_over_zeroes(0, &mut bytes);
            return Arc::new(Image::of_bytes(&bytes));
        }
        Arc::new(self)
    }

    /// `self[from..to]`, which must lie within it.
    pub(crate) fn slice(self: &Arc<Self>, from: u64, to: u64) -> Result<Arc<Image>, ImageError> {
        if from == 0 && to == self.len {
            return Ok(Arc::clone(self));
        }
        let mut slice = Image::default();
        slice.put_part(0, self, from, to - from)?;
        Ok(slice.share())
    }

    /// `self`, repeated `times` times.
    pub(crate) fn repeat(self: &Arc<Self>, times: u64) -> Result<Arc<Image>, ImageError> {
        if times == 1 {
            return Ok(Arc::clone(self));
        }
        let len = self.len.checked_mul(times).ok_or(ImageError::TooLong)?;
        let whole = self.pieces.first_key_value().filter(|(at, piece)| **at == 0 && piece.len == self.len);
        let content = match whole.map(|(_, piece)| &piece.content) {
            Some(Content::Fill(byte)) => Some(Content::Fill(*byte)),
            Some(Content::Repeat { image, phase: 0 }) if self.len.is_multiple_of(image.len) => {
                Some(Content::Repeat { image: Arc::clone(image), phase: 0 })
            }
            _ if self.pieces.is_empty() => None,
            _ => Some(Content::Repeat { image: Arc::clone(self), phase: 0 }),
        };
        let mut repeated = Image::default();
        repeated.put(0, len, content)?;
        Ok(repeated.share())
    }

    /// Fills `out` with the bytes from `at`. Beyond the end they are zero.
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) {
        out.fill(0);
        self.read_over_zeroes(at, out);
    }

    fn read_over_zeroes(&self, at: u64, out: &mut [u8]) {
        let end = at.saturating_add(out.len() as u64);
        let first = self.pieces.range(..=at).next_back().map_or(at, |(start, _)| *start);
        for (&start, piece) in self.pieces.range(first..end) {
            let from = start.max(at);
            let to = (start + piece.len).min(end);
            if from < to {
                read_piece(&piece.content, from - start, &mut out[(from - at) as usize..(to - at) as usize]);
            }
        }
    }

    /// The length of the run at `at`, at most `max` bytes, and whether it may be data (true) or is
    /// known to be zero (false).
    ///
    /// Zeroes within repetitions that are shorter than a page count as data, because they never
    /// make a whole page.
    pub(crate) fn run(&self, at: u64, max: u64) -> (u64, bool) {
        if let Some((&start, piece)) = self.pieces.range(..=at).next_back()
            && start + piece.len > at
        {
            let left = (start + piece.len - at).min(max);
            return match &piece.content {
                Content::Bytes { .. } | Content::Fill(_) => (left, true),
                Content::Part { image, from } => image.run(from + (at - start), left),
                Content::Repeat { image, .. } if image.len <= PAGE => (left, true),
                Content::Repeat { image, phase } => {
                    let at = (phase + (at - start) % image.len) % image.len;
                    image.run(at, left.min(image.len - at))
                }
            };
        }
        match self.pieces.range(at..).next() {
            Some((&start, _)) => ((start - at).min(max), false),
            None => (max, false),
        }
    }

    /// As [`Image::run`], but joins runs of zeroes, up to a limited number of steps.
    pub(crate) fn long_run(&self, at: u64, max: u64) -> (u64, bool) {
        const STEPS: u32 = 64;
        let mut nothing = 0;
        for _ in 0..STEPS {
            match self.run(at + nothing, max - nothing) {
                (len, true) if nothing == 0 => return (len, true),
                (_, true) => break,
                (len, false) => nothing += len,
            }
            if nothing >= max {
                break;
            }
        }
        (nothing, false)
    }

    /// Whether a range is known to be zero.
    pub(crate) fn is_zero(&self, from: u64, len: u64) -> bool {
        self.long_run(from, len) == (len, false)
    }
}

/// Writes the bytes of a piece from `skip` on into `out`, which is zero.
fn read_piece(content: &Content, skip: u64, out: &mut [u8]) {
    match content {
        Content::Bytes { bytes, from } => {
            let from = from + skip as usize;
            out.copy_from_slice(&bytes[from..from + out.len()]);
        }
        Content::Fill(byte) => out.fill(*byte),
        Content::Part { image, from } => image.read_over_zeroes(from + skip, out),
        Content::Repeat { image, phase } => {
            let phase = (phase + skip % image.len) % image.len;
            // Reads one period in at most two parts, then copies what is there already, twice as
            // much each time.
            let period = usize::try_from(image.len).unwrap_or(usize::MAX).min(out.len());
            let before_wrap = usize::try_from(image.len - phase).unwrap_or(usize::MAX).min(period);
            let (first, second) = out[..period].split_at_mut(before_wrap);
            image.read_over_zeroes(phase, first);
            image.read_over_zeroes(0, second);
            let mut filled = period;
            while filled < out.len() {
                let next = filled.min(out.len() - filled);
                out.copy_within(..next, filled);
                filled += next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(image: &Image) -> Vec<u8> {
        let mut bytes = vec![0xee; image.len() as usize];
        image.read(0, &mut bytes);
        bytes
    }

    fn shared(bytes: &[u8]) -> Arc<Image> {
        Arc::new(Image::of_bytes(bytes))
    }

    #[test]
    fn later_pieces_overwrite_earlier_ones() {
        let mut image = Image::of_bytes(&[1, 2, 3, 4, 5]);
        image.put_bytes(1, &[9, 8]).unwrap();
        image.put_bytes(4, &[0, 0, 7]).unwrap();
        assert_eq!(bytes(&image), [1, 9, 8, 4, 0, 0, 7]);
        image.cut(2, 4);
        assert_eq!(bytes(&image), [1, 9, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn repetitions_are_not_stored() {
        let huge = shared(&[1, 2, 3]).repeat(MAX_LEN / 3).unwrap();
        assert_eq!(huge.pieces.len(), 1);
        let mut out = [0; 7];
        huge.read(MAX_LEN / 6 * 3 - 1, &mut out);
        assert_eq!(out, [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(huge.repeat(2).unwrap_err(), ImageError::TooLong);
        let middle = huge.slice(1, MAX_LEN - 10).unwrap();
        middle.read(0, &mut out);
        assert_eq!(out, [2, 3, 1, 2, 3, 1, 2]);
    }

    #[test]
    fn doubling_sixty_times_takes_no_memory() {
        let mut image = shared(&[1, 2]);
        for _ in 0..60 {
            let mut twice = Image::default();
            twice.put_image(0, &image).unwrap();
            twice.put_image(image.len(), &image).unwrap();
            image = twice.share();
        }
        assert_eq!(image.len(), 1 << 61);
        let mut out = [0; 5];
        image.read((1 << 60) - 3, &mut out);
        assert_eq!(out, [2, 1, 2, 1, 2]);
    }

    #[test]
    fn chains_of_references_are_bounded() {
        let mut image = shared(&[1, 2]).repeat(5000).unwrap();
        let result = (0..1000).try_for_each(|_| {
            let mut longer = Image::default();
            longer.put_image(0, &image)?;
            longer.put_bytes(image.len(), &[7])?;
            image = longer.share();
            Ok(())
        });
        assert_eq!(result, Err(ImageError::TooDeep));
    }

    #[test]
    fn what_is_nothing_is_known_without_reading_it() {
        let mut image = Image::default();
        image.put_bytes(100_000, &[1]).unwrap();
        image.extend_to(200_000).unwrap();
        let sparse = Arc::new(image).repeat(1000).unwrap();
        assert_eq!(sparse.long_run(0, MAX_LEN), (100_000, false));
        assert_eq!(sparse.long_run(100_000, MAX_LEN), (1, true));
        assert_eq!(sparse.long_run(100_001, MAX_LEN), (199_999, false));
        assert_eq!(sparse.run(200_000_000, 5), (5, false));
        let zero = shared(&[0, 0, 0]).repeat(1 << 40).unwrap();
        assert_eq!(zero.run(5, MAX_LEN), (MAX_LEN, false));
    }
}
