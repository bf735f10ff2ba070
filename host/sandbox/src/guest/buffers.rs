//! The buffers of one call: the payload of its request, and those that the guest allocates.
//!
//! A guest names a buffer by a number: 0 is the payload. It sees a part of the payload's buffer,
//! and the whole of each buffer that it allocated. While an operation of the layer below works on a
//! buffer, the buffer is taken out of here, so nothing else can reach its bytes.

use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Errno, Fill, MAX_REQUEST, Pool, Span};

use super::clock::Overrun;
use super::fault::mistake;
use crate::connection::charge::{self, Charge};
use crate::connection::shared::FilterShared;

/// Buffers that a call may have at once, besides the payload.
const MAX_BUFFERS: usize = 1024;

/// A buffer that a guest changes is kept as at most this number of runs of data and of zeroes. A
/// buffer with more runs is kept as data alone, because a change moves all runs after it and a copy
/// adds one run for each run copied. A buffer that next filled may have more.
const MAX_RUNS: usize = 1024;

/// Bytes that `buffer.copy` copies at a time.
const MAX_COPY: u32 = 1 << 20;

/// The longest buffer that `buffer.alloc` makes.
const LONGEST: u32 = MAX_REQUEST;

/// What an operation does with the bytes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads them.
    Read,
    /// It changes them.
    Write,
}

/// What counts the bytes of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes {
    /// They already count as buffers that the call allocated (`buffers-total`).
    Own(u64),
    /// The server counts them while the request is in flight.
    Request(u64),
}

/// The request's payload, buffer 0.
struct Payload {
    /// None while next works on it.
    buffer: Option<Buffer>,
    /// The part of the buffer that the request is about: the guest's byte 0 is at `span.at`.
    span: Span,
    /// What the request does with it: a read writes into it.
    access: Access,
    /// The buffer as the layers above sent it. They must get it back unchanged, so the first change
    /// of a write's payload makes a copy, which is charged.
    original: Option<(Buffer, Charge)>,
}

/// The buffers of one call.
pub(crate) struct CallBuffers {
    payload: Option<Payload>,
    /// The buffers that the guest allocated, numbered from 1.
    own: Vec<Option<Buffer>>,
    own_bytes: u64,
    shared: Arc<FilterShared>,
}

impl Drop for CallBuffers {
    fn drop(&mut self) {
        self.shared.buffers.give(self.own_bytes);
    }
}

impl CallBuffers {
    pub(crate) fn new(shared: Arc<FilterShared>) -> CallBuffers {
        CallBuffers { payload: None, own: Vec::new(), own_bytes: 0, shared }
    }

    /// Installs the payload of a read, which writes into its buffer, or of a write, which reads
    /// from it.
    ///
    /// The content of a read's buffer has no meaning before the read fills it.
    #[inline]
    pub(super) fn install(&mut self, mut buffer: Buffer, span: Span, access: Access) {
        if access == Access::Write {
            buffer.mark(span, Fill::Unfilled);
        }
        self.payload = Some(Payload { buffer: Some(buffer), span, access, original: None });
    }

    /// Takes the payload out again (of a write, the buffer as it came from above) and drops the
    /// others.
    #[inline]
    pub(crate) fn clear(&mut self) -> Option<Buffer> {
        let buffer =
            self.payload.take().and_then(|payload| payload.original.map_or(payload.buffer, |(buffer, _)| Some(buffer)));
        self.own.clear();
        if self.own_bytes > 0 {
            self.shared.buffers.give(std::mem::take(&mut self.own_bytes));
        }
        buffer
    }

    /// Charges the bytes that an operation keeps after the call has ended. None: that would exceed
    /// the limit.
    pub(crate) fn charge(&mut self, bytes: Bytes) -> Option<Charge> {
        match bytes {
            Bytes::Own(bytes) => {
                self.own_bytes = self.own_bytes.saturating_sub(bytes);
                Some(Charge::taken_over(&self.shared.buffers, bytes))
            }
            Bytes::Request(bytes) => Charge::new(&self.shared.buffers, bytes),
        }
    }

    /// Where a buffer is kept, and what of it the guest sees.
    fn slot(&mut self, buf: u32) -> wasmtime::Result<(&mut Option<Buffer>, Span)> {
        let missing = || mistake(format!("there is no buffer {buf}"));
        if buf == 0 {
            let payload = self.payload.as_mut().ok_or_else(missing)?;
            return Ok((&mut payload.buffer, payload.span));
        }
        let slot = self.own.get_mut(buf as usize - 1).ok_or_else(missing)?;
        let span = slot.as_ref().ok_or_else(missing)?.span();
        Ok((slot, span))
    }

