//! What the imports act on: the call that an instance is serving.
//!
//! A store's data ([`Context`]) lives as long as the instance; within it [`Call`] is filled when a call begins and emptied when it
//! ends, in whatever way it ends. So nothing of one request can be seen by the next: buffers, the lock, changes held back, the
//! connection. A call that is dropped half way drops them too, which releases the lock and undoes the changes.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Errno, Error, ExportEntry, Extents, Fill, Pool, Span};
use wasmtime::ResourceLimiter;

use super::clock::{CallClock, Overrun};
use super::outside::Outside;
use crate::connection::bindings::host::types as wit;
use crate::connection::shared::Shared;
use crate::connection::stray::{self, Bytes, Charge};
use crate::layer::conn::{Conn, Next};
use crate::state::{Changes, Held, Quota, ScopeState};
use crate::wasi::{Console, Handles};
use rbdkit_chain::Below;

/// When a function may be used, as the contract names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase(u8);

impl Phase {
    /// describe, configure.
    pub(crate) const CONFIGURE: Phase = Phase(1);
    /// get-ready, after-fork, cleanup.
    pub(crate) const READY: Phase = Phase(2);
    /// preconnect, list-exports, default-export.
    pub(crate) const BEFORE: Phase = Phase(4);
    /// open, prepare, finalize, close, and the questions after open.
    pub(crate) const OPEN: Phase = Phase(8);
    /// Requests.
    pub(crate) const DATA: Phase = Phase(16);

    pub(crate) const fn or(self, other: Phase) -> Phase {
        Phase(self.0 | other.0)
    }

    pub(crate) fn is_in(self, others: Phase) -> bool {
        self.0 & others.0 != 0
    }
}

/// What a guest got wrong. It traps.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Mistake(pub(crate) String);

/// A guest's mistake as the error that traps.
pub(crate) fn mistake(what: impl Into<String>) -> wasmtime::Error {
    wasmtime::Error::new(Mistake(what.into()))
}

/// Memory and tables of an instance, against their limit and against that of all instances together.
pub(crate) struct Room {
    limit: u64,
    used: u64,
    all: Arc<Quota>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.give(self.used);
    }
}

/// What a table's element takes in the host.
const TABLE_ELEMENT: u64 = 16;

impl Room {
    fn grow(&mut self, from: usize, to: usize, scale: u64) -> bool {
        let more = (to.saturating_sub(from) as u64).saturating_mul(scale);
        let used = self.used.saturating_add(more);
        if used > self.limit || !self.all.take(more) {
            return false;
        }
        self.used = used;
        true
    }
}

impl ResourceLimiter for Room {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, 1))
    }
    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, TABLE_ELEMENT))
    }
    // A component of wit-component's has the guest's module, a shim and a fixup; Python's one for each library.
    fn instances(&self) -> usize {
        256
    }
    fn tables(&self) -> usize {
        16
    }
    // One, and one for each component within: a stub of WASI has its own.
    fn memories(&self) -> usize {
        8
    }
}

/// The data of a store.
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<CallClock>,
    pub(crate) room: Room,
    /// The guest's handles of WASI.
    pub(crate) handles: Handles,
    pub(crate) outside: Outside,
    pub(crate) call: Call,
}

impl Context {
    pub(crate) fn new(shared: Arc<Shared>) -> Context {
        let clock = CallClock::new(Arc::clone(&shared.pulse));
        let room = Room { limit: shared.limits.memory, used: 0, all: Arc::clone(&shared.memory_all) };
        let call = Call::new(Arc::clone(&shared));
        let outside = if shared.describing { Outside::MadeUp(0) } else { Outside::Real };
        Context { shared, clock, room, handles: Handles::default(), outside, call }
    }

    /// Nanoseconds since the server started, for the guest.
    pub(crate) fn now(&mut self) -> u64 {
        self.outside.monotonic(|| self.clock.pulse().now())
    }

    /// Bytes of memory and tables.
    pub(crate) fn memory(&self) -> u64 {
        self.room.used
    }

    /// A guest that goes on computing when its client has gone is ended, where nothing is lost with its instance.
    pub(crate) fn still_wanted(&self) -> Result<(), Overrun> {
        let gone = self.call.conn.as_ref().is_some_and(|conn| conn.client().is_gone());
        if gone && self.call.may_end() { Err(Overrun::Gone) } else { Ok(()) }
    }

