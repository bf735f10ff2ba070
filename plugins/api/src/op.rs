//! [`Op`]: an answer that is ready, or a future for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::buffer::Buffer;
use crate::error::Result;

/// A boxed future, for calls that happen once for each connection (open, finalize, close), where an
/// allocation does not matter.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result of an operation with data. The buffer comes back whether the operation succeeded or
/// not.
pub type Done = (Buffer, Result<()>);

/// The answer of an operation: ready at once, or later.
///
/// The future owns everything it needs, so that the server can move it to another task. (Clone an
/// `Arc` only when the future is built.) The server polls every operation to its end and drops none
/// before that.
pub enum Op<T> {
    /// The operation has ended.
    Ready(T),
    /// The operation is in flight.
    Later(BoxFuture<'static, T>),
    /// The answer was taken, because the `Op` was polled to its end.
    Taken,
}

impl<T> Op<T> {
    /// Boxes a future.
    pub fn later(future: impl Future<Output = T> + Send + 'static) -> Op<T> {
        Op::Later(Box::pin(future))
    }

    /// [`Op::later`] for hot paths: makes the future in its box instead of moving it there.
    pub fn later_from<F: Future<Output = T> + Send + 'static>(make: impl FnOnce() -> F) -> Op<T> {
        let place = Box::<F>::new_uninit();
        let future: Box<F> = Box::write(place, make());
        Op::Later(Box::into_pin(future))
    }

    /// Converts the answer.
    pub fn map<U>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Op<U>
    where
        T: 'static,
    {
        match self {
            Op::Ready(value) => Op::Ready(f(value)),
            Op::Later(future) => Op::later(async move { f(future.await) }),
            Op::Taken => Op::Taken,
        }
    }

    /// Polls once: an operation that completes without waiting becomes [`Op::Ready`].
    pub fn poll_now(self, cx: &mut Context<'_>) -> Op<T> {
        match self {
            Op::Later(mut future) => match future.as_mut().poll(cx) {
                Poll::Ready(value) => Op::Ready(value),
                Poll::Pending => Op::Later(future),
            },
            other => other,
        }
    }
}

impl<T> From<T> for Op<T> {
    fn from(value: T) -> Op<T> {
        Op::Ready(value)
    }
}

impl<T: Unpin> Future for Op<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match std::mem::replace(&mut *self, Op::Taken) {
            Op::Ready(value) => Poll::Ready(value),
            Op::Later(mut future) => match future.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(value),
                Poll::Pending => {
                    *self = Op::Later(future);
                    Poll::Pending
                }
            },
            // Polling a future after its end never completes again.
            Op::Taken => Poll::Pending,
        }
    }
}
