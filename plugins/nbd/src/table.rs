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

/// The most errors in the reply to one request. A server reports the errors of the parts of a read
/// separately, and some cut a read into 32 parts.
const MAX_ERRORS: u32 = 64;

/// The errors that a server has reported for a request.
#[derive(Default)]
pub(crate) struct Errors {
    first: Option<Error>,
    count: u32,
}

impl Errors {
    /// Adds an error. Returns false if there are too many.
    fn add(&mut self, error: Error) -> bool {
        self.first.get_or_insert(error);
        self.count += 1;
        self.count <= MAX_ERRORS
    }
}

/// A read that waits for its data. It owns the buffer, which is filled as the bytes come.
pub(crate) struct Read {
    pub(crate) buffer: Buffer,
    pub(crate) span: Span,
    pub(crate) offset: u64,
    /// The parts of `span` that have come.
    pub(crate) received: Ranges,
    /// How many more chunks of data may come.
    pub(crate) chunks_left: u32,
    pub(crate) errors: Errors,
    pub(crate) answer: oneshot::Sender<Done>,
}

/// A BLOCK_STATUS request.
pub(crate) struct Status {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) extents: Option<Extents>,
    pub(crate) errors: Errors,
    pub(crate) answer: oneshot::Sender<Result<Extents>>,
}

/// A request whose answer carries no data.
pub(crate) struct Plain {
    pub(crate) offset: u64,
    pub(crate) errors: Errors,
    pub(crate) answer: oneshot::Sender<Result<()>>,
}

/// What is still to come for a request that was answered early.
pub(crate) struct Dropped {
    pub(crate) offset: u64,
    /// The length of a read's data that may come in a simple reply.
    pub(crate) length: u32,
    /// How many more chunks may come.
    pub(crate) chunks_left: u32,
    pub(crate) errors: Errors,
}

pub(crate) enum Pending {
    Read(Box<Read>),
    /// A read or BLOCK_STATUS that was answered when the server began to stop, or that nobody waits
    /// for. The other server's reply is still read, because writes may follow on the connection,
    /// and dropped.
    Dropped(Dropped),
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
            Pending::Dropped(_) => {}
        }
    }

    /// The first byte of the request, which replies with extended headers repeat.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Pending::Read(read) => read.offset,
            Pending::Status(status) => status.offset,
            Pending::Plain(plain) => plain.offset,
            Pending::Dropped(dropped) => dropped.offset,
        }
    }

    /// Whether the caller has given the request up.
    fn is_given_up(&self) -> bool {
        match self {
            Pending::Read(read) => read.answer.is_closed(),
            Pending::Status(status) => status.answer.is_closed(),
            Pending::Plain(_) | Pending::Dropped(_) => false,
        }
    }

    /// Whether a stop of the server that lets writes end ends this request.
    fn only_reads(&self) -> bool {
        matches!(self, Pending::Read(_) | Pending::Status(_))
    }

    /// Answers a request that only reads. What is left waits for the rest of the reply.
    fn drop_reply(self) -> Pending {
        let offset = self.offset();
        let (length, chunks_left) = match &self {
            Pending::Read(read) => (read.span.len, read.chunks_left),
            Pending::Status(_) => (0, 1),
            Pending::Plain(_) | Pending::Dropped(_) => return self,
        };
        self.fail(Errno::Eshutdown.into());
        Pending::Dropped(Dropped { offset, length, chunks_left, errors: Errors::default() })
    }

    /// Records an error that the server reported; the first one counts. Returns false if there are
    /// too many.
    pub(crate) fn note(&mut self, error: Error) -> bool {
        match self {
            Pending::Read(read) => read.errors.add(error),
            Pending::Status(status) => status.errors.add(error),
            Pending::Plain(plain) => plain.errors.add(error),
            Pending::Dropped(dropped) => dropped.errors.add(error),
        }
    }

    /// Answers the request. Returns it as an error if the server reported no error but did not send
    /// everything.
    pub(crate) fn finish(self) -> std::result::Result<(), Pending> {
        match self {
            Pending::Read(mut read) => match read.errors.first.take() {
                Some(error) => Pending::Read(read).fail(error),
                None if read.received.is_all(read.span.len) => drop(read.answer.send((read.buffer, Ok(())))),
                None => return Err(Pending::Read(read)),
            },
            Pending::Status(mut status) => match (status.errors.first.take(), status.extents.take()) {
                (Some(error), _) => Pending::Status(status).fail(error),
                (None, Some(extents)) => drop(status.answer.send(Ok(extents))),
                (None, None) => return Err(Pending::Status(status)),
            },
            Pending::Plain(plain) => drop(plain.answer.send(plain.errors.first.map_or(Ok(()), Err))),
            Pending::Dropped(_) => {}
        }
        Ok(())
    }
}

