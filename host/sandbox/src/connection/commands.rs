//! The queue of commands from control sockets ([`control`](super::control)) to the filter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::lock;
use tokio::sync::{Notify, oneshot};

/// The most bytes that one call of the filter receives, and that its answer may have.
pub(crate) const MAX_COMMAND: usize = 4096;

/// What a client has sent.
pub(crate) struct Command {
    pub(crate) param: Arc<str>,
    pub(crate) nth: u32,
    pub(crate) data: Vec<u8>,
    /// Takes the answer. If it is dropped, the client is disconnected.
    pub(crate) answer: oneshot::Sender<Vec<u8>>,
}

/// The commands that wait for the filter.
#[derive(Default)]
pub(crate) struct Commands {
    waiting: Mutex<VecDeque<Command>>,
    arrived: Notify,
}

impl Commands {
    /// Waits for a command and takes it. Only one task may wait. The future may be dropped.
    pub(crate) async fn next(&self) -> Command {
        loop {
            if let Some(command) = lock(&self.waiting).pop_front() {
                return command;
            }
            self.arrived.notified().await;
        }
    }

    /// Queues a command. Returns the filter's answer, or None if the filter failed.
    pub(super) async fn ask(&self, param: &Arc<str>, nth: u32, data: &[u8]) -> Option<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        let command = Command { param: Arc::clone(param), nth, data: data.to_vec(), answer };
        lock(&self.waiting).push_back(command);
        self.arrived.notify_one();
        answered.await.ok()
    }
}
