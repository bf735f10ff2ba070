//! Dispatch: runs one request on the chain and makes its reply.
//!
//! The reader's thread polls an operation once. An operation that completes then costs no task and
//! its reply joins the reader's batch. One that has to wait becomes a task, which queues the reply
//! when the operation ends. A long read or write of a busy client becomes a task at once if another
//! thread may be idle. An operation is polled to its end even when its client has left. A panic in
//! a layer fails only its own request, with EIO.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use rbdkit_chain::Hop;
use rbdkit_nbd::reply::{self, Reply, ReplyTo, RequestKind};
use rbdkit_nbd::{Command, RequestHeader, Session};
use rbdkit_plugin_api::{Buffer, Client, Done, Errno, Error, Extents, Op};

use super::budget::Pages;
use super::failure_log::FailureLog;
use super::panics::{caught, caught_now};
use super::reply_queue::{QueuedReply, ReplyQueue, WriteFrom};

/// The most extents in one reply, 512 KiB on the wire, or 1 MiB with extended headers. The client
/// asks again from the end of the reply.
const MAX_EXTENTS: usize = 1 << 16;

/// What the operations of one connection share with its reader.
pub(super) struct Dispatcher {
    pub hop: Arc<Hop>,
    pub session: Session,
    pub replies: Arc<ReplyQueue>,
    pub client: Arc<Client>,
    failures: FailureLog,
    /// Operations that became tasks and have not ended.
    running: AtomicUsize,
}

/// A request in flight: what its reply needs.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub header: RequestHeader,
    /// What the request gives back once its reply is written.
    pub pages: Pages,
}

/// Which thread polls an operation first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunOn {
    /// The reader's own.
    ReaderThread,
    /// Any thread of the runtime that is idle.
    IdleThread,
}

impl Dispatcher {
    pub fn new(hop: Arc<Hop>, session: Session, replies: Arc<ReplyQueue>, client: Arc<Client>) -> Dispatcher {
        let failures = FailureLog::new(client.id);
        Dispatcher { hop, session, replies, client, failures, running: AtomicUsize::new(0) }
    }

    /// Queues replies. A client whose connection a layer ends at once gets none any more, not even
    /// that of the request in which the layer did it.
    pub fn send(&self, replies: &mut Vec<QueuedReply>, from: WriteFrom) {
        if self.client.is_cut() && !self.replies.is_broken() {
            self.replies.break_off();
        }
        self.replies.send(replies, from);
    }

    /// Waits until no operation runs any more.
    pub async fn until_idle(&self) {
        self.replies.until(|| self.running.load(Ordering::SeqCst) == 0).await;
    }

    /// Runs a read or write, with its data in `buffer`. None: a task will queue the reply.
    pub fn run_with_buffer(
        self: &Arc<Self>,
        ticket: Ticket,
        command: Command,
        buffer: Buffer,
        run_on: RunOn,
    ) -> Option<QueuedReply> {
        let span = buffer.span();
        match command {
            Command::Read { offset, dont_fragment, .. } => {
                let kind = if dont_fragment { RequestKind::DontFragment } else { RequestKind::Plain };
                let call = move |hop: &Arc<Hop>| hop.pread(buffer, span, offset);
                let finish = move |this: &Dispatcher, ticket: Ticket, value: Result<Done, Error>| match value
                    .and_then(|(buffer, result)| result.map(|()| buffer))
                {
                    Ok(buffer) => ticket.reply(Reply::data(this.to(ticket), kind, buffer)),
                    Err(error) => this.failure(ticket, kind, &error),
                };
                self.start_on(run_on, ticket, call, finish)
            }
            Command::Write { offset, flags, .. } => {
                let call = move |hop: &Arc<Hop>| hop.pwrite(buffer, span, offset, flags);
                let finish = |this: &Dispatcher, ticket: Ticket, value: Result<Done, Error>| {
                    this.done(ticket, RequestKind::Plain, value.and_then(|(_, result)| result))
                };
                self.start_on(run_on, ticket, call, finish)
            }
            _ => self.run(ticket, command),
        }
    }

    /// Runs a command without a payload. None: a task will queue the reply.
    pub fn run(self: &Arc<Self>, ticket: Ticket, command: Command) -> Option<QueuedReply> {
        match command {
            Command::Flush => self.run_without_data(ticket, RequestKind::Plain, |hop| hop.flush()),
            Command::Trim { offset, length, flags } => {
                self.run_without_data(ticket, RequestKind::Plain, |hop| hop.trim(offset, length, flags))
            }
            Command::Cache { offset, length } => {
                self.run_without_data(ticket, RequestKind::Plain, |hop| hop.cache(offset, length))
            }
            Command::Zero { offset, length, flags } => {
                let kind = if flags.fast_zero { RequestKind::FastZero } else { RequestKind::Plain };
                self.run_without_data(ticket, kind, |hop| hop.zero(offset, length, flags))
            }
            Command::BlockStatus { offset, length, flags } => self.start(
                ticket,
                |hop| hop.extents(offset, length, flags),
                |this, ticket, value: Result<Result<Extents, Error>, Error>| match value.and_then(|result| result) {
                    Ok(extents) => ticket.reply(Reply::block_status(this.to(ticket), &extents, MAX_EXTENTS)),
                    Err(error) => this.failure(ticket, RequestKind::Plain, &error),
                },
            ),
            Command::Read { .. } | Command::Write { .. } | Command::Disconnect => {
                let error = Error::new(Errno::Eio, "a command in the wrong place");
                Some(self.failure(ticket, RequestKind::Plain, &error))
            }
        }
    }

