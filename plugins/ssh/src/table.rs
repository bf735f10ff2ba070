//! The requests in flight, by id.
//!
//! A client's read is a [`Transfer`]: many requests that fill one buffer. Every call is answered
//! once: when the server has answered all its requests, or with EIO when the connection breaks. A
//! broken connection takes no more requests.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use rbdkit_plugin_api::{Buffer, Errno, Error, Result, Span, lock};
use rbdkit_stream::ConnectionError;
use tokio::sync::oneshot;

/// The server's answer to a request other than a read.
pub(crate) struct Reply {
    pub(crate) kind: u8,
    /// The bytes after the id.
    pub(crate) body: Vec<u8>,
}

/// A read whose pieces are in flight.
pub(crate) struct Transfer {
    pub(crate) buffer: Buffer,
    /// How many pieces have no answer yet.
    pub(crate) left: usize,
    /// The parts that short answers left out.
    pub(crate) missing: Vec<Span>,
    pub(crate) error: Option<Error>,
    pub(crate) answer: oneshot::Sender<(Buffer, Result<Vec<Span>>)>,
}

impl Transfer {
    fn fail(self, error: Error) {
        // At the end of the server the caller may no longer exist.
        let _ = self.answer.send((self.buffer, Err(error)));
    }
}

/// What an answer is for.
pub(crate) enum Waiting {
    /// A piece of the transfer with this key.
    Piece { transfer: u64, span: Span },
    /// Anything else.
    Reply(oneshot::Sender<Result<Reply>>),
}

#[derive(Default)]
struct State {
    id: u32,
    key: u64,
    waiting: HashMap<u32, Waiting>,
    transfers: HashMap<u64, Transfer>,
    broken: Option<ConnectionError>,
    /// The server stops: reads are answered at once.
    no_reads: bool,
}

impl State {
    /// An id that no request in flight has.
    fn enter(&mut self, waiting: Waiting) -> u32 {
        while self.waiting.contains_key(&self.id) {
            self.id = self.id.wrapping_add(1);
        }
        let id = self.id;
        self.id = id.wrapping_add(1);
        self.waiting.insert(id, waiting);
        id
    }
}

/// See the module.
pub(crate) struct Table {
    /// The host, for messages.
    host: String,
    state: Mutex<State>,
}

impl Table {
    pub(crate) fn new(host: String) -> Table {
        Table { host, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn error(&self, broken: &ConnectionError) -> Error {
        Error::new(Errno::Eio, format!("ssh: {}: {broken}", self.host))
    }

    /// An id for a request that is about to be sent. If the connection is broken, answers the
    /// request and returns none.
    pub(crate) fn enter(&self, answer: oneshot::Sender<Result<Reply>>) -> Option<u32> {
        let mut state = self.state();
        match &state.broken {
            None => Some(state.enter(Waiting::Reply(answer))),
            Some(broken) => {
                let _ = answer.send(Err(self.error(broken)));
                None
            }
        }
    }

    /// The key of a read, and ids for its pieces. If the connection is broken, answers the read and
    /// returns none.
    pub(crate) fn enter_transfer(&self, transfer: Transfer, pieces: &[Span]) -> Option<(u64, Vec<u32>)> {
        let mut state = self.state();
        if let Some(broken) = &state.broken {
            transfer.fail(self.error(broken));
            return None;
        }
        if state.no_reads {
            transfer.fail(Errno::Eshutdown.into());
            return None;
        }
        let key = state.key;
        state.key += 1;
        state.transfers.insert(key, transfer);
        Some((key, pieces.iter().map(|&span| state.enter(Waiting::Piece { transfer: key, span })).collect()))
    }

    /// Removes the request that an answer is for.
    pub(crate) fn take(&self, id: u32) -> Result<Waiting, ConnectionError> {
        let waiting = self.state().waiting.remove(&id);
        waiting.ok_or_else(|| ConnectionError::new(format!("the server answered a request that was never made ({id})")))
    }

    /// Removes the transfer of a piece while its answer is read. None if it has failed
    /// or was given up meanwhile.
    pub(crate) fn take_transfer(&self, key: u64) -> Option<Transfer> {
        self.state().transfers.remove(&key)
    }

    /// Puts the transfer back after one of its pieces was answered, or answers the read after the
    /// last piece.
    pub(crate) fn settle(&self, key: u64, mut transfer: Transfer) {
        transfer.left -= 1;
        if transfer.left == 0 {
            let result = transfer.error.take().map_or(Ok(transfer.missing), Err);
            let _ = transfer.answer.send((transfer.buffer, result));
            return;
        }
        if transfer.answer.is_closed() {
            return;
        }
        let mut state = self.state();
        match &state.broken {
            None if state.no_reads => transfer.fail(Errno::Eshutdown.into()),
            None => {
                state.transfers.insert(key, transfer);
            }
            Some(broken) => transfer.fail(self.error(broken)),
        }
    }

    /// Fails a read, for a connection that is about to end.
    pub(crate) fn fail(&self, transfer: Transfer, broken: &ConnectionError) {
        transfer.fail(self.error(broken));
    }

    /// Answers the reads, with ESHUTDOWN, and takes no more of them. The server's answers to their
    /// pieces are still expected.
    pub(crate) fn stop_reads(&self) {
        let mut state = self.state();
        state.no_reads = true;
        let transfers = std::mem::take(&mut state.transfers);
        drop(state);
        transfers.into_values().for_each(|transfer| transfer.fail(Errno::Eshutdown.into()));
    }

    /// Ends the connection: everything in flight fails. Returns whether this was the first call.
    pub(crate) fn end(&self, broken: &ConnectionError) -> bool {
        let mut state = self.state();
        if state.broken.is_some() {
            return false;
        }
        let (waiting, transfers) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.transfers));
        state.broken = Some(broken.clone());
        drop(state);
        for waiting in waiting.into_values() {
            if let Waiting::Reply(answer) = waiting {
                let _ = answer.send(Err(self.error(broken)));
            }
        }
        transfers.into_values().for_each(|transfer| transfer.fail(self.error(broken)));
        true
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state().broken.is_some()
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}
