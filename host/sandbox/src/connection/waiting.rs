//! How long a call waits: while its client is connected, or until the operation is done.
//!
//! A request waits only while its client is connected and the server does not stop, because only
//! the client needs its answer. Finalize and close wait until they are done, because they may write
//! back data that must not be lost. A call on an instance whose memory holds state also waits until
//! it is done. The operations that such a call begins in the layers below have to wait in the same
//! way. They are polled inside [`poll_until_done`](rbdkit_chain::poll_until_done), which sets a
//! flag for them.

use rbdkit_chain::is_needed;
use rbdkit_plugin_api::{Client, Flag};

/// How long a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitPolicy {
    /// It gives up when its client has gone or the server stops.
    WhileClientIsThere,
    /// It also waits after that.
    UntilDone,
}

impl WaitPolicy {
    /// The policy of the layer above that polls this one now.
    pub(crate) fn inherited() -> WaitPolicy {
        if is_needed() { WaitPolicy::UntilDone } else { WaitPolicy::WhileClientIsThere }
    }

    /// Waits for something that may be dropped. None: the client has gone first, or the server
    /// stops.
    pub(crate) async fn wait<T>(self, client: &Client, stopping: &Flag, wait: impl Future<Output = T>) -> Option<T> {
        if self == WaitPolicy::UntilDone {
            return Some(wait.await);
        }
        tokio::select! {
            biased;
            // This comes first: an answer that came at the same moment is for a client that is
            // still there.
            () = client.until_gone() => None,
            () = stopping.wait() => None,
            answer = wait => Some(answer),
        }
    }
}
