//! The requests in flight, by cookie.
//!
//! Every request is answered once: by the server's reply, or with EIO when the connection breaks,
//! whichever comes first. A broken connection takes no more requests.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Extents, Result, Span, lock};
use tokio::sync::oneshot;

use crate::ranges::Ranges;
use rbdkit_stream::ConnectionError;

/// A read that waits for its data. It owns the buffer, which is filled as the bytes come.
pub(crate) struct Read {
    pub(crate) buffer: Buffer,
    pub(crate) span: Span,
    pub(crate) offset: u64,
    /// The parts of `span` that have come.
    pub(crate) received: Ranges,
    pub(crate) error: Option<Error>,
    pub(crate) answer: oneshot::Sender<Done>,
}

/// A BLOCK_STATUS request.
pub(crate) struct Status {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) extents: Option<Extents>,
    pub(crate) error: Option<Error>,
    pub(crate) answer: oneshot::Sender<Result<Extents>>,
}

/// A request whose answer carries no data.
pub(crate) struct Plain {
    pub(crate) error: Option<Error>,
    pub(crate) answer: oneshot::Sender<Result<()>>,
}

pub(crate) enum Pending {
    Read(Box<Read>),
    Status(Box<Status>),
    Plain(Plain),
}

impl Pending {
    /// Answers with an error.
    pub(crate) fn fail(self, error: Error) {
        // At the end of the server the caller may no longer exist.
        match self {
            Pending::Read(read) => drop(read.answer.send((read.buffer, Err(error)))),
            Pending::Status(status) => drop(status.answer.send(Err(error))),
            Pending::Plain(plain) => drop(plain.answer.send(Err(error))),
        }
    }

    /// Records an error that the server reported; the first one counts.
    pub(crate) fn note(&mut self, error: Error) {
        let place = match self {
            Pending::Read(read) => &mut read.error,
            Pending::Status(status) => &mut status.error,
            Pending::Plain(plain) => &mut plain.error,
        };
        place.get_or_insert(error);
    }

    /// Answers the request. Returns it as an error if the server reported no error but did not send
    /// everything.
    pub(crate) fn finish(self) -> std::result::Result<(), Pending> {
        match self {
            Pending::Read(mut read) => match read.error.take() {
                Some(error) => Pending::Read(read).fail(error),
                None if read.received.is_all(read.span.len) => drop(read.answer.send((read.buffer, Ok(())))),
                None => return Err(Pending::Read(read)),
            },
            Pending::Status(mut status) => match (status.error.take(), status.extents.take()) {
                (Some(error), _) => Pending::Status(status).fail(error),
                (None, Some(extents)) => drop(status.answer.send(Ok(extents))),
                (None, None) => return Err(Pending::Status(status)),
            },
            Pending::Plain(plain) => drop(plain.answer.send(plain.error.map_or(Ok(()), Err))),
        }
        Ok(())
    }
}

/// Why and with which errno requests fail.
#[derive(Clone)]
struct Broken {
    why: ConnectionError,
    errno: Errno,
}

#[derive(Default)]
struct State {
    /// The cookie of the next request.
    cookie: u64,
    pending: HashMap<u64, Pending>,
    broken: Option<Broken>,
}

/// See the module.
pub(crate) struct Table {
    /// The other server, for messages.
    server: String,
    state: Mutex<State>,
}

impl Table {
    pub(crate) fn new(server: String) -> Table {
        Table { server, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn error(&self, broken: &Broken) -> Error {
        Error::new(broken.errno, format!("nbd: {}: {}", self.server, broken.why))
    }

    /// A cookie for a request that is about to be sent. If the connection is broken, answers the
    /// request and returns none.
    pub(crate) fn enter(&self, pending: Pending) -> Option<u64> {
        let mut state = self.state();
        if let Some(broken) = &state.broken {
            let error = self.error(broken);
            drop(state);
            pending.fail(error);
            return None;
        }
        let cookie = state.cookie;
        state.cookie = state.cookie.wrapping_add(1);
        state.pending.insert(cookie, pending);
        Some(cookie)
    }

    /// Removes the request that a reply is for.
    pub(crate) fn take(&self, cookie: u64) -> Result<Pending, ConnectionError> {
        self.state().pending.remove(&cookie).ok_or_else(|| {
            ConnectionError::new(format!(
                "the server answered a request that was never made, or that it had answered ({cookie:#x})"
            ))
        })
    }

    /// Puts a request back if more of its reply is to come.
    pub(crate) fn put_back(&self, cookie: u64, pending: Pending) {
        let mut state = self.state();
        match &state.broken {
            None => {
                state.pending.insert(cookie, pending);
            }
            Some(broken) => {
                let error = self.error(broken);
                drop(state);
                pending.fail(error);
            }
        }
    }

    /// Ends the connection: every request in flight fails with `errno`, and so do later ones.
    /// Returns whether this was the first call.
    pub(crate) fn end(&self, why: ConnectionError, errno: Errno) -> bool {
        let broken = Broken { why, errno };
        let mut state = self.state();
        if state.broken.is_some() {
            return false;
        }
        let pending = std::mem::take(&mut state.pending);
        state.broken = Some(broken.clone());
        drop(state);
        pending.into_values().for_each(|request| request.fail(self.error(&broken)));
        true
    }

    /// Whether requests are in flight that may change the disk.
    pub(crate) fn has_writes(&self) -> bool {
        self.state().pending.values().any(|pending| matches!(pending, Pending::Plain(_)))
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state().broken.is_some()
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }
}
