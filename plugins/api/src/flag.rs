//! [`Flag`]: an event that happens once and can be waited for.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// An event that happens once and can be waited for.
#[derive(Debug, Default)]
pub struct Flag {
    set: AtomicBool,
    notify: Notify,
}

impl Flag {
    /// The event has happened. It may be called from any thread, any number of times.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Whether the event has happened.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Returns once the event has happened.
    pub async fn wait(&self) {
        loop {
            let mut notified = std::pin::pin!(self.notify.notified());
            // Register before checking, so that an event in between is not missed.
            notified.as_mut().enable();
            if self.is_set() {
                return;
            }
            notified.await;
        }
    }
}
