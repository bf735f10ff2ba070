//! Runs a guest without a runtime. There the guest can only yield; it can wait for nothing.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::connection::pulse::TICK;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a call of `describe` or `configure` on this thread. It needs no runtime, and does not use
/// one that exists.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            // This may be a thread of a runtime that would have to wake the guest, so this thread
            // does not rely on being woken.
            Poll::Pending => std::thread::park_timeout(TICK),
        }
    }
}
