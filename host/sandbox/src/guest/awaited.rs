//! A call's wait for an operation of the layers below, or of its scratch file. The wait ends when
//! the client leaves.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use rbdkit_chain::poll_for;
use rbdkit_plugin_api::BoxFuture;

use super::buffers::Bytes;
use super::clock::{Overrun, Wait};
use super::context::Context;
use crate::connection::detached::{DetachedOperation, Place};

/// What tells a call that its client has gone.
enum Watch {
    /// Nothing yet: the call did not have to wait.
    NotYet,
    Watching(BoxFuture<'static, ()>),
    /// Nothing: the call waits until the operation ends.
    Not,
}

/// An operation that a call waits for.
pub(super) struct Awaited<T> {
    /// None once it was detached.
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

    /// Polls the operation.
    ///
    /// # Errors
    /// The client has gone. The operation goes on without the call, whose changes were undone.
    pub(crate) fn poll(&mut self, context: &mut Context, cx: &mut TaskContext<'_>) -> Poll<Result<T, Overrun>> {
        if self.is_detached(context, cx) {
            return Poll::Ready(Err(Overrun::Gone));
        }
        let Some(operation) = &mut self.operation else { return Poll::Pending };
        let may_end = context.call.may_end();
        let answer = match may_end {
            true => operation.as_mut().poll(cx),
            false => poll_for(context.call.needs_next_for(), || operation.as_mut().poll(cx)),
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
            if self.is_detached(context, cx) {
                return Poll::Ready(Err(Overrun::Gone));
            }
        }
        Poll::Pending
    }

    /// Detaches the operation if the client has gone. Returns whether it did.
    fn is_detached(&mut self, context: &mut Context, cx: &mut TaskContext<'_>) -> bool {
        let Watch::Watching(gone) = &mut self.watch else { return false };
        if gone.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.watch = Watch::Not;
        self.detach(context).is_some()
    }

    /// None: there are as many detached operations as are allowed.
    fn detach(&mut self, context: &mut Context) -> Option<()> {
        let call = &mut context.call;
        let place = Place::take(call.conn.as_ref()?)?;
        let charge = call.buffers.charge(self.bytes)?;
        let operation = self.operation.take()?;
        // Undone while the call still holds its lock.
        call.changes.fail();
        DetachedOperation::new(place, charge, call.lock.take(), call.next.take()).run(operation);
        Some(())
    }
}
