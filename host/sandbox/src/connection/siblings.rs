//! What a connection knows of the filter's other connections.

use std::sync::{Arc, Mutex, Weak};

use rbdkit_plugin_api::{BoxFuture, Errno, Result, lock};

use super::disks::GivenDisks;
use super::next::Next;
use super::shared_next::SharedNexts;
use crate::state::ScopeState;

/// The connections of one filter.
#[derive(Default)]
pub(crate) struct Siblings {
    /// The layers below that several of them use.
    pub(crate) nexts: SharedNexts,
    /// The disks that parameters name.
    pub(crate) disks: GivenDisks,
    /// Those that are open, if the filter flushes those of others.
    open: Mutex<Vec<Weak<dyn Sibling>>>,
}

/// A connection as the others see it.
pub(super) trait Sibling: Send + Sync {
    /// The state of its disk, which connections to the same disk share.
    fn disk(&self) -> Result<Arc<ScopeState>>;

    /// Flushes its next, if that is open, was written to and can flush. The connection stays open
    /// until the flush has ended. A next that connections share is flushed unless it is in
    /// `shared`, and then is in it.
    fn begin_flush(&self, shared: &mut Vec<Arc<Next>>) -> Option<BoxFuture<'static, Result<()>>>;
}

impl Siblings {
    pub(crate) fn new(disks: GivenDisks) -> Siblings {
        Siblings { disks, ..Siblings::default() }
    }

    /// A connection was opened whose next the others may flush.
    pub(super) fn add(&self, connection: Weak<dyn Sibling>) {
        let mut open = lock(&self.open);
        // The list is at most twice as long as there are connections, and adding takes no time on
        // average.
        if open.len() == open.capacity() {
            open.retain(|known| known.strong_count() > 0);
        }
        open.push(connection);
    }

    /// Begins to flush each connection that is not `but` and, if a disk is given, has that disk.
    /// `own` is the next of `but`, which the caller flushes.
    pub(super) fn begin_flushes(
        &self,
        but: *const (),
        own: Option<Arc<Next>>,
        disk: Option<&Arc<ScopeState>>,
    ) -> Vec<BoxFuture<'static, Result<()>>> {
        let mut shared: Vec<Arc<Next>> = own.into_iter().collect();
        let open: Vec<_> = lock(&self.open).iter().filter_map(Weak::upgrade).collect();
        let others = open.iter().filter(|other| !std::ptr::addr_eq(Arc::as_ptr(other), but));
        let same_disk = |other: &&Arc<dyn Sibling>| {
            disk.is_none_or(|disk| other.disk().is_ok_and(|other| Arc::ptr_eq(&other, disk)))
        };
        others.filter(same_disk).filter_map(|other| other.begin_flush(&mut shared)).collect()
    }
}

/// Waits for all flushes at once. The answer is the first error, in the order of the list.
pub(super) async fn wait_for_all(mut flushes: Vec<BoxFuture<'static, Result<()>>>) -> Result<()> {
    let mut answers: Vec<Option<Result<()>>> = flushes.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (flush, answer) in flushes.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match flush.as_mut().poll(cx) {
                    std::task::Poll::Ready(done) => *answer = Some(done),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    answers.into_iter().try_for_each(|answer| answer.unwrap_or_else(|| Err(Errno::Eio.into())))
}
