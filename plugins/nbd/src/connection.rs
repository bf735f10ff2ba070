//! One connection to the other server: many requests in flight, answered in any order.
//!
//! The caller of a request writes it: header and payload in one system call if the socket has room.
//! Only one caller writes at a time. A task of its own ([`replies`]) reads the answers. It never
//! waits for a writer, so the server never waits for us to read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Done, Errno, Extents, Flags, Result, Span, StopScope, lock};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::handshake::{Format, Session};
use crate::ranges::Ranges;
use crate::replies::{self, Agreed};
use crate::table::{Errors, Pending, Plain, Read, Status, Table};
use crate::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, cmd, cmd_flag, transmission};
use rbdkit_stream::{ConnectionError, Input, Socket};

/// How many chunks of data the answer to a read of `length` bytes may have: one for each sector,
/// and 1024 for a server that cuts short reads where its file has holes.
const fn most_chunks(length: u32) -> u32 {
    1024 + length / 512
}

/// How long closing a connection waits for room in the socket's send buffer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The header fields of a command.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A command's header.
struct Header {
    bytes: [u8; 32],
    length: usize,
}

impl Header {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Command {
    pub(crate) const FLUSH: Command = Command { kind: cmd::FLUSH, flags: 0, offset: 0, length: 0 };

    /// Without extended headers the length has to fit 32 bits.
    fn header(self, cookie: u64, format: Format) -> Header {
        let is_extended = format == Format::Extended;
        let magic = if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        // Only writes have a payload.
        let payload = if is_extended && self.kind == cmd::WRITE { cmd_flag::PAYLOAD_LEN } else { 0 };
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&(self.flags | payload).to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        if is_extended {
            bytes[24..].copy_from_slice(&self.length.to_be_bytes());
            return Header { bytes, length: 32 };
        }
        debug_assert!(u32::try_from(self.length).is_ok());
        bytes[24..28].copy_from_slice(&(self.length as u32).to_be_bytes());
        Header { bytes, length: 28 }
    }
}

/// See the module.
pub(crate) struct Connection {
    session: Session,
    socket: Arc<Socket>,
    table: Arc<Table>,
    /// Held while a request is written.
    write_turn: tokio::sync::Mutex<()>,
    closing: Arc<AtomicBool>,
    /// A request that changes the server's data was made.
    changed: AtomicBool,
    reader: Mutex<Option<JoinHandle<()>>>,
}

/// A request that waits for its reply. Dropping this value frees the request's buffer.
struct Unanswered<'a> {
    table: &'a Table,
    cookie: u64,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.table.drop_reply(self.cookie);
    }
}

