//! Admission: a request waits here until the requests in flight leave room for it.
//!
//! Three limits apply: requests and bytes of the connection, and bytes of the whole server
//! ([`ConnectionBudget`]). A request is admitted before it takes its buffer, and counts until its
//! reply is written.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::STEP;
use rbdkit_nbd::Command;
use rbdkit_plugin_api::{Error, Extent, Extents};
use tokio::time::Instant;

use super::budget::{ConnectionBudget, Pages};
use super::end::{EndReason, EndSignal};
use super::options::ServerLimits;
use super::reply_queue::ReplyQueue;
use super::socket::{Closed, Input};

/// How often to check that a client we are not reading from is still connected.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What an extent of an answer takes at most: twice its size while a gate copies the list of a
/// layer, and then 16 bytes in the reply (8 without extended headers).
const MAX_EXTENT_BYTES: u64 = 2 * size_of::<Extent>() as u64 + 16;

/// What one connection has in flight, and how much it may have.
pub(super) struct Admission {
    replies: Arc<ReplyQueue>,
    /// Requests admitted since the beginning.
    requests: u64,
    max_requests: u64,
    max_pages: u64,
    reply_timeout: Duration,
}

impl Admission {
    /// With nothing in flight.
    pub fn new(replies: Arc<ReplyQueue>, limits: &ServerLimits) -> Admission {
        Admission {
            replies,
            requests: 0,
            max_requests: limits.requests_per_connection as u64,
            max_pages: Pages::of(limits.bytes_per_connection).0.into(),
            reply_timeout: limits.reply_timeout,
        }
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> u64 {
        self.requests - self.replies.requests_done()
    }

    #[inline]
    fn budget(&self) -> &ConnectionBudget {
        self.replies.budget()
    }

    #[inline]
    fn has_room(&self, pages: Pages) -> bool {
        let held = self.budget().held();
        self.in_flight() < self.max_requests && (held == 0 || held + u64::from(pages.0) <= self.max_pages)
    }

    /// Admits a request if there is room for it now.
    #[inline]
    pub fn try_admit(&mut self, pages: Pages) -> bool {
        let admitted = self.has_room(pages) && self.budget().try_take(pages);
        if admitted {
            self.requests += 1;
        }
        admitted
    }

    /// Waits for room below the connection's limits, then below the server's, and admits the
    /// request. Call it after [`Admission::try_admit`], with all replies queued.
    ///
    /// # Errors
    /// The client left, or the server ends the connection.
    pub async fn admit(&mut self, pages: Pages, input: &Input, end: &mut EndSignal) -> Result<(), EndReason> {
        let replies = &self.replies;
        if !self.has_room(pages) {
            tokio::select! {
                reason = &mut *end => return Err(reason),
                () = replies.until(|| self.has_room(pages) || replies.is_broken()) => {}
                () = until_gone(input, replies, self.reply_timeout) => return Err(EndReason::Gone),
            }
        }
        if replies.is_broken() {
            return Err(EndReason::Gone);
        }
        let budget = replies.budget();
        while !budget.try_take(pages) {
            tracing::debug!("a request of {} bytes waits for what other connections hold", pages.bytes());
            tokio::select! {
                biased;
                reason = &mut *end => return Err(reason),
                () = budget.take(pages) => break,
                // The connection's own replies may leave room in its first share.
                () = replies.until(|| budget.fits_first_share(pages) || replies.is_broken()) => {}
                () = until_gone(input, replies, self.reply_timeout) => return Err(EndReason::Gone),
            }
            if replies.is_broken() {
                return Err(EndReason::Gone);
            }
        }
        self.requests += 1;
        Ok(())
    }

    /// Takes back the admission of a request that did not arrive whole.
    pub fn cancel(&mut self, pages: Pages) {
        self.requests -= 1;
        self.budget().give_back(u64::from(pages.0));
    }
}

/// What a request holds while it is in flight: its payload, and a page at least for its task and
/// its reply.
#[inline]
pub(super) fn pages_for(checked: &Result<Command, Error>) -> Pages {
    let bytes = match checked {
        Ok(Command::Read { length, .. } | Command::Write { length, .. }) => u64::from(*length),
        Ok(Command::BlockStatus { length, flags, .. }) if !flags.req_one => {
            MAX_EXTENT_BYTES * Extents::limit(*length) as u64
        }
        // If the layer has no such operation, the chain reads or writes in steps of this size.
        Ok(Command::Zero { length, .. } | Command::Cache { length, .. }) => (*length).min(u64::from(STEP)),
        _ => 0,
    };
    Pages::of(bytes.max(1))
}

/// Returns once the client is gone. The server does not read from it now, because its limits are
/// used up. A client that only closed its side may still want its replies: it counts as gone when
/// it has taken none for `patience`.
async fn until_gone(input: &Input, replies: &ReplyQueue, patience: Duration) {
    let mut stuck = None;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let done = replies.requests_done();
        match (input.closed(), stuck) {
            (Closed::Both, _) => return,
            (Closed::Nothing, _) => stuck = None,
            (Closed::Input, Some((since, before))) if before == done => {
                if Instant::now() - since >= patience {
                    return;
                }
            }
            (Closed::Input, _) => stuck = Some((Instant::now(), done)),
        }
    }
}