    /// A part of a buffer. The guest sees the span `whole` of that buffer.
    fn range(whole: Span, buf: u32, at: u32, length: u32) -> wasmtime::Result<Span> {
        let end = at.checked_add(length).filter(|end| *end <= whole.len);
        // `whole` lies within a buffer, so `whole.at + at` cannot overflow.
        end.map(|_| Span::new(whole.at + at, length))
            .ok_or_else(|| mistake(format!("{length} bytes at {at} are not within buffer {buf} of {}", whole.len)))
    }

    /// The length of a buffer, in bytes.
    pub(crate) fn len(&mut self, buf: u32) -> wasmtime::Result<u32> {
        Ok(self.slot(buf)?.1.len)
    }

    /// A buffer to read from.
    pub(crate) fn look(&mut self, buf: u32, at: u32, length: u32) -> wasmtime::Result<(&mut Buffer, Span)> {
        let (slot, whole) = self.slot(buf)?;
        let span = CallBuffers::range(whole, buf, at, length)?;
        slot.as_mut().map(|buffer| (buffer, span)).ok_or_else(|| mistake(format!("there is no buffer {buf}")))
    }

    /// A buffer to change.
    ///
    /// # Errors
    /// The copy of a write's payload would exceed the filter's `buffers-total`, or a mistake of the
    /// guest.
    pub(crate) fn change(&mut self, buf: u32, at: u32, length: u32) -> wasmtime::Result<(&mut Buffer, Span)> {
        if buf == 0
            && let Some(payload) = &mut self.payload
            && payload.access == Access::Read
            && payload.original.is_none()
            && let Some(mut buffer) = payload.buffer.take()
        {
            let Some(charge) = Charge::new(&self.shared.buffers, u64::from(buffer.len())) else {
                payload.buffer = Some(buffer);
                return Err(Overrun::Buffers.into());
            };
            payload.buffer = Some(buffer.duplicate());
            payload.original = Some((buffer, charge));
        }
        let (buffer, span) = self.look(buf, at, length)?;
        if buffer.fills().nth(MAX_RUNS).is_some() {
            buffer.materialize(buffer.span());
        }
        Ok((buffer, span))
    }

    /// Takes a buffer out for an operation; [`CallBuffers::restore`] has to follow.
    pub(super) fn lend(&mut self, buf: u32, at: u32, length: u32, access: Access) -> wasmtime::Result<(Buffer, Span)> {
        let span = match access {
            Access::Read => self.look(buf, at, length)?.1,
            Access::Write => self.change(buf, at, length)?.1,
        };
        let (slot, _) = self.slot(buf)?;
        slot.take().map(|buffer| (buffer, span)).ok_or_else(|| mistake(format!("there is no buffer {buf}")))
    }

    /// Puts a buffer back that was lent.
    pub(super) fn restore(&mut self, buf: u32, buffer: Buffer) {
        match (buf, &mut self.payload) {
            (0, Some(payload)) => payload.buffer = Some(buffer),
            (0, None) => {}
            (id, _) => {
                if let Some(slot) = self.own.get_mut(id as usize - 1) {
                    *slot = Some(buffer);
                }
            }
        }
    }

    /// `buffer.alloc`: allocates a buffer.
    pub(crate) fn alloc(&mut self, pool: &Pool, length: u32) -> Result<u32, Errno> {
        if length == 0 || length > LONGEST {
            return Err(Errno::Einval);
        }
        let bytes = u64::from(length);
        let free = self.own.iter().position(Option::is_none);
        if self.own_bytes.saturating_add(bytes) > self.shared.limits.buffers
            || (free.is_none() && self.own.len() >= MAX_BUFFERS)
            || !charge::take(&self.shared.buffers, bytes)
        {
            return Err(Errno::Enomem);
        }
        self.own_bytes += bytes;
        let buffer = pool.take(length);
        let index = free.unwrap_or(self.own.len());
        match self.own.get_mut(index) {
            Some(slot) => *slot = Some(buffer),
            None => self.own.push(Some(buffer)),
        }
        Ok(index as u32 + 1)
    }

