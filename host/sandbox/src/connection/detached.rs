//! Operations of the layers below that continue after their call has ended.
//!
//! A call that waits for next, or for its scratch file, ends when its client leaves: its instance
//! is dropped and another one takes the place. The operation that it waited for is not cancelled
//! here, because a plugin completes every write that it began. (Its gate drops reads of a plugin
//! that says it may.) So the operation continues as a *detached operation*: a task of its own that
//! keeps everything that must not be released before the operation has ended. These are its buffer
//! and the charge for it, the call's range lock (no other call enters the range while a write is
//! under way), its turn in a queue below, and the layer below itself, which is finalized and closed
//! after its last operation. The call's changes of maps are undone before the lock is released, as
//! in any other call that fails.
//!
//! **In a chain** each layer does that for itself. The future of a request contains those of the
//! layers below. A layer checks whether to detach its operation before it polls the operation
//! again, so the topmost layer detaches first. In its own task, the operation of that layer finds
//! that the client has gone and detaches the operation below it, and so on down to the operation
//! that really hangs. Each detached operation ends as soon as the layer below it has returned.
//!
//! **Limits.** A filter has at most
//! [`MAX_DETACHED_OPERATIONS`](super::limits::MAX_DETACHED_OPERATIONS) of them, and their buffers
//! count towards `buffers-total`. Beyond that a call waits as if its client were still connected,
//! and keeps what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rbdkit_plugin_api::{BoxFuture, Held};

use super::charge::Charge;
use super::conn::Connection;
use super::gate::Passage;
use super::next::Next;
use super::tracker::TaskToken;
use crate::state::HeldLock;

/// A place among the detached operations of a filter and of a connection. It also keeps the
/// connection, and so what is below it. The operation still counts as within the layer.
pub(crate) struct Place {
    _passage: Passage,
    _held: Held,
    conn: Arc<Connection>,
    _token: TaskToken,
}

impl Place {
    /// None: there are as many as are allowed.
    pub(crate) fn take(conn: &Arc<Connection>) -> Option<Place> {
        let held = conn.shared.detached_operations.hold(1)?;
        let passage = conn.shared.gate.pass();
        Some(Place { _passage: passage, _held: held, conn: Arc::clone(conn), _token: conn.detached_operations.begin() })
    }
}

/// What a detached operation keeps. The fields are dropped in this order, so that the next holder
/// of the lock finds the buffer's bytes free and next still open.
pub(crate) struct DetachedOperation {
    _charge: Charge,
    _lock: Option<HeldLock>,
    _next: Option<Arc<Next>>,
    place: Place,
}

impl DetachedOperation {
    pub(crate) fn new(
        place: Place,
        charge: Charge,
        lock: Option<HeldLock>,
        next: Option<Arc<Next>>,
    ) -> DetachedOperation {
        DetachedOperation { _charge: charge, _lock: lock, _next: next, place }
    }

    /// Runs an operation to its end on a task of its own. Its answer is dropped.
    pub(crate) fn run<T: Send + 'static>(self, operation: BoxFuture<'static, T>) {
        let shared = Arc::clone(&self.place.conn.shared);
        shared.counters.detached.fetch_add(1, Relaxed);
        shared.detached_tasks.spawn(async move {
            let kept = self;
            drop(operation.await);
            drop(kept);
        });
    }
}