#[derive(Default)]
struct State {
    /// The cookie of the next request.
    cookie: u64,
    pending: HashMap<u64, Pending>,
    broken: Option<ConnectionError>,
    /// The server stops: requests that only read are answered at once.
    no_reads: bool,
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

    fn error(&self, broken: &ConnectionError) -> Error {
        Error::new(Errno::Eio, format!("nbd: {}: {broken}", self.server))
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
        if state.no_reads && pending.only_reads() {
            drop(state);
            pending.fail(Errno::Eshutdown.into());
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
                let unwanted = state.no_reads || pending.is_given_up();
                let pending = if unwanted { pending.drop_reply() } else { pending };
                state.pending.insert(cookie, pending);
            }
            Some(broken) => {
                let error = self.error(broken);
                drop(state);
                pending.fail(error);
            }
        }
    }

    /// Frees the buffer of a request that nobody waits for any more. Its reply is read and dropped.
    pub(crate) fn drop_reply(&self, cookie: u64) {
        let mut state = self.state();
        // The reader has it while it reads its reply, and drops it then.
        if let Some(pending) = state.pending.remove(&cookie) {
            state.pending.insert(cookie, pending.drop_reply());
        }
    }

    /// Answers the requests that only read, with ESHUTDOWN, and takes no more of them.
    pub(crate) fn stop_reads(&self) {
        let mut state = self.state();
        state.no_reads = true;
        let pending = std::mem::take(&mut state.pending);
        state.pending = pending.into_iter().map(|(cookie, pending)| (cookie, pending.drop_reply())).collect();
    }

    /// Ends the connection: every request in flight fails. Returns whether this was the first call.
    pub(crate) fn end(&self, broken: ConnectionError) -> bool {
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

    pub(crate) fn is_broken(&self) -> bool {
        self.state().broken.is_some()
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read() -> (Pending, oneshot::Receiver<Done>) {
        let (answer, answered) = oneshot::channel();
        let (buffer, span, errors) = (Buffer::new(100), Span::new(0, 100), Errors::default());
        let read = Read { buffer, span, offset: 0, received: Ranges::default(), chunks_left: 1, errors, answer };
        (Pending::Read(Box::new(read)), answered)
    }

    #[test]
    fn a_read_that_nobody_waits_for_frees_its_buffer_and_its_reply_is_still_expected() {
        let table = Table::new("far".to_string());
        let (pending, mut answered) = read();
        let cookie = table.enter(pending).unwrap();
        table.drop_reply(cookie);
        // What was answered is not in the table.
        let (buffer, result) = answered.try_recv().unwrap();
        assert_eq!((buffer.len(), result.unwrap_err().errno()), (100, Errno::Eshutdown));
        assert!(matches!(table.take(cookie), Ok(Pending::Dropped(Dropped { length: 100, .. }))));

        // The same while the reader has it.
        let (pending, answered) = read();
        let cookie = table.enter(pending).unwrap();
        let pending = table.take(cookie).unwrap();
        drop(answered);
        table.drop_reply(cookie);
        table.put_back(cookie, pending);
        assert!(matches!(table.take(cookie), Ok(Pending::Dropped(_))));
    }
}
