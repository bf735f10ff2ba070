//! How long a call waits: while its client is there, or until what it waits for is done.
//!
//! A request waits only while its client is there, because nobody else needs its answer. Finalize
//! and close wait until they are done, because they write back what must not be lost. A call on an
//! instance whose own memory is needed after the call does so too. The operations that such a call
//! begins in the layers below have to wait in the same way, whichever client they are for. They are
//! polled within the poll of that call, which says so with [`poll_until_done`].

use std::cell::Cell;

use rbdkit_plugin_api::Client;

/// How long a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitPolicy {
    /// It gives up when its client has gone.
    WhileClientIsThere,
    /// It waits also when its client has gone.
    UntilDone,
}

thread_local! {
    /// What is polled now waits until it is done, for the sake of a layer above.
    static UNTIL_DONE: Cell<bool> = const { Cell::new(false) };
}

// This function and the next are not inlined: a fiber may go on in another thread, which has
// another variable.
#[inline(never)]
fn until_done() -> bool {
    UNTIL_DONE.get()
}

#[inline(never)]
fn set_until_done(until_done: bool) -> bool {
    UNTIL_DONE.replace(until_done)
}

/// Polls something that has to wait until it is done, whatever becomes of the client.
pub(crate) fn poll_until_done<T>(poll: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            set_until_done(self.0);
        }
    }
    let _before = Before(set_until_done(true));
    poll()
}

impl WaitPolicy {
    /// The policy of the layer above that polls this one now.
    pub(crate) fn inherited() -> WaitPolicy {
        if until_done() { WaitPolicy::UntilDone } else { WaitPolicy::WhileClientIsThere }
    }

    /// Waits for something that may be dropped. None: the client has gone first.
    pub(crate) async fn wait<T>(self, client: &Client, wait: impl Future<Output = T>) -> Option<T> {
        if self == WaitPolicy::UntilDone {
            return Some(wait.await);
        }
        tokio::select! {
            biased;
            // This comes first: an answer that came at the same moment is for a client that is
            // still there.
            () = client.until_gone() => None,
            answer = wait => Some(answer),
        }
    }
}