    /// For functions that answer an error where they may not be used.
    pub(crate) fn allow(&self, phases: Phase) -> Result<(), wit::Errno> {
        if self.call.phase.is_in(phases) { Ok(()) } else { Err(wit::Errno::Enxio) }
    }

    /// For functions that cannot answer an error.
    pub(crate) fn require(&self, phases: Phase, what: &str) -> wasmtime::Result<()> {
        if self.call.phase.is_in(phases) { Ok(()) } else { Err(mistake(format!("it called {what} where it may not"))) }
    }

    /// The connection being served.
    pub(crate) fn conn(&self, what: &str) -> wasmtime::Result<&Arc<Conn>> {
        self.require(Phase::OPEN.or(Phase::DATA), what)?;
        self.call.conn.as_ref().ok_or_else(|| mistake(format!("it called {what} where there is no connection")))
    }

    /// The layer below, for a call of `next`.
    pub(crate) fn next(&self) -> Result<&Arc<Next>, wit::Errno> {
        self.allow(Phase::OPEN.or(Phase::DATA))?;
        self.call.next().ok_or(wit::Errno::Enxio)
    }

    /// The state that a scope names.
    pub(crate) fn scope(&self, scope: wit::Scope, what: &str) -> wasmtime::Result<&Arc<ScopeState>> {
        Ok(self.conn(what)?.scope(scope))
    }

    /// A layer's answer for the guest. What the layer below said is kept: it goes on to the client if the guest answers the same errno.
    pub(crate) fn answer<T>(&mut self, result: Result<T, Error>) -> Result<T, wit::Errno> {
        result.map_err(|error| {
            let errno = error.errno();
            self.call.last_error = Some(error);
            errno.into()
        })
    }
}

/// The request's payload, buffer 0.
struct Payload {
    /// None while next works on it.
    buffer: Option<Buffer>,
    /// What of the buffer the request is about: the guest's byte 0 is at `span.at`.
    span: Span,
    /// A write: layers above keep what they sent, so the first change is made to a copy...
    write: bool,
    /// ...and this is theirs.
    original: Option<Buffer>,
}

/// The call being served.
pub(crate) struct Call {
    pub(crate) phase: Phase,
    pub(crate) conn: Option<Arc<Conn>>,
    /// What it began with, whatever becomes of the connection's meanwhile; none where the connection's cannot be replaced.
    pub(crate) next: Option<Arc<Next>>,
    /// The layers below, where there is no connection.
    pub(crate) below: Option<Below>,
    /// Within open: that of next is a no-op.
    pub(crate) replayed: bool,
    /// Within finalize and close: waiting goes on when the client has gone.
    pub(crate) patient: bool,
    /// How long such a call has slept, or is to.
    pub(crate) slept: Duration,
    pub(crate) answer: Option<Answer>,
    /// Before the lock: a call that is dropped undoes its changes while it still holds it.
    pub(crate) changes: Changes,
    pub(crate) lock: Option<Held>,
    pub(crate) last_error: Option<Error>,
    /// Lines that the guest has begun on standard output and error.
    pub(crate) console: Console,
    payload: Option<Payload>,
    own: Vec<Option<Buffer>>,
    own_bytes: u64,
    shared: Arc<Shared>,
}

/// What a call begins with.
pub(crate) struct Setup {
    pub(crate) phase: Phase,
    /// Where the answer of a `mapping.extents` has to begin.
    pub(crate) answer: Option<u64>,
    pub(crate) below: Option<Below>,
    pub(crate) replayed: bool,
    pub(crate) patient: bool,
}

impl Setup {
    pub(crate) fn new(phase: Phase) -> Setup {
        Setup { phase, answer: None, below: None, replayed: false, patient: false }
    }
}

/// Buffers that a call may have at once.
const OWN_BUFFERS: usize = 1024;

/// A buffer that a guest changes is kept as runs of data and of zeroes up to this number of them, and as data alone beyond: a change moves
/// the runs behind it, and a copy makes one for each. What next filled may have more.
const RUNS: usize = 1024;

/// The longest that `buffer.alloc` gives.
const LONGEST: u32 = rbdkit_plugin_api::MAX_REQUEST;

impl Drop for Call {
    fn drop(&mut self) {
        self.console.flush(&self.shared.log);
        self.shared.own_buffers.give(self.own_bytes);
    }
}

