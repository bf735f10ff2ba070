//! The gate before a filter's layer, for filters that import `gate`.
//!
//! Requests that enter the layer are counted, with the bit that says whether the gate is closed in
//! the same word. So a request that enters an open gate costs one atomic addition, and one more
//! when it ends. A request that finds the gate closed takes its addition back and waits in a queue.
//! Opening the gate lets the queue through in order, before any request that comes later.
//!
//! A request ends its wait by itself when its client has gone or the server stops. Its place in the
//! queue is then freed when the queue grows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rbdkit_chain::{Need, need};
use rbdkit_plugin_api::{Client, Flag, lock};
use tokio::sync::{Notify, oneshot};

/// The gate is closed.
const CLOSED: usize = 1;
/// One request within the layer.
const ONE: usize = 2;

/// See the module.
#[derive(Default)]
pub(crate) struct Gate {
    /// [`CLOSED`], and [`ONE`] for each request within the layer.
    state: AtomicUsize,
    /// Changes of [`CLOSED`] are made under this lock.
    waiting: Mutex<VecDeque<oneshot::Sender<Passage>>>,
    /// No request is within the layer, and the gate is closed.
    empty: Notify,
}

/// Stands for a request within the layer, until it is dropped.
pub(crate) struct Passage(Arc<Gate>);

impl Drop for Passage {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(ONE, SeqCst) == ONE | CLOSED {
            self.0.empty.notify_waiters();
        }
    }
}

impl Gate {
    /// Enters the layer, whether the gate is open or not.
    pub(super) fn pass(self: &Arc<Self>) -> Passage {
        self.state.fetch_add(ONE, SeqCst);
        Passage(Arc::clone(self))
    }

    /// Enters the layer. None: the gate is closed.
    #[inline]
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Passage> {
        let was = self.state.fetch_add(ONE, SeqCst);
        let passage = Passage(Arc::clone(self));
        (was & CLOSED == 0).then_some(passage)
    }

    /// Waits until the gate is open, and enters. An operation that a layer above needs in finalize
    /// or close enters at once.
    ///
    /// None: the client has gone, or the server stops.
    pub(crate) async fn enter(self: &Arc<Self>, client: &Client, stopping: &Flag) -> Option<Passage> {
        if need() == Need::End {
            return Some(self.pass());
        }
        let place = match self.line_up() {
            Ok(passage) => return Some(passage),
            Err(place) => place,
        };
        tokio::select! {
            biased;
            () = client.until_gone() => None,
            () = stopping.wait() => None,
            // The gate keeps the sender until it lets the request through.
            passage = place => passage.ok(),
        }
    }

    /// A place in the queue, or within the layer if the gate is open by now.
    fn line_up(self: &Arc<Self>) -> Result<Passage, oneshot::Receiver<Passage>> {
        let mut waiting = lock(&self.waiting);
        if self.state.load(SeqCst) & CLOSED == 0 {
            return Ok(self.pass());
        }
        // The queue is at most twice as long as there are requests, and joining takes no time on
        // average.
        if waiting.len() == waiting.capacity() {
            waiting.retain(|place| !place.is_closed());
        }
        let (let_through, place) = oneshot::channel();
        waiting.push_back(let_through);
        Err(place)
    }

    /// Closes the gate.
    pub(crate) fn close(&self) {
        let _waiting = lock(&self.waiting);
        self.state.fetch_or(CLOSED, SeqCst);
    }

    /// Opens the gate.
    pub(crate) fn open(self: &Arc<Self>) {
        let mut waiting = lock(&self.waiting);
        for place in std::mem::take(&mut *waiting) {
            // A request that no longer waits gives its passage back.
            drop(place.send(self.pass()));
        }
        self.state.fetch_and(!CLOSED, SeqCst);
    }

    /// Waits until no request is within the layer, for a gate that is closed.
    pub(crate) async fn until_empty(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            empty.as_mut().enable();
            if self.state.load(SeqCst) < ONE {
                return;
            }
            empty.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use rbdkit_chain::poll_for;
    use rbdkit_plugin_api::Peer;

    use super::*;

    fn client() -> Arc<Client> {
        Arc::new(Client::new(1, Peer::Unknown, None, false))
    }

    fn is_empty(gate: &Gate) -> bool {
        gate.state.load(SeqCst) < ONE
    }

    #[tokio::test]
    async fn requests_that_wait_are_let_through_in_order_and_before_later_ones() {
        let (gate, stopping, client) = (Arc::<Gate>::default(), Arc::new(Flag::default()), client());
        gate.close();
        let order = Arc::new(Mutex::new(Vec::new()));
        let requests: Vec<_> = (0..100)
            .map(|n| {
                let (gate, stopping, client) = (Arc::clone(&gate), Arc::clone(&stopping), Arc::clone(&client));
                let order = Arc::clone(&order);
                tokio::spawn(async move {
                    let passage = gate.enter(&client, &stopping).await;
                    lock(&order).push(n);
                    passage.is_some()
                })
            })
            .collect();
        while lock(&gate.waiting).len() < 100 {
            tokio::task::yield_now().await;
        }
        assert!(gate.try_enter().is_none() && is_empty(&gate));
        gate.open();
        for request in requests {
            assert!(request.await.unwrap());
        }
        assert_eq!(*lock(&order), (0..100).collect::<Vec<_>>());
        assert!(is_empty(&gate) && gate.try_enter().is_some());
    }

    #[tokio::test]
    async fn closing_waits_for_what_has_entered_before() {
        let gate = Arc::<Gate>::default();
        let (one, two) = (gate.try_enter().unwrap(), gate.pass());
        gate.close();
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.until_empty().await }
        });
        tokio::task::yield_now().await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.unwrap();
        gate.close();
        gate.until_empty().await;
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_client_leaves_and_when_the_server_stops() {
        let (gate, stopping) = (Arc::<Gate>::default(), Flag::default());
        gate.close();
        let (gone, there) = (client(), client());
        gone.set_gone();
        assert!(gate.enter(&gone, &stopping).await.is_none());
        stopping.set();
        assert!(gate.enter(&there, &stopping).await.is_none());
        gate.open();
        assert!(is_empty(&gate));
    }

    #[tokio::test]
    async fn requests_that_gave_up_take_no_room_in_the_queue() {
        let (gate, stopping, gone) = (Arc::<Gate>::default(), Flag::default(), client());
        gone.set_gone();
        gate.close();
        for _ in 0..10_000 {
            assert!(gate.enter(&gone, &stopping).await.is_none());
        }
        assert!(lock(&gate.waiting).capacity() < 100);
    }

    #[tokio::test]
    async fn what_finalize_needs_passes_a_closed_gate_and_what_a_stateful_instance_needs_does_not() {
        let (gate, stopping, client) = (Arc::<Gate>::default(), Flag::default(), client());
        gate.close();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for (purpose, passes) in [(Need::Client, false), (Need::Instance, false), (Need::End, true)] {
            let mut enter = Box::pin(gate.enter(&client, &stopping));
            let polled = poll_for(purpose, || enter.as_mut().poll(&mut cx));
            assert_eq!(matches!(polled, Poll::Ready(Some(_))), passes, "{purpose:?}");
        }
    }
}
