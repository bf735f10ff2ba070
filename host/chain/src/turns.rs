//! Turns: the requests of a layer that serves one at a time.
//!
//! Connections take turns. A connection whose requests wait gets one turn after each other
//! connection that waits had one, however many requests each has. So a client with 256 requests in
//! flight delays another client's request by one of them, and not by all. The requests of one
//! connection are served in their order.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::lock;
use tokio::sync::oneshot;

/// One turn at a time, for all connections of a layer or for one.
#[derive(Debug, Default)]
pub(super) struct TurnQueue {
    next_connection: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    /// The connection that had the last turn.
    last: u64,
    /// The requests that wait, by connection. No queue is empty.
    waiting: BTreeMap<u64, VecDeque<oneshot::Sender<Turn>>>,
}

/// The place of one connection in a queue.
#[derive(Debug)]
pub(super) struct ConnectionTurns {
    queue: Arc<TurnQueue>,
    connection: u64,
}

/// A turn. Dropping it passes it on.
#[derive(Debug)]
pub(super) struct Turn(Arc<TurnQueue>);

/// A turn is not free.
#[derive(Debug)]
pub(super) struct NotNow;

impl TurnQueue {
    /// The place of a new connection.
    pub fn connection(self: &Arc<Self>) -> Arc<ConnectionTurns> {
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed);
        Arc::new(ConnectionTurns { queue: Arc::clone(self), connection })
    }

    fn pass_on(self: &Arc<Self>) {
        let next = {
            let mut state = lock(&self.state);
            let after = state.waiting.range((Excluded(state.last), Unbounded)).next().map(|(id, _)| *id);
            let Some(connection) = after.or_else(|| state.waiting.keys().next().copied()) else {
                state.is_taken = false;
                return;
            };
            state.last = connection;
            let queue = state.waiting.get_mut(&connection);
            let next = queue.and_then(VecDeque::pop_front);
            if state.waiting.get(&connection).is_some_and(VecDeque::is_empty) {
                state.waiting.remove(&connection);
            }
            next
        };
        // If the request does not wait any more, the turn is dropped here, and passed on again.
        if let Some(next) = next {
            let _ = next.send(Turn(Arc::clone(self)));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

impl ConnectionTurns {
    /// A turn, if it is free.
    pub fn try_acquire_owned(self: Arc<Self>) -> Result<Turn, NotNow> {
        let mut state = lock(&self.queue.state);
        if std::mem::replace(&mut state.is_taken, true) {
            return Err(NotNow);
        }
        state.last = self.connection;
        Ok(Turn(Arc::clone(&self.queue)))
    }

    /// Waits for a turn. Dropping the future gives up the place.
    pub async fn acquire_owned(self: Arc<Self>) -> Option<Turn> {
        let turn = {
            let mut state = lock(&self.queue.state);
            if !std::mem::replace(&mut state.is_taken, true) {
                state.last = self.connection;
                return Some(Turn(Arc::clone(&self.queue)));
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.entry(self.connection).or_default().push_back(sender);
            turn
        };
        // The sender is only dropped after it has sent.
        turn.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_however_many_requests_each_has() {
        let queue = Arc::new(TurnQueue::default());
        let (greedy, modest, third) = (queue.connection(), queue.connection(), queue.connection());
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |connection: &Arc<ConnectionTurns>, name: &'static str| {
            let (connection, order) = (Arc::clone(connection), Arc::clone(&order));
            tokio::spawn(async move {
                let turn = connection.acquire_owned().await;
                order.lock().unwrap().push(name);
                drop(turn);
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let first = Arc::clone(&greedy).try_acquire_owned().unwrap();
            assert!(Arc::clone(&modest).try_acquire_owned().is_err());
            let mut all: Vec<_> = (0..4).map(|_| wait(&greedy, "greedy")).collect();
            all.extend([wait(&modest, "modest"), wait(&modest, "modest")]);
            // One that gives up its place: its turn passes on.
            let gone = wait(&third, "gone");
            tokio::task::yield_now().await;
            all.push(wait(&third, "third"));
            tokio::task::yield_now().await;
            gone.abort();
            let _ = gone.await;
            drop(first);
            for task in all {
                task.await.unwrap();
            }
        });
        assert_eq!(*order.lock().unwrap(), ["modest", "greedy", "modest", "third", "greedy", "greedy", "greedy"]);
        assert!(greedy.try_acquire_owned().is_ok());
    }
}
