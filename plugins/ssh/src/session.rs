//! One SFTP session: sends requests and matches the answers to them.
//!
//! Requests are sent one after the other and answered in any order. A client's requests, and the
//! pieces of a long one, are all in flight together, so the round trip to the server is waited for
//! once and not for each piece.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_launcher::Program;
use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Result, Span, StopScope, lock, run_blocking};
use rbdkit_stream::{ConnectionError, Input, Socket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::replies::{self, failure};
use crate::table::{Reply, Table, Transfer};
use crate::wire::{FSYNC, Packet, kind};

/// How long closing a session waits for the server to close the file. Together with the end of
/// `ssh` it is less than the five seconds that a stop of the server may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the rest of a read is asked for. A server that does not tell its limit and sends 4 KiB
/// at a time needs 63 rounds for the longest piece.
const MAX_ROUNDS: usize = 64;

/// The most data in one request, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) read: u32,
    pub(crate) write: u32,
}

impl Limits {
    /// For a server that does not tell its limits: 32 KiB, which the protocol requires every server
    /// to take.
    pub(crate) const USUAL: Limits = Limits { read: 32 << 10, write: 32 << 10 };
}

/// See the module.
pub(crate) struct Session {
    socket: Arc<Socket>,
    table: Arc<Table>,
    /// Held while a packet is written.
    write_turn: tokio::sync::Mutex<()>,
    closing: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
    program: Mutex<Option<Program>>,
    limits: Mutex<Limits>,
    fsync: bool,
}

/// A read that waits for its answers. Dropping this value frees the read's buffer.
struct Unanswered<'a> {
    table: &'a Table,
    key: u64,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // The answers to its pieces are still expected.
        drop(self.table.take_transfer(self.key));
    }
}

impl Session {
    /// Starts a session once the version is agreed on. `program` ends with the session.
    pub(crate) fn start(
        socket: Arc<Socket>,
        input: Input,
        program: Option<Program>,
        host: String,
        fsync: bool,
    ) -> Arc<Session> {
        let session = Arc::new(Session {
            table: Arc::new(Table::new(host)),
            socket: Arc::clone(&socket),
            write_turn: tokio::sync::Mutex::new(()),
            closing: Arc::new(AtomicBool::new(false)),
            reader: Mutex::new(None),
            program: Mutex::new(program),
            limits: Mutex::new(Limits::USUAL),
            fsync,
        });
        let (table, closing) = (Arc::clone(&session.table), Arc::clone(&session.closing));
        // The task must not hold the session, which would keep itself alive that way.
        let reader = tokio::spawn(async move {
            let broken = replies::read(input, Arc::clone(&table)).await;
            end(&socket, &table, &closing, &broken);
        });
        *lock(&session.reader) = Some(reader);
        session
    }

    fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *lock(&self.limits) = limits;
    }

    /// For messages.
    pub(crate) fn host(&self) -> &str {
        self.table.host()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken()
    }

    /// Whether writes can be made durable.
    pub(crate) fn has_fsync(&self) -> bool {
        self.fsync
    }

    fn end(&self, broken: &ConnectionError) {
        end(&self.socket, &self.table, &self.closing, broken);
    }

    /// Puts the host and `what` before an error, unless it names the host already.
    pub(crate) fn error(&self, what: &str, error: &Error) -> Error {
        let why = error.context().unwrap_or("it failed");
        match why.starts_with("ssh: ") {
            true => Error::new(error.errno(), why),
            false => Error::new(error.errno(), format!("ssh: {}: {what}: {why}", self.table.host())),
        }
    }

    async fn send(&self, packet: &[u8], payload: &[u8]) {
        let _turn = self.write_turn.lock().await;
        // The request has failed already.
        if self.table.is_broken() {
            return;
        }
        self.socket.send_or_end(packet, payload, |broken| self.end(&broken)).await;
    }

    /// Sends a request, with `payload` after the packet, and does not wait for the answer.
    async fn send_request(
        &self,
        request: impl FnOnce(u32) -> Packet,
        payload: &[u8],
    ) -> oneshot::Receiver<Result<Reply>> {
        let (answer, answered) = oneshot::channel();
        if let Some(id) = self.table.enter(answer) {
            self.send(&request(id).finish(payload.len() as u32), payload).await;
        }
        answered
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn call(&self, request: impl FnOnce(u32) -> Packet) -> Result<Reply> {
        // Only the end of the runtime drops a request without an answer.
        self.send_request(request, &[]).await.await.unwrap_or_else(|_| Err(Errno::Eshutdown.into()))
    }

    /// Checks the answer to a request that only succeeds or fails. `what` is put before an error.
    pub(crate) fn expect_success(&self, what: &str, reply: Reply) -> Result<()> {
        let failed = match reply.kind {
            kind::STATUS => failure(&reply.body),
            kind => Err(ConnectionError::new(format!("the server answered with a packet of type {kind}"))),
        };
        match failed {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(self.error(what, &error)),
            Err(broken) => Err(self.protocol_error(broken)),
        }
    }

    /// Ends the connection after an answer that makes no sense.
    pub(crate) fn protocol_error(&self, broken: ConnectionError) -> Error {
        self.end(&broken);
        Error::new(Errno::Eio, format!("ssh: {}: {broken}", self.table.host()))
    }

    /// The body of an answer that has to be a packet of kind `expected`, or a failure.
    pub(crate) fn expect(&self, what: &str, expected: u8, reply: Reply) -> Result<Vec<u8>> {
        match reply.kind {
            kind if kind == expected => Ok(reply.body),
            kind::STATUS => {
                match self.expect_success(what, reply) {
                    Err(error) => Err(error),
                    Ok(()) => Err(self
                        .protocol_error(ConnectionError::new("the server says that all is well, and sends nothing"))),
                }
            }
            kind => {
                Err(self
                    .protocol_error(ConnectionError::new(format!("the server answered with a packet of type {kind}"))))
            }
        }
    }

    /// Reads at `offset` into `span`. If the server sends less than was asked for, asks for the
    /// rest again.
    pub(crate) async fn read(&self, handle: &[u8], mut buffer: Buffer, span: Span, offset: u64) -> Done {
        let mut pieces: Vec<Span> = pieces(span, self.limits().read).collect();
        for _ in 0..MAX_ROUNDS {
            let (answer, answered) = oneshot::channel();
            let transfer = Transfer { buffer, left: pieces.len(), missing: Vec::new(), error: None, answer };
            let mut unanswered = None;
            if let Some((key, ids)) = self.table.enter_transfer(transfer, &pieces) {
                unanswered = Some(Unanswered { table: &self.table, key });
                let packets: Vec<u8> = ids
                    .iter()
                    .zip(&pieces)
                    .flat_map(|(&id, piece)| {
                        let from = offset + u64::from(piece.at - span.at);
                        Packet::request(kind::READ, id).string(handle).u64(from).u32(piece.len).finish(0)
                    })
                    .collect();
                self.send(&packets, &[]).await;
            }
            let answer = answered.await;
            std::mem::forget(unanswered);
            let missing;
            (buffer, missing) = match answer {
                Ok((buffer, Ok(missing))) if missing.is_empty() => return (buffer, Ok(())),
                Ok((buffer, Ok(missing))) => (buffer, missing),
                Ok((buffer, Err(error))) => return (buffer, Err(self.error("cannot read", &error))),
                Err(_) => return (Buffer::new(0), Err(Errno::Eshutdown.into())),
            };
            pieces = missing;
        }
        let broken = ConnectionError::new("the server sends only a few bytes for each read");
        (buffer, Err(self.protocol_error(broken)))
    }

    /// Writes at `offset`.
    pub(crate) async fn write(&self, handle: &[u8], buffer: &Buffer, span: Span, offset: u64) -> Result<()> {
        let mut answers = Vec::new();
        for piece in pieces(span, self.limits().write) {
            let to = offset + u64::from(piece.at - span.at);
            let request = |id| Packet::request(kind::WRITE, id).string(handle).u64(to).u32(piece.len);
            answers.push(self.send_request(request, buffer.data(piece)).await);
        }
        let mut result = Ok(());
        for answer in answers {
            let one = match answer.await {
                Ok(Ok(reply)) => self.expect_success("cannot write", reply),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(Errno::Eshutdown.into()),
            };
            result = result.and(one);
        }
        result
    }

    /// Makes what was written durable.
    pub(crate) async fn fsync(&self, handle: &[u8]) -> Result<()> {
        let reply = self.call(|id| Packet::request(kind::EXTENDED, id).string(FSYNC).string(handle)).await?;
        self.expect_success("cannot flush", reply)
    }

    /// The server stops. Requests of the kind that `scope` names end now, and so do later ones.
    pub(crate) fn stop(&self, scope: StopScope) {
        match scope {
            StopScope::Reads => self.table.stop_reads(),
            StopScope::Everything => {
                self.closing.store(true, Ordering::Release);
                self.end(&ConnectionError::new("rbdkit ends"));
            }
        }
    }

    /// Closes the file. An error is one line that names the host.
    pub(crate) async fn close_file(&self, handle: &[u8]) -> Result<()> {
        let what = "cannot close the file";
        let closed = self.call(|id| Packet::request(kind::CLOSE, id).string(handle));
        match tokio::time::timeout(CLOSE_TIMEOUT, closed).await {
            Ok(reply) => self.expect_success(what, reply.map_err(|error| self.error(what, &error))?),
            Err(_elapsed) => {
                let why = format!("no answer within {} s", CLOSE_TIMEOUT.as_secs());
                Err(self.error(what, &Error::new(Errno::Etimedout, why)))
            }
        }
    }

    /// Closes the file and ends the session. Requests in flight fail.
    pub(crate) async fn close(&self, handle: Option<&[u8]>) {
        self.closing.store(true, Ordering::Release);
        if let Some(handle) = handle
            && !self.is_broken()
        {
            // No client is left to tell. Some servers write data when they close the file.
            if let Err(error) = self.close_file(handle).await {
                tracing::error!("{error}");
            }
        }
        self.end(&ConnectionError::new("the connection was closed"));
        let reader = lock(&self.reader).take();
        if let Some(reader) = reader {
            // Both directions are shut, so it ends by itself.
            let _ = reader.await;
        }
        let program = lock(&self.program).take();
        let _ = run_blocking(move || {
            // What ssh has to say about its end is in the log.
            let _ = program.map(Program::end);
            Ok(())
        })
        .await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // For a session that was not closed, as after an error while the file was opened: ends the
        // reader's task.
        self.closing.store(true, Ordering::Release);
        self.end(&ConnectionError::new("the connection was dropped"));
    }
}

fn end(socket: &Socket, table: &Table, closing: &AtomicBool, broken: &ConnectionError) {
    if table.end(broken) {
        if !closing.load(Ordering::Acquire) {
            tracing::error!("ssh: {}: {broken}", table.host());
        }
        socket.shut();
    }
}

/// `span` in pieces of up to `maximum`.
fn pieces(span: Span, maximum: u32) -> impl Iterator<Item = Span> {
    (0..span.len).step_by(maximum.max(1) as usize).map(move |at| Span::new(span.at + at, (span.len - at).min(maximum)))
}
