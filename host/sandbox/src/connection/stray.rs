//! Waiting for the layers below, and going without their answer once the client has gone.
//!
//! A call that waits for next, or for its scratch file, is ended when its client goes: its instance is dropped and another one takes the
//! place. What it waited for cannot be called back, since a plugin reads and writes whether anybody still wants it or not. So the operation goes on
//! as a *stray*: a task of its own that keeps all that must not be given away before it has ended. These are its buffer and the account that the
//! buffer is on, the call's range lock (nobody else comes into the range while a write is still on its way), the turn in a queue below,
//! and the layer below itself, which is finalized and closed after its last operation. The call's changes of maps are undone before the lock
//! passes on, just as in any other call that fails.
//!
//! **In a chain** each layer does that for itself. The future of a request has those of the layers below within it; a layer that leaves its
//! operation does so before it polls it once more, so it is the topmost that goes first. What it left finds out in its task that the client has
//! gone, and so on down to the operation that really hangs. Each stray ends as soon as the layer below it has let go.
//!
//! **Who waits on.** Finalize and close do: they write back what must not be lost. So does a call on an instance whose own memory is needed beyond
//! it. What is asked of the layers below in their name has to wait on as well, whoever the client is: they are polled within the other's poll,
//! which says so by [`steadfastly`].
//!
//! **Bounds.** There are at most [`MOST`] strays a filter, and their buffers are on the account of `buffers-total`. Beyond that a call waits
//! as if its client were still there, and holds what it holds.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use rbdkit_plugin_api::{BoxFuture, Client};

use super::shared::Shared;
use crate::guest::clock::{Overrun, Wait};
use crate::guest::context::Context;
use crate::layer::conn::{Conn, Next};
use crate::layer::filter::Running;
use crate::state::Held;

/// Strays of one filter. Half of the threads that the runtime has for operations that block (512), so that plugins which hang leave the other half to
/// those who are served.
pub(crate) const MOST: u64 = 256;

thread_local! {
    static STEADFAST: Cell<bool> = const { Cell::new(false) };
}

/// Whether what is polled now waits on for the sake of a layer above, even if the client has gone.
// Not inlined, neither is the next: a fiber may go on in another thread, where the variable is another one.
#[inline(never)]
pub(crate) fn is_steadfast_above() -> bool {
    STEADFAST.get()
}

#[inline(never)]
fn set_steadfast(steadfast: bool) -> bool {
    STEADFAST.replace(steadfast)
}

/// Polls what waits on whatever becomes of the client.
pub(crate) fn steadfastly<T>(poll: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            set_steadfast(self.0);
        }
    }
    let _before = Before(set_steadfast(true));
    poll()
}

/// Waits for something that may be dropped, but not for longer than the client is there, unless it waits on. None: the client has gone.
pub(crate) async fn wanted<T>(client: &Client, waits_on: bool, wait: impl Future<Output = T>) -> Option<T> {
    if waits_on {
        return Some(wait.await);
    }
    tokio::select! {
        biased;
        // First: what came at the same moment is for somebody who is still there.
        () = client.until_gone() => None,
        answer = wait => Some(answer),
    }
}

/// Where the bytes are counted that an operation has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes {
    /// As the call's own buffers, already.
    Own(u64),
    /// By the server, for as long as the request is in flight.
    Request(u64),
}

/// Bytes that a stray has, on the account of the filter's buffers.
pub(crate) struct Charge {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Charge {
    /// Bytes that are on the account already, and were the call's.
    pub(crate) fn taken_over(shared: &Arc<Shared>, bytes: u64) -> Charge {
        Charge { shared: Arc::clone(shared), bytes }
    }

    /// Bytes that come on the account now, if it has room.
    pub(crate) fn new(shared: &Arc<Shared>, bytes: u64) -> Option<Charge> {
        shared.own_buffers.take(bytes).then(|| Charge::taken_over(shared, bytes))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shared.own_buffers.give(self.bytes);
    }
}

/// A place among the strays of a filter and of a connection. It also keeps the connection, and so what is below it.
struct Place {
    conn: Arc<Conn>,
    _running: Running,
}

impl Place {
    fn take(conn: &Arc<Conn>) -> Option<Place> {
        let place = || Place { conn: Arc::clone(conn), _running: conn.strays.begin() };
        conn.filter.shared.strays.take(1).then(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.conn.filter.shared.strays.give(1);
    }
}

/// What a stray keeps besides its operation. Dropped in this order: who gets the lock finds the buffer's bytes free and next still open.
struct Kept {
    _charge: Charge,
    _lock: Option<Held>,
    _next: Option<Arc<Next>>,
    _place: Place,
}

/// What tells a call that its client has gone.
enum Watch {
    /// Nothing yet: it did not have to wait.
    NotYet,
    Watching(BoxFuture<'static, ()>),
    /// It waits for the operation alone.
    Not,
}

/// An operation that a call waits for.
pub(crate) struct Awaited<T> {
    /// None once it was left.
    operation: Option<BoxFuture<'static, T>>,
    bytes: Bytes,
    wait: Wait,
    watch: Watch,
}

impl<T: Send + 'static> Awaited<T> {
    /// `wait` has begun with the operation.
    pub(crate) fn new(operation: BoxFuture<'static, T>, bytes: Bytes, wait: Wait) -> Awaited<T> {
        Awaited { operation: Some(operation), bytes, wait, watch: Watch::NotYet }
    }

    /// The operation's answer.
    ///
    /// # Errors
    /// The client has gone, and the operation goes on without the call, whose changes were undone.
    pub(crate) fn poll(&mut self, context: &mut Context, cx: &mut TaskContext<'_>) -> Poll<Result<T, Overrun>> {
        if self.is_left(context, cx) {
            return Poll::Ready(Err(Overrun::Gone));
        }
        let Some(operation) = &mut self.operation else { return Poll::Pending };
        let may_end = context.call.may_end();
        let answer = match may_end {
            true => operation.as_mut().poll(cx),
            false => steadfastly(|| operation.as_mut().poll(cx)),
        };
        if let Poll::Ready(answer) = answer {
            context.clock.end(&self.wait);
            return Poll::Ready(Ok(answer));
        }
        context.clock.suspend(&mut self.wait);
        if matches!(self.watch, Watch::NotYet) {
            self.watch = match &context.call.conn {
                Some(conn) if may_end => {
                    let client = Arc::clone(conn.client());
                    Watch::Watching(Box::pin(async move { client.until_gone().await }))
                }
                _ => Watch::Not,
            };
            if self.is_left(context, cx) {
                return Poll::Ready(Err(Overrun::Gone));
            }
        }
        Poll::Pending
    }

    /// Leaves the operation to itself if the client has gone.
    fn is_left(&mut self, context: &mut Context, cx: &mut TaskContext<'_>) -> bool {
        let Watch::Watching(gone) = &mut self.watch else { return false };
        if gone.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.watch = Watch::Not;
        self.leave(context).is_some()
    }

    /// None: there are as many strays as may be.
    fn leave(&mut self, context: &mut Context) -> Option<()> {
        let conn = Arc::clone(context.call.conn.as_ref()?);
        let place = Place::take(&conn)?;
        let charge = context.call.charge(self.bytes)?;
        let operation = self.operation.take()?;
        let call = &mut context.call;
        // While the lock is the call's.
        call.changes.fail();
        let kept = Kept { _charge: charge, _lock: call.lock.take(), _next: call.next.take(), _place: place };
        conn.filter.shared.counters.left.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        conn.filter.detached().spawn(async move {
            let kept = kept;
            drop(operation.await);
            drop(kept);
        });
        Some(())
    }
}
