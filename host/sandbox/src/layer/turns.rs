//! Lets the calls of two pools take turns.
//!
//! A serialize-all-requests filter runs one call at a time, and relies on that for the state that
//! its calls share in the host. While some of its connections stay with an earlier version, two
//! pools serve it, each with one instance. Then a call needs its pool's instance and the turn.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whether the calls of a pool take turns with those of another one, and the turn that both share.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Option<Arc<Semaphore>>);

/// The right to run a call. Dropping it ends the turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// A turn for two pools.
    pub(super) fn shared() -> Turns {
        Turns(Some(Arc::new(Semaphore::new(1))))
    }

    /// A turn, if no call of the other pool runs or waits.
    #[inline]
    pub(super) fn now(&self) -> Option<Turn> {
        match &self.0 {
            None => Some(Turn::default()),
            Some(turn) => Arc::clone(turn).try_acquire_owned().ok().map(|permit| Turn { _permit: Some(permit) }),
        }
    }

    /// Waits for a turn. Who waits longest is next.
    pub(super) async fn next(self) -> Turn {
        match self.0 {
            None => Turn::default(),
            // The semaphore is never closed.
            Some(turn) => Turn { _permit: turn.acquire_owned().await.ok() },
        }
    }
}
