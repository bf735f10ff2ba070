//! [`Stop`]: the one signal that stops the server.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// A stop signal that all its clones share. Once stopped, it stays stopped.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Stop {
        Stop::new()
    }
}

impl Stop {
    /// Not stopped.
    pub fn new() -> Stop {
        Stop(Arc::new(watch::Sender::new(false)))
    }

    /// From now on there are no new clients and no new requests. It may be called from any thread,
    /// any number of times.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether [`Stop::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns this long after [`Stop::stop`] was called, at the earliest.
    pub async fn stopped_for(&self, time: Duration) {
        self.stopped().await;
        tokio::time::sleep(time).await;
    }

    /// Returns once [`Stop::stop`] was called.
    pub async fn stopped(&self) {
        let mut watching = self.0.subscribe();
        // The sender lives as long as `self`, so this only ends with true.
        let _ = watching.wait_for(|stopped| *stopped).await;
    }
}