impl Call {
    fn new(shared: Arc<Shared>) -> Call {
        Call {
            phase: Phase::CONFIGURE,
            conn: None,
            next: None,
            below: None,
            replayed: false,
            patient: false,
            slept: Duration::ZERO,
            answer: None,
            lock: None,
            changes: Changes::default(),
            last_error: None,
            console: Console::default(),
            payload: None,
            own: Vec::new(),
            own_bytes: 0,
            shared,
        }
    }

    /// A call without a payload begins.
    pub(crate) fn begin(&mut self, setup: Setup, conn: Option<&Arc<Conn>>) {
        self.phase = setup.phase;
        self.conn = conn.cloned();
        self.next = conn.and_then(|conn| conn.replaceable_next());
        self.below = setup.below;
        self.replayed = setup.replayed;
        self.patient = setup.patient;
        self.slept = Duration::ZERO;
        self.answer = setup.answer.map(Answer::new);
    }

    /// [`Call::begin`] for a read or a write of a connection. The rest is as [`Call::end`] left it. What a read finds in its buffer is
    /// nobody's.
    pub(crate) fn begin_transfer(&mut self, conn: &Arc<Conn>, mut buffer: Buffer, span: Span, write: bool) {
        if !write {
            buffer.mark(span, Fill::Unfilled);
        }
        self.phase = Phase::DATA;
        self.replayed = false;
        self.patient = false;
        self.next = conn.replaceable_next();
        self.conn = Some(Arc::clone(conn));
        self.payload = Some(Payload { buffer: Some(buffer), span, write, original: None });
    }

    /// A call is over: nothing of it stays. The answer of a `mapping.extents` as far as it was appended.
    pub(crate) fn end(&mut self) -> Option<Answer> {
        self.below = None;
        self.end_transfer();
        self.answer.take()
    }

    /// The same for what [`Call::begin_transfer`] began. The payload: of a write, the buffer that came from above. Changes were settled
    /// before, the lock goes here.
    pub(crate) fn end_transfer(&mut self) -> Option<Buffer> {
        let buffer = self.payload.take().and_then(|payload| payload.original.or(payload.buffer));
        self.lock = None;
        self.phase = Phase::CONFIGURE;
        self.conn = None;
        self.next = None;
        self.last_error = None;
        self.console.flush(&self.shared.log);
        self.own.clear();
        if self.own_bytes > 0 {
            self.shared.own_buffers.give(std::mem::take(&mut self.own_bytes));
        }
        buffer
    }

    /// Whether it waits for locks and sleeps on when its client has gone: somebody has to have the answer all the same.
    pub(crate) fn waits_on(&self) -> bool {
        self.patient || stray::is_steadfast_above()
    }

    /// Whether it may be ended when its client has gone: nobody needs its answer, and nothing is lost with its instance.
    pub(crate) fn may_end(&self) -> bool {
        let replaceable = || self.conn.as_ref().is_some_and(|conn| !conn.needs_its_instance());
        self.phase == Phase::DATA && replaceable() && !self.waits_on()
    }

    /// The account for bytes that an operation keeps when the call has ended. None: it has no room.
    pub(crate) fn charge(&mut self, bytes: Bytes) -> Option<Charge> {
        match bytes {
            Bytes::Own(bytes) => {
                self.own_bytes = self.own_bytes.saturating_sub(bytes);
                Some(Charge::taken_over(&self.shared, bytes))
            }
            Bytes::Request(bytes) => Charge::new(&self.shared, bytes),
        }
    }

    /// The layer below.
    pub(crate) fn next(&self) -> Option<&Arc<Next>> {
        self.next.as_ref().or_else(|| self.conn.as_ref()?.lasting_next())
    }

    /// What the layer below said with an errno that the guest now passes on.
    pub(crate) fn words_for(&mut self, errno: Errno) -> Option<Error> {
        self.last_error.take().filter(|known| known.errno() == errno)
    }

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

    fn range(whole: Span, buf: u32, at: u32, length: u32) -> wasmtime::Result<Span> {
        let end = at.checked_add(length).filter(|end| *end <= whole.len);
        // The whole lies within a buffer, so its own positions cannot overflow either.
        end.map(|_| Span::new(whole.at + at, length))
            .ok_or_else(|| mistake(format!("{length} bytes at {at} are not within buffer {buf} of {}", whole.len)))
    }

    pub(crate) fn len(&mut self, buf: u32) -> wasmtime::Result<u32> {
        Ok(self.slot(buf)?.1.len)
    }

