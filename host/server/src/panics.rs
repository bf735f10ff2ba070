//! Catches panics of plugins and layers, so that only the request or call that panicked fails.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use rbdkit_plugin_api::{Errno, Error};

/// Awaits a future; a panic in it becomes an error. What the future held is dropped, which gives
/// back its permits and locks.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Error> {
    let mut future = pin!(future);
    poll_fn(|cx| match caught_now(|| future.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

/// Calls a function; a panic in it becomes an error.
///
/// After a panic, nothing uses what the closure captured, except for shared state of the layers.
/// The layers keep that state sound themselves (their locks are poisoned or recovered).
pub(super) fn caught_now<T>(call: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| Error::new(Errno::Eio, format!("panic: {}", text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