    fn run_without_data(
        self: &Arc<Self>,
        ticket: Ticket,
        kind: RequestKind,
        call: impl FnOnce(&Arc<Hop>) -> Op<Result<(), Error>>,
    ) -> Option<QueuedReply> {
        self.start(ticket, call, move |this, ticket, value| this.done(ticket, kind, value.and_then(|result| result)))
    }

    fn start_on<T: Send + 'static>(
        self: &Arc<Self>,
        run_on: RunOn,
        ticket: Ticket,
        call: impl FnOnce(&Arc<Hop>) -> Op<T> + Send + 'static,
        finish: impl FnOnce(&Dispatcher, Ticket, Result<T, Error>) -> QueuedReply + Send + 'static,
    ) -> Option<QueuedReply> {
        match run_on {
            RunOn::ReaderThread => self.start(ticket, call, finish),
            RunOn::IdleThread => {
                self.start_on_idle_thread(ticket, call, finish);
                None
            }
        }
    }

    /// Starts an operation and polls it once. None: it goes on as a task, which queues the reply.
    fn start<T: Send + 'static>(
        self: &Arc<Self>,
        ticket: Ticket,
        call: impl FnOnce(&Arc<Hop>) -> Op<T>,
        finish: impl FnOnce(&Dispatcher, Ticket, Result<T, Error>) -> QueuedReply + Send + 'static,
    ) -> Option<QueuedReply> {
        // An operation that is still pending is polled again by its task at once, with the task's
        // waker. So this poll needs none.
        let mut context = Context::from_waker(Waker::noop());
        let later = match caught_now(|| call(&self.hop).poll_now(&mut context)) {
            Ok(Op::Ready(value)) => return Some(finish(self, ticket, Ok(value))),
            Ok(Op::Later(future)) => future,
            Ok(Op::Taken) => {
                let error = Error::new(Errno::Eio, "an operation without an answer");
                return Some(finish(self, ticket, Err(error)));
            }
            Err(panic) => return Some(finish(self, ticket, Err(panic))),
        };
        self.spawn(ticket, later, finish);
        None
    }

    fn start_on_idle_thread<T: Send + 'static>(
        self: &Arc<Self>,
        ticket: Ticket,
        call: impl FnOnce(&Arc<Hop>) -> Op<T> + Send + 'static,
        finish: impl FnOnce(&Dispatcher, Ticket, Result<T, Error>) -> QueuedReply + Send + 'static,
    ) {
        let hop = Arc::clone(&self.hop);
        let operation = async move {
            match call(&hop) {
                Op::Ready(value) => value,
                Op::Later(future) => future.await,
                Op::Taken => panic!("an operation without an answer"),
            }
        };
        self.spawn(ticket, operation, finish);
    }

    /// Polls an operation to its end in a task of its own, and queues the reply.
    fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        ticket: Ticket,
        operation: impl Future<Output = T> + Send + 'static,
        finish: impl FnOnce(&Dispatcher, Ticket, Result<T, Error>) -> QueuedReply + Send + 'static,
    ) {
        self.running.fetch_add(1, Ordering::SeqCst);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let value = caught(operation).await;
            // Making a reply runs no code of a layer, but a fault in it must not lose the request.
            let reply = caught_now(|| finish(&this, ticket, value))
                .unwrap_or_else(|panic| this.failure(ticket, RequestKind::Plain, &panic));
            this.send(&mut vec![reply], WriteFrom::Task);
            this.running.fetch_sub(1, Ordering::SeqCst);
            this.replies.nudge();
        });
    }

    /// What the replies to a request repeat.
    fn to(&self, ticket: Ticket) -> ReplyTo {
        let RequestHeader { cookie, offset, .. } = ticket.header;
        ReplyTo { format: self.session.reply_format, cookie, offset }
    }

    fn done(&self, ticket: Ticket, kind: RequestKind, result: Result<(), Error>) -> QueuedReply {
        match result {
            Ok(()) => ticket.reply(Reply::done(self.to(ticket))),
            Err(error) => self.failure(ticket, kind, &error),
        }
    }

    /// The reply of an operation that failed. The failure goes into the log, once.
    fn failure(&self, ticket: Ticket, kind: RequestKind, error: &Error) -> QueuedReply {
        let RequestHeader { offset, length, .. } = ticket.header;
        let (id, name) = (self.client.id, ticket.header.name());
        match error.errno() {
            // The layer ended the operation because the client is gone, or to end its connection.
            Errno::Eshutdown if self.client.is_gone() || self.client.is_cut() => {
                tracing::debug!("connection {id}: {name} offset={offset} length={length}: {error}")
            }
            // The regular answer of a layer that cannot zero fast.
            Errno::Enotsup if kind == RequestKind::FastZero => {
                tracing::debug!("connection {id}: {name} offset={offset} length={length}: {error}")
            }
            _ => self.failures.log(|| format!("connection {id}: {name} offset={offset} length={length}: {error}")),
        }
        let errno = reply::errno(error.errno(), kind);
        ticket.reply(Reply::error(self.to(ticket), errno, error))
    }

    /// The reply to a request that is refused before it reaches the chain.
    pub fn refusal(&self, ticket: Ticket, error: &Error) -> QueuedReply {
        let errno = reply::errno(error.errno(), RequestKind::Refused);
        ticket.reply(Reply::error(self.to(ticket), errno, error))
    }
}

impl Ticket {
    fn reply(self, reply: Reply) -> QueuedReply {
        QueuedReply { reply, pages: self.pages }
    }
}
