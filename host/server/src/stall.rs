//! [`StallWatch`]: whether a client does its part while it holds bytes that others may need.
//!
//! A client holds bytes while it sends a payload and while it takes replies. It may be slow. But in
//! each period it has to move a part of what it held when the period began, so that it is done
//! after [`PARTS`] periods. A client that moves less has stalled: it may go on as long as no other
//! connection waits for the bytes that it holds.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::budget::ConnectionBudget;

/// With periods of 10 s, a client has 160 s for what it holds: 3.4 Mbit/s for 64 MiB.
const PARTS: u64 = 16;

/// Watches one client, from the moment when it was first waited for.
#[derive(Debug)]
pub(super) struct StallWatch {
    period: Duration,
    /// When the current period began.
    since: Instant,
    /// Bytes that have moved in this period, and that have to.
    moved: u64,
    goal: u64,
}

impl StallWatch {
    /// A client that holds `held` bytes is waited for from now on.
    pub fn new(period: Duration, held: u64) -> StallWatch {
        StallWatch { period, since: Instant::now(), moved: 0, goal: goal(held) }
    }

    /// The client has moved bytes, and now holds `held`.
    pub fn moved(&mut self, bytes: u64, held: u64) {
        self.moved += bytes;
        if self.moved >= self.goal && self.since.elapsed() >= self.period {
            (self.since, self.moved, self.goal) = (Instant::now(), 0, goal(held));
        }
    }

    /// When the client has stalled if nothing more moves.
    fn limit(&self) -> Instant {
        let end = self.since + self.period;
        // If the goal is reached, the next period begins when this one ends.
        if self.moved >= self.goal { end + self.period } else { end }
    }

    /// Whether the client has moved too little.
    pub fn has_stalled(&self) -> bool {
        Instant::now() >= self.limit()
    }

    /// Completes when the client has stalled and holds bytes for which another connection waits.
    pub async fn until_in_the_way(&self, budget: &ConnectionBudget) {
        sleep_until(self.limit()).await;
        budget.until_others_wait().await;
    }
}

fn goal(held: u64) -> u64 {
    (held / PARTS).max(1)
}
