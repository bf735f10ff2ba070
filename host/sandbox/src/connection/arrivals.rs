//! The queue of connections that came and went, for filters that export `on-connection`.
//!
//! The queue is bounded: while [`MAX_WAITING`] events wait, connections that come are not queued.
//! Their end is queued only if no event waits. So at least one event always follows a change of the
//! number of connections, and there are at most [`MAX_WAITING`] events and one for each open
//! connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::lock;
use tokio::sync::Notify;

/// The most events that wait before further connections are left out.
const MAX_WAITING: usize = 1024;

/// A connection came or went. Its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Opened(u64),
    Closed(u64),
}

/// The events that wait.
#[derive(Default)]
pub(crate) struct Arrivals {
    waiting: Mutex<VecDeque<Arrival>>,
    changed: Notify,
}

impl Arrivals {
    /// A connection is open. False if its event is left out.
    fn opened(&self, id: u64) -> bool {
        let mut waiting = lock(&self.waiting);
        let has_room = waiting.len() < MAX_WAITING;
        if has_room {
            waiting.push_back(Arrival::Opened(id));
            self.changed.notify_one();
        }
        has_room
    }

    fn closed(&self, id: u64, was_told: bool) {
        let mut waiting = lock(&self.waiting);
        if was_told || waiting.is_empty() {
            waiting.push_back(Arrival::Closed(id));
            self.changed.notify_one();
        }
    }

    /// Waits for an event and takes it. Only one task may wait. The future may be dropped.
    pub(crate) async fn next(&self) -> Arrival {
        loop {
            if let Some(arrival) = lock(&self.waiting).pop_front() {
                return arrival;
            }
            self.changed.notified().await;
        }
    }
}

/// Tells the filter of an open connection. Dropping it tells that the connection is gone.
pub(crate) struct Announced {
    arrivals: Arc<Arrivals>,
    id: u64,
    was_told: bool,
}

impl Announced {
    pub(crate) fn new(arrivals: &Arc<Arrivals>, id: u64) -> Announced {
        Announced { arrivals: Arc::clone(arrivals), id, was_told: arrivals.opened(id) }
    }

    /// For a connection that could not be opened: only its end is told.
    pub(crate) fn failed(arrivals: &Arc<Arrivals>, id: u64) -> Announced {
        Announced { arrivals: Arc::clone(arrivals), id, was_told: false }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.arrivals.closed(self.id, self.was_told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_its_last_change_is_followed_by_an_event() {
        let arrivals = Arrivals::default();
        let told: Vec<bool> = (0..3000).map(|id| arrivals.opened(id)).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), MAX_WAITING);
        for (id, told) in told.iter().enumerate() {
            arrivals.closed(id as u64, *told);
        }
        let mut waiting = lock(&arrivals.waiting);
        assert_eq!(waiting.len(), 2 * MAX_WAITING);
        waiting.clear();
        drop(waiting);
        arrivals.closed(9, false);
        arrivals.closed(10, false);
        assert_eq!(*lock(&arrivals.waiting), [Arrival::Closed(9)]);
    }
}
