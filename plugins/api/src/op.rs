//! [`Op`]: an answer that is ready, or a future of it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::buffer::Buffer;
use crate::error::Result;

/// A boxed future, for the calls of a connection's life cycle (open, finalize, close), where an allocation does not matter.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The end of an operation with data: the buffer comes back, whatever the result.
pub type Done = (Buffer, Result<()>);

/// The answer of an operation: ready at once, or later.
///
/// A future within owns all it needs (clone the `Arc` of what it works on only when it is built), so that the server can move
/// it to a task of its own. It is polled to its end: nobody drops an operation half way.
pub enum Op<T> {
    /// The operation is over.
    Ready(T),
    /// The operation goes on.
    Later(BoxFuture<'static, T>),
    /// The answer was taken: only after the `Op` was polled to its end.
    Taken,
}

impl<T> Op<T> {
    /// Boxes a future.
    pub fn later(future: impl Future<Output = T> + Send + 'static) -> Op<T> {
        Op::Later(Box::pin(future))
    }

    /// [`Op::later`] where it matters: the future is made in its box, rather than moved there.
    pub fn later_from<F: Future<Output = T> + Send + 'static>(make: impl FnOnce() -> F) -> Op<T> {
        let place = Box::<F>::new_uninit();
        let future: Box<F> = Box::write(place, make());
        Op::Later(Box::into_pin(future))
    }

    /// Changes the answer on its way up.
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
            // As every future: polling after the end never completes again.
            Op::Taken => Poll::Pending,
        }
    }
}
