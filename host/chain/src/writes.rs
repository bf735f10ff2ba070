//! [`Writes`]: whether the plugin is writing, for a server that stops.
//!
//! A server that stops waits longer for a write that the plugin has begun than for anything else.
//! So the gate in front of the plugin counts the writes that did not complete at once. Writes that
//! complete at once are counted only while the server stops: they show that a filter is still
//! writing back, block by block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rbdkit_plugin_api::Op;
use tokio::time::Instant;

/// The plugin's writes, zeroes and trims, and the flushes after them.
#[derive(Debug, Default)]
pub struct Writes {
    stopping: AtomicBool,
    under_way: AtomicUsize,
    /// Writes that have ended since the server began to stop; before that, only those that did not
    /// complete at once.
    ended: AtomicU64,
}

/// A write that the plugin has begun. Dropping it says that the write has ended.
pub(super) struct WriteToken(Arc<Writes>);

impl Drop for WriteToken {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Writes {
    /// The server begins to stop.
    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// A write was begun and did not complete at once.
    pub(super) fn begin(self: &Arc<Self>) -> WriteToken {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        WriteToken(Arc::clone(self))
    }

    /// A write has completed at once.
    #[inline]
    pub(super) fn completed(&self) {
        if self.stopping.load(Ordering::Relaxed) {
            self.ended.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether the plugin is writing now.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    /// A number that changes when a write ends while the server stops.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }
}

/// When the plugin last wrote, for somebody who looks again and again while the server stops.
#[derive(Debug)]
pub struct WriteWatch {
    writes: Arc<Writes>,
    /// How many writes had ended when it last looked.
    ended: u64,
    last: Option<Instant>,
}

impl WriteWatch {
    /// Watches from now on.
    pub fn new(writes: &Arc<Writes>) -> WriteWatch {
        WriteWatch { writes: Arc::clone(writes), ended: writes.ended(), last: None }
    }

    /// Looks once. The time at which it last saw a write under way, or that one had ended; none if
    /// there was none.
    pub fn last_write(&mut self) -> Option<Instant> {
        let ended = self.writes.ended();
        if self.writes.is_under_way() || ended != self.ended {
            (self.ended, self.last) = (ended, Some(Instant::now()));
        }
        self.last
    }
}

/// Counts an operation among the writes, if there is a count, until it has ended.
pub(super) fn counted<T: Send + 'static>(op: Op<T>, writes: Option<&Arc<Writes>>) -> Op<T> {
    let Some(writes) = writes else { return op };
    match op {
        Op::Later(future) => {
            let token = writes.begin();
            Op::later(async move {
                let answer = future.await;
                drop(token);
                answer
            })
        }
        ready => {
            writes.completed();
            ready
        }
    }
}
