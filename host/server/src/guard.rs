//! Panics of plugins and layers end where they began: in the request or the call that they happened in.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use rbdkit_plugin_api::{Errno, Error};

/// Awaits a future; a panic within becomes an error. What the future held is dropped, so places in queues and locks are given back.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Error> {
    let mut future = pin!(future);
    poll_fn(|cx| match caught_now(|| future.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

/// Calls a function; a panic within becomes an error.
///
/// What the closure captured is not looked at again after a panic, except for shared state of the layers, which is theirs to keep sound
/// (locks are poisoned or recovered there).
pub(super) fn caught_now<T>(call: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| Error::new(Errno::Eio, format!("panic: {}", text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