impl Connection {
    /// Starts the transmission phase after the handshake. `server` names the server in messages.
    pub(crate) fn start(socket: Arc<Socket>, session: Session, server: String) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            table: Arc::new(Table::new(server)),
            socket: Arc::clone(&socket),
            write_turn: tokio::sync::Mutex::new(()),
            closing: Arc::new(AtomicBool::new(false)),
            changed: AtomicBool::new(false),
            reader: Mutex::new(None),
            session,
        });
        let agreed = Agreed { format: connection.session.format, context: connection.session.context };
        let (table, closing) = (Arc::clone(&connection.table), Arc::clone(&connection.closing));
        // The task must not hold the connection, which would keep itself alive that way.
        let reader = tokio::spawn(async move {
            let broken = replies::read(Input::new(Arc::clone(&socket)), Arc::clone(&table), agreed).await;
            end(&socket, &table, &closing, broken);
        });
        *lock(&connection.reader) = Some(reader);
        connection
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Whether the server offers what the transmission flag stands for.
    pub(crate) fn offers(&self, flag: u16) -> bool {
        self.session.flags & flag != 0
    }

    /// Whether the server may have data to write back.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken()
    }

    fn end(&self, broken: ConnectionError) {
        end(&self.socket, &self.table, &self.closing, broken);
    }

    async fn send(&self, header: &[u8], payload: &[u8]) {
        let _turn = self.write_turn.lock().await;
        // The request has failed already.
        if self.table.is_broken() {
            return;
        }
        self.socket.send_or_end(header, payload, |broken| self.end(broken)).await;
    }

    /// Sends a request and waits until it is answered. None: the runtime ends.
    async fn ask<T>(
        &self,
        pending: Pending,
        command: Command,
        payload: &[u8],
        answered: oneshot::Receiver<T>,
    ) -> Option<T> {
        let mut unanswered = None;
        if let Some(cookie) = self.table.enter(pending) {
            unanswered = Some(Unanswered { table: &self.table, cookie });
            self.send(command.header(cookie, self.session.format).as_slice(), payload).await;
        }
        let answer = answered.await.ok();
        std::mem::forget(unanswered);
        answer
    }

    /// READ. `span` is no longer than the server's maximum.
    pub(crate) async fn read(&self, buffer: Buffer, span: Span, offset: u64) -> Done {
        let (answer, answered) = oneshot::channel();
        let (received, errors, chunks_left) = (Ranges::default(), Errors::default(), most_chunks(span.len));
        let read = Read { buffer, span, offset, received, chunks_left, errors, answer };
        let command = Command { kind: cmd::READ, flags: 0, offset, length: span.len.into() };
        let answer = self.ask(Pending::Read(Box::new(read)), command, &[], answered).await;
        answer.unwrap_or_else(|| (Buffer::new(0), Err(Errno::Eshutdown.into())))
    }

    /// WRITE. `payload` is no longer than the server's maximum.
    pub(crate) async fn write(&self, payload: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let flags = if flags.fua { cmd_flag::FUA } else { 0 };
        let command = Command { kind: cmd::WRITE, flags, offset, length: payload.len() as u64 };
        self.command(command, payload).await
    }

    /// A command whose answer has no data.
    pub(crate) async fn command(&self, command: Command, payload: &[u8]) -> Result<()> {
        if matches!(command.kind, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES) {
            self.changed.store(true, Ordering::Relaxed);
        }
        let (answer, answered) = oneshot::channel();
        let plain = Pending::Plain(Plain { offset: command.offset, errors: Errors::default(), answer });
        self.ask(plain, command, payload, answered).await.unwrap_or_else(|| Err(Errno::Eshutdown.into()))
    }

    /// BLOCK_STATUS.
    pub(crate) async fn status(&self, command: Command) -> Result<Extents> {
        let (answer, answered) = oneshot::channel();
        let Command { offset, length, .. } = command;
        let status = Status { offset, length, extents: None, errors: Errors::default(), answer };
        let status = Pending::Status(Box::new(status));
        self.ask(status, command, &[], answered).await.unwrap_or_else(|| Err(Errno::Eshutdown.into()))
    }

    /// The server stops. Requests of the kind that `scope` names end now, and so do later ones.
    pub(crate) fn stop(&self, scope: StopScope) {
        match scope {
            StopScope::Reads => self.table.stop_reads(),
            StopScope::Everything => {
                self.closing.store(true, Ordering::Release);
                self.end(ConnectionError::new("rbdkit ends"));
            }
        }
    }

    /// Sends DISC and ends the connection. Requests in flight fail.
    pub(crate) async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        if !self.is_broken() {
            let disconnect = Command { kind: cmd::DISC, flags: 0, offset: 0, length: 0 };
            // A server that does not read does not get it.
            let _ = tokio::time::timeout(
                CLOSE_TIMEOUT,
                self.send(disconnect.header(u64::MAX, self.session.format).as_slice(), &[]),
            )
            .await;
        }
        self.end(ConnectionError::new("the connection was closed"));
        let reader = lock(&self.reader).take();
        if let Some(reader) = reader {
            // Both directions are shut, so it ends by itself.
            let _ = reader.await;
        }
    }

    /// Read-only, as the server has it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.offers(transmission::READ_ONLY)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without close, as after an error while it was opened: the reader must not be left behind.
        self.closing.store(true, Ordering::Release);
        self.end(ConnectionError::new("the connection was dropped"));
    }
}

fn end(socket: &Socket, table: &Table, closing: &AtomicBool, broken: ConnectionError) {
    if table.end(broken.clone()) {
        if !closing.load(Ordering::Acquire) {
            tracing::error!("nbd: {}: {broken}", table.server());
        }
        socket.shut();
    }
}