    /// A buffer to look at.
    pub(crate) fn look(&mut self, buf: u32, at: u32, length: u32) -> wasmtime::Result<(&mut Buffer, Span)> {
        let (slot, whole) = self.slot(buf)?;
        let span = Call::range(whole, buf, at, length)?;
        slot.as_mut().map(|buffer| (buffer, span)).ok_or_else(|| mistake(format!("there is no buffer {buf}")))
    }

    /// A buffer to change.
    pub(crate) fn change(&mut self, buf: u32, at: u32, length: u32) -> wasmtime::Result<(&mut Buffer, Span)> {
        if buf == 0
            && let Some(payload) = &mut self.payload
            && payload.write
            && payload.original.is_none()
            && let Some(mut buffer) = payload.buffer.take()
        {
            payload.buffer = Some(buffer.duplicate());
            payload.original = Some(buffer);
        }
        let (buffer, span) = self.look(buf, at, length)?;
        if buffer.fills().nth(RUNS).is_some() {
            buffer.materialize(buffer.span());
        }
        Ok((buffer, span))
    }

    /// Takes a buffer for an operation of next; [`Call::restore`] has to follow.
    pub(crate) fn lend(&mut self, buf: u32, at: u32, length: u32, change: bool) -> wasmtime::Result<(Buffer, Span)> {
        let span = if change { self.change(buf, at, length)?.1 } else { self.look(buf, at, length)?.1 };
        let (slot, _) = self.slot(buf)?;
        slot.take().map(|buffer| (buffer, span)).ok_or_else(|| mistake(format!("there is no buffer {buf}")))
    }

