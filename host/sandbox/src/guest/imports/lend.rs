//! Operations with a part of a guest's buffer: the reads and writes of `next` and `scratch`.
//!
//! Most requests use these imports, so they are bound by hand. The code below begins the operation
//! at once, and most operations then complete without a future. The generated binding would always
//! make a future, which begins the operation when it is polled. They are always inlined: a second
//! linker ([`traced`](super::traced)) uses them too, and otherwise the compiler would call them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, Waker};

use rbdkit_plugin_api::{Buffer, Done, Fill, Op, Span};
use wasmtime::{Result, StoreContextMut};

use crate::connection::bindings::host::types::Errno;
use crate::connection::import_error::ImportError;
use crate::guest::awaited::Awaited;
use crate::guest::buffers::{Access, Bytes};
use crate::guest::clock::Overrun;
use crate::guest::context::Context;

/// The answer of an import whose result is `result<_, errno>`, as the linker takes it.
pub(super) type LoweredAnswer = (std::result::Result<(), Errno>,);

/// The future of an import that is bound by hand.
pub(super) type ImportFuture<'a> = Box<dyn Future<Output = Result<LoweredAnswer>> + Send + 'a>;

/// Success at once. It has no size, so boxing it allocates nothing.
struct Succeeded;

impl Future for Succeeded {
    type Output = Result<LoweredAnswer>;

    fn poll(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<LoweredAnswer>> {
        Poll::Ready(Ok((Ok(()),)))
    }
}

/// The future of an answer that is known.
pub(super) fn at_once<'a>(answer: Result<(), ImportError>) -> ImportFuture<'a> {
    match answer {
        Ok(()) => Box::new(Succeeded),
        Err(error) => Box::new(std::future::ready(lower(Err(error)))),
    }
}

/// An answer as the linker takes it.
pub(super) fn lower(answer: Result<(), ImportError>) -> Result<LoweredAnswer> {
    match answer {
        Ok(()) => Ok((Ok(()),)),
        Err(ImportError::Errno(errno)) => Ok((Err(errno.into()),)),
        Err(ImportError::Trap(error)) => Err(error),
    }
}

/// The body of a trait's function that is bound by hand. It is never called.
pub(super) fn bound_by_hand<T>() -> Result<T> {
    Err(wasmtime::format_err!("this function is bound by hand"))
}

/// A part of a guest's buffer, for one operation.
#[derive(Clone, Copy)]
pub(super) struct BufferPart {
    /// The buffer's number.
    pub(super) buf: u32,
    /// Where the part begins in it.
    pub(super) at: u32,
    pub(super) length: u32,
    /// What the operation does with it.
    pub(super) access: Access,
}

/// An operation with a guest's buffer that did not complete at once.
struct LentOperation<'a> {
    store: StoreContextMut<'a, Context>,
    operation: Awaited<Done>,
    buf: u32,
    /// The span that the operation has to fill.
    unfilled: Option<Span>,
}

impl Future for LentOperation<'_> {
    type Output = Result<LoweredAnswer>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<LoweredAnswer>> {
        let this = self.get_mut();
        let context = this.store.data_mut();
        let done = std::task::ready!(this.operation.poll(context, cx))?;
        Poll::Ready(lower(context.take_back(this.buf, this.unfilled, done)))
    }
}

/// Lends a part of a guest's buffer to an operation, if `allowed` returns no error.
#[inline]
pub(super) fn lend<'a>(
    mut store: StoreContextMut<'a, Context>,
    part: BufferPart,
    allowed: impl FnOnce(&Context) -> Result<(), ImportError>,
    operation: impl FnOnce(&Context, Buffer, Span) -> Op<Done>,
) -> ImportFuture<'a> {
    let context = store.data_mut();
    if let Err(error) = allowed(context) {
        return at_once(Err(error));
    }
    let (buffer, span) = match context.call.buffers.lend(part.buf, part.at, part.length, part.access) {
        Ok(lent) => lent,
        Err(trap) => return at_once(Err(trap.into())),
    };
    let unfilled = (part.access == Access::Write).then_some(span);
    let length = u64::from(buffer.len());
    let wait = context.clock.wait();
    match operation(context, buffer, span) {
        Op::Ready(done) => {
            context.clock.end(&wait);
            at_once(context.take_back(part.buf, unfilled, done))
        }
        Op::Later(operation) => {
            let bytes = if part.buf == 0 { Bytes::Request(length) } else { Bytes::Own(length) };
            let mut operation = Awaited::new(operation, bytes, wait);
            // Most operations complete at their first poll and then need no future. An operation
            // that does not complete is polled again at once with a real waker.
            match operation.poll(context, &mut TaskContext::from_waker(Waker::noop())) {
                Poll::Ready(Ok(done)) => at_once(context.take_back(part.buf, unfilled, done)),
                Poll::Ready(Err(overrun)) => at_once(Err(overrun.into())),
                Poll::Pending => Box::new(LentOperation { store, operation, buf: part.buf, unfilled }),
            }
        }
        Op::Taken => at_once(Err(wasmtime::format_err!("an operation that was polled to its end").into())),
    }
}

impl Context {
    /// An operation has ended: takes its buffer back into the call.
    fn take_back(&mut self, buf: u32, unfilled: Option<Span>, done: Done) -> Result<(), ImportError> {
        let (mut buffer, result) = done;
        if buffer.is_empty() {
            // A layer below has detached its operation, because the client has gone.
            return Err(Overrun::Gone.into());
        }
        if let (Err(_), Some(span)) = (&result, unfilled) {
            buffer.mark(span, Fill::Unfilled);
        }
        self.call.buffers.restore(buf, buffer);
        Ok(self.answer(result)?)
    }
}