    /// `buffer.copy`: copies bytes, and which of them are known to be zero. The ranges may overlap.
    pub(crate) fn copy(&mut self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) -> wasmtime::Result<()> {
        // In pieces, so that a copy of 64 MiB takes no second 64 MiB. Ranges of one buffer may
        // overlap: then the pieces are copied from the end that is not overwritten first.
        let backwards = to == from && to_at > from_at;
        let pieces = length.div_ceil(MAX_COPY);
        if pieces == 0 {
            return self.copy_piece((to, to_at), (from, from_at), 0);
        }
        // The ranges are checked as a whole, so that a wrong one changes nothing.
        self.look(from, from_at, length)?;
        self.look(to, to_at, length)?;
        for piece in 0..pieces {
            let at = MAX_COPY * if backwards { pieces - 1 - piece } else { piece };
            self.copy_piece((to, to_at + at), (from, from_at + at), MAX_COPY.min(length - at))?;
        }
        Ok(())
    }

    fn copy_piece(&mut self, to: (u32, u32), from: (u32, u32), length: u32) -> wasmtime::Result<()> {
        let (source, from_span) = self.look(from.0, from.1, length)?;
        if source.spliced() > 0 {
            source.materialize(from_span);
        }
        // A range known to be zero stays known to be zero, so copying it costs nothing.
        let mut parts = Vec::new();
        let runs: Vec<(Span, Fill)> = source
            .fills()
            .skip_while(|(run, _)| run.at + run.len <= from_span.at)
            .take_while(|(run, _)| run.at < from_span.at + from_span.len)
            .collect();
        for (run, fill) in runs {
            let start = run.at.max(from_span.at);
            let end = (run.at + run.len).min(from_span.at + from_span.len);
            if start < end {
                let data = (fill == Fill::Data).then(|| source.data(Span::new(start, end - start)).to_vec());
                parts.push((start - from_span.at, end - start, data));
            }
        }
        let (target, to_span) = self.change(to.0, to.1, length)?;
        for (at, length, data) in parts {
            match data {
                Some(data) => target.put(to_span.at + at, &data),
                None => target.set_zero(Span::new(to_span.at + at, length)),
            }
        }
        Ok(())
    }

    /// `buffer.equal`.
    pub(super) fn equal(&mut self, a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> wasmtime::Result<bool> {
        let (first, span) = self.look(a, a_at, length)?;
        let zero = first.is_zero(span);
        let (second, second_span) = self.look(b, b_at, length)?;
        if zero {
            return Ok(second.is_zero(second_span));
        }
        self.with_both((a, a_at), (b, b_at), length, |first, second| first == second)
    }

    /// `buffer.mismatch`: where two ranges differ first.
    pub(super) fn mismatch(&mut self, a: (u32, u32), b: (u32, u32), length: u32) -> wasmtime::Result<Option<u32>> {
        self.with_both(a, b, length, |first, second| match first == second {
            true => None,
            false => first.iter().zip(second).position(|(a, b)| a != b).map(|at| at as u32),
        })
    }

    /// Lets `work` look at two ranges of `length` bytes. A range is a buffer and a position in it.
    fn with_both<T>(
        &mut self,
        a: (u32, u32),
        b: (u32, u32),
        length: u32,
        work: impl FnOnce(&[u8], &[u8]) -> T,
    ) -> wasmtime::Result<T> {
        let span = self.look(a.0, a.1, length)?.1;
        let (second, second_span) = self.look(b.0, b.1, length)?;
        if a.0 == b.0 {
            second.materialize(span);
            second.materialize(second_span);
            return Ok(work(second.data(span), second.data(second_span)));
        }
        let (mut taken, span) = self.lend(a.0, a.1, length, Access::Read)?;
        let answer = self.look(b.0, b.1, length).map(|(second, span_b)| work(taken.bytes(span), second.bytes(span_b)));
        self.restore(a.0, taken);
        answer
    }

    /// `buffer.free`: frees a buffer that the guest allocated.
    pub(crate) fn free(&mut self, buf: u32) -> wasmtime::Result<()> {
        if buf == 0 {
            return Err(mistake("it freed buffer 0, the request's own"));
        }
        let buffer = self.slot(buf)?.0.take();
        if let Some(buffer) = buffer {
            let bytes = u64::from(buffer.len());
            self.own_bytes -= bytes;
            self.shared.buffers.give(bytes);
        }
        Ok(())
    }
}