    pub(crate) fn restore(&mut self, buf: u32, buffer: Buffer) {
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

    /// A further buffer.
    pub(crate) fn alloc(&mut self, pool: &Pool, length: u32) -> Result<u32, Errno> {
        if length == 0 || length > LONGEST {
            return Err(Errno::Einval);
        }
        let bytes = u64::from(length);
        let free = self.own.iter().position(Option::is_none);
        if self.own_bytes.saturating_add(bytes) > self.shared.limits.buffers
            || (free.is_none() && self.own.len() >= OWN_BUFFERS)
            || !self.shared.own_buffers.take(bytes)
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

    /// `buffer.copy`: bytes and what is known of them; the ranges may overlap.
    pub(crate) fn copy(&mut self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) -> wasmtime::Result<()> {
        let (source, from_span) = self.look(from, from_at, length)?;
        if source.lent() > 0 {
            source.materialize(from_span);
        }
        // What is known to be zero stays known, so copying it costs nothing.
        let mut parts = Vec::new();
        let runs: Vec<(Span, Fill)> = source.fills().collect();
        for (run, fill) in runs {
            let start = run.at.max(from_span.at);
            let end = (run.at + run.len).min(from_span.at + from_span.len);
            if start < end {
                let data = (fill == Fill::Data).then(|| source.data(Span::new(start, end - start)).to_vec());
                parts.push((start - from_span.at, end - start, data));
            }
        }
        let (target, to_span) = self.change(to, to_at, length)?;
        for (at, length, data) in parts {
            match data {
                Some(data) => target.put(to_span.at + at, &data),
                None => target.set_zero(Span::new(to_span.at + at, length)),
            }
        }
        Ok(())
    }

    /// `buffer.equal`.
    pub(crate) fn equal(&mut self, a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> wasmtime::Result<bool> {
        let (first, span) = self.look(a, a_at, length)?;
        let zero = first.is_zero(span);
        let (second, second_span) = self.look(b, b_at, length)?;
        if zero {
            return Ok(second.is_zero(second_span));
        }
        if a == b {
            second.materialize(span);
            second.materialize(second_span);
            return Ok(second.data(span) == second.data(second_span));
        }
        let (mut taken, span) = self.lend(a, a_at, length, false)?;
        let (second, second_span) = match self.look(b, b_at, length) {
            Ok(found) => found,
            Err(error) => {
                self.restore(a, taken);
                return Err(error);
            }
        };
        let same = taken.bytes(span) == second.bytes(second_span);
        self.restore(a, taken);
        Ok(same)
    }

    /// Ends a further buffer.
    pub(crate) fn free(&mut self, buf: u32) -> wasmtime::Result<()> {
        if buf == 0 {
            return Err(mistake("it freed buffer 0, the request's own"));
        }
        let buffer = self.slot(buf)?.0.take();
        if let Some(buffer) = buffer {
            let bytes = u64::from(buffer.len());
            self.own_bytes -= bytes;
            self.shared.own_buffers.give(bytes);
        }
        Ok(())
    }
}

/// The answer of a `mapping.extents` as it grows.
pub(crate) struct Answer {
    list: Extents,
    /// Where the next part has to begin.
    expected: u64,
}

impl Answer {
    pub(crate) fn new(offset: u64) -> Answer {
        Answer { list: Extents::new(offset), expected: offset }
    }

    /// Where the next part has to begin.
    pub(crate) fn expected(&self) -> u64 {
        self.expected
    }

    /// Appends what next said of `length` bytes, which became those from [`Answer::expected`] on.
    ///
    /// Next may know less than it was asked for, and the guest does not learn that: whatever it appends behind such a gap is left out,
    /// and the answer ends where it has to.
    pub(crate) fn append(&mut self, part: &Extents, length: u64) {
        let whole = self.is_whole();
        self.expected = self.expected.saturating_add(length);
        if whole {
            for extent in part.as_slice() {
                if !self.list.push(extent.length, extent.hole, extent.zero) {
                    return;
                }
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.list.next_offset() == self.expected
    }

    /// The whole answer: what was appended, then the guest's own list.
    pub(crate) fn finish(self, own: Vec<wit::Extent>, offset: u64, length: u64, one: bool) -> Result<Extents, Error> {
        let whole = self.is_whole();
        let own = own.into_iter().filter(|_| whole).map(rbdkit_plugin_api::Extent::from);
        Extents::check(self.list.as_slice().iter().copied().chain(own), offset, length, one)
    }
}

/// A name or description as the protocol can carry it: at most 4096 bytes.
pub(crate) fn protocol_string(text: &str) -> Result<&str, Error> {
    match text.len() {
        0..=4096 => Ok(text),
        length => Err(Error::new(Errno::Eio, format!("a filter answered a text of {length} bytes (at most 4096)"))),
    }
}

/// A list of exports as a guest made it.
pub(crate) fn checked_exports(list: Vec<wit::ExportEntry>) -> Result<Vec<ExportEntry>, Error> {
    list.into_iter()
        .map(|entry| {
            protocol_string(&entry.name)?;
            protocol_string(entry.description.as_deref().unwrap_or_default())?;
            Ok(entry.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, bool)], from: u64) -> Extents {
        let mut extents = Extents::new(from);
        for &(length, hole) in list {
            extents.push(length, hole, hole);
        }
        extents
    }

    #[test]
    fn an_answer_ends_where_next_knew_no_more() {
        let mut answer = Answer::new(100);
        answer.append(&extents(&[(10, false), (10, true)], 0), 20);
        assert_eq!(answer.expected(), 120);
        // Asked for 50 bytes, told of 5.
        answer.append(&extents(&[(5, false)], 900), 50);
        assert_eq!(answer.expected(), 170);
        answer.append(&extents(&[(30, true)], 0), 30);
        let list = answer.finish(vec![], 100, 100, false).unwrap();
        assert_eq!(list.next_offset(), 125);
        assert_eq!(list.as_slice().len(), 3);
    }

    #[test]
    fn a_list_that_does_not_follow_on_is_refused() {
        let one = |offset| wit::Extent { offset, length: 10, kind: wit::ExtentType::empty() };
        let mut answer = Answer::new(0);
        answer.append(&extents(&[(10, true)], 0), 10);
        assert!(answer.finish(vec![one(20)], 0, 100, false).is_err());
        let mut answer = Answer::new(0);
        answer.append(&extents(&[(10, true)], 0), 10);
        assert_eq!(answer.finish(vec![one(10)], 0, 100, false).unwrap().next_offset(), 20);
        assert!(Answer::new(0).finish(vec![], 0, 100, false).is_err());
    }

    #[test]
    fn memory_and_tables_share_one_limit() {
        let all = Arc::new(Quota::new(150 << 10));
        let mut room = Room { limit: 100 << 10, used: 0, all: Arc::clone(&all) };
        assert!(room.memory_growing(0, 64 << 10, None).unwrap());
        assert!(!room.memory_growing(64 << 10, 128 << 10, None).unwrap());
        assert!(room.table_growing(0, 1000, None).unwrap());
        assert!(!room.table_growing(1000, 100_000, None).unwrap());
        let mut other = Room { limit: 100 << 10, used: 0, all: Arc::clone(&all) };
        assert!(!other.memory_growing(0, 100 << 10, None).unwrap());
        drop(room);
        assert!(other.memory_growing(0, 100 << 10, None).unwrap());
        drop(other);
        assert_eq!(all.used(), 0);
    }
}
