//! Counts tasks that outlive the code that started them, so that the server can wait for their end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts tasks while they run.
#[derive(Default)]
pub(crate) struct TaskTracker {
    running: AtomicUsize,
    none: Notify,
}

/// Stands for one running task. Dropping it uncounts that task, also when the task panics.
pub(crate) struct TaskToken(Arc<TaskTracker>);

impl Drop for TaskToken {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl TaskTracker {
    /// Counts a task that begins, until the token is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> TaskToken {
        self.running.fetch_add(1, Ordering::AcqRel);
        TaskToken(Arc::clone(self))
    }

    /// Whether no task runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// Starts a task and counts it. Without a runtime the process is ending, and the task is
    /// dropped.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let token = self.begin();
            runtime.spawn(async move {
                task.await;
                drop(token);
            });
        }
    }

    /// Waits until no task runs.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.none.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.is_idle() {
                return;
            }
            notified.await;
        }
    }
}
