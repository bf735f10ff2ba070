//! What is said of a connection's failed requests.
//!
//! A client that goes on asking for what fails gets its errors as fast as it asks. The log gets some of them at once and then a few a second, and
//! how many there were: that is as useful, and a client cannot fill a disk with them. With `-v` everything is said.

use rbdkit_plugin_api::rate::Rate;

/// Lines of a connection in the log: so many at once, enough for what an ordinary day brings...
const AT_ONCE: u32 = 100;

/// ...and then so many a second.
const PER_SECOND: u32 = 5;

/// A connection's way into the log.
pub(super) struct Complaints {
    connection: u64,
    rate: Rate,
}

impl Complaints {
    pub(super) fn new(connection: u64) -> Complaints {
        Complaints { connection, rate: Rate::new(PER_SECOND, AT_ONCE) }
    }

    /// Says it, or counts it.
    pub(super) fn say(&self, line: impl FnOnce() -> String) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::error!("{}", line());
        } else if let Some(dropped) = self.rate.admit() {
            self.tell(dropped);
            tracing::error!("{}", line());
        }
    }

    fn tell(&self, dropped: u64) {
        if dropped > 0 {
            tracing::error!("connection {}: {dropped} more requests failed", self.connection);
        }
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        self.tell(self.rate.take_dropped());
    }
}
