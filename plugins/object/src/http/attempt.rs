//! What surrounds one request.
//!
//! object_store makes a request within the task that calls it. So a value of the task reaches the
//! HTTP client below it, and what the client learns comes back the same way: the status in full,
//! and whether the store may have seen the request.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rbdkit_plugin_api::lock;

tokio::task_local! {
    static ATTEMPT: Arc<Attempt>;
}

/// One request.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// A condition for a DELETE, which object_store has no way to pass.
    condition: Option<(HeaderName, HeaderValue)>,
    seen: Mutex<Seen>,
}

/// What is known of the last request of an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The status of the answer, if there was one.
    pub(crate) status: Option<StatusCode>,
    /// A part of the request may have reached the store.
    pub(crate) sent: bool,
    /// How long the store asks us to wait.
    pub(crate) retry_after: Option<Duration>,
    /// The region that the store names, if it is not the one that was asked.
    pub(crate) region: Option<String>,
}

/// The longest wait that a store may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

impl Attempt {
    pub(crate) fn new(condition: Option<(HeaderName, HeaderValue)>) -> Arc<Attempt> {
        Arc::new(Attempt { condition, seen: Mutex::default() })
    }

    /// Runs a call of object_store as this attempt.
    pub(crate) async fn run<T>(self: Arc<Attempt>, call: impl Future<Output = T>) -> (T, Seen) {
        let result = ATTEMPT.scope(Arc::clone(&self), call).await;
        let seen = lock(&self.seen).clone();
        (result, seen)
    }
}

/// The condition of the DELETE that this task makes.
pub(crate) fn condition() -> Option<(HeaderName, HeaderValue)> {
    ATTEMPT.try_with(|attempt| attempt.condition.clone()).ok().flatten()
}

/// A request begins.
pub(super) fn begins() {
    let _ = ATTEMPT.try_with(|attempt| *lock(&attempt.seen) = Seen::default());
}

/// A part of the request may have left.
pub(crate) fn is_sent() {
    let _ = ATTEMPT.try_with(|attempt| lock(&attempt.seen).sent = true);
}

/// There is an answer.
pub(crate) fn answered(status: StatusCode, headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = text("retry-after").and_then(|value| value.parse::<u32>().ok());
    let retry_after = seconds.map(|seconds| Duration::from_secs(seconds.into()).min(MAX_RETRY_AFTER));
    let region = text("x-amz-bucket-region").map(str::to_owned);
    let _ = ATTEMPT.try_with(|attempt| {
        let mut seen = lock(&attempt.seen);
        (seen.status, seen.retry_after, seen.region) = (Some(status), retry_after, region);
    });
}
