//! One connection to the other server: many requests in flight, answered in whatever order.
//!
//! A request is written where it is made, header and payload in one system call if the socket has room; requests take turns, so
//! nothing of two of them mixes. The answers are read by a task of their own ([`replies`]), which therefore never waits for a
//! writer, and the server at the other end never for us to read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Done, Errno, Extents, Flags, Result, Span, lock};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::handshake::Session;
use crate::ranges::Ranges;
use crate::replies::{self, Agreed};
use crate::table::{Pending, Plain, Read, Status, Table};
use crate::wire::{REQUEST_MAGIC, cmd, cmd_flag, transmission};
use rbdkit_stream::{Broken, Input, Socket};

/// How long the end of a connection waits for room in the socket.
const GOODBYE: Duration = Duration::from_secs(1);

/// A command without data of its own, as the wire has it.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl Command {
    pub(crate) const FLUSH: Command = Command { kind: cmd::FLUSH, flags: 0, offset: 0, length: 0 };

    fn header(self, cookie: u64) -> [u8; 28] {
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&self.kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..].copy_from_slice(&self.length.to_be_bytes());
        header
    }
}

/// See the module.
pub(crate) struct Connection {
    session: Session,
    socket: Arc<Socket>,
    table: Arc<Table>,
    /// Held by whoever writes a request.
    turn: tokio::sync::Mutex<()>,
    closing: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

/// A request that is being written. Half a request would turn what follows into nonsense, so if this is dropped the connection ends.
struct Unfinished<'a>(&'a Connection);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.end(Broken::new("a request was given up while it was sent"));
    }
}

impl Connection {
    /// Takes over after the handshake. `server` names it in messages.
    pub(crate) fn start(socket: Arc<Socket>, session: Session, server: String) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            table: Arc::new(Table::new(server)),
            socket: Arc::clone(&socket),
            turn: tokio::sync::Mutex::new(()),
            closing: Arc::new(AtomicBool::new(false)),
            reader: Mutex::new(None),
            session,
        });
        let agreed = Agreed { structured: connection.session.structured, context: connection.session.context };
        let (table, closing) = (Arc::clone(&connection.table), Arc::clone(&connection.closing));
        // It holds nothing of the connection that would keep it alive.
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

    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken()
    }

    fn end(&self, broken: Broken) {
        end(&self.socket, &self.table, &self.closing, broken);
    }

    async fn send(&self, header: &[u8], payload: &[u8]) {
        let _turn = self.turn.lock().await;
        // Nobody would answer; the request was failed already.
        if self.table.is_broken() {
            return;
        }
        let unfinished = Unfinished(self);
        match self.socket.send(header, payload).await {
            Ok(()) => std::mem::forget(unfinished),
            Err(error) => {
                self.end(error.into());
            }
        }
    }

    /// READ of up to the most that the server takes.
    pub(crate) async fn read(&self, buffer: Buffer, span: Span, offset: u64) -> Done {
        let (answer, answered) = oneshot::channel();
        let read = Read { buffer, span, offset, received: Ranges::default(), error: None, answer };
        if let Some(cookie) = self.table.enter(Pending::Read(Box::new(read))) {
            let command = Command { kind: cmd::READ, flags: 0, offset, length: span.len };
            self.send(&command.header(cookie), &[]).await;
        }
        // Only the end of the runtime drops a request without an answer.
        answered.await.unwrap_or_else(|_| (Buffer::new(0), Err(Errno::Eshutdown.into())))
    }

    /// WRITE of up to the most that the server takes.
    pub(crate) async fn write(&self, payload: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let flags = if flags.fua { cmd_flag::FUA } else { 0 };
        let command = Command { kind: cmd::WRITE, flags, offset, length: payload.len() as u32 };
        self.command(command, payload).await
    }

    /// A command that is answered by success or an error.
    pub(crate) async fn command(&self, command: Command, payload: &[u8]) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        if let Some(cookie) = self.table.enter(Pending::Plain(Plain { error: None, answer })) {
            self.send(&command.header(cookie), payload).await;
        }
        answered.await.unwrap_or_else(|_| Err(Errno::Eshutdown.into()))
    }

    /// BLOCK_STATUS.
    pub(crate) async fn status(&self, command: Command) -> Result<Extents> {
        let (answer, answered) = oneshot::channel();
        let Command { offset, length, .. } = command;
        let status = Status { offset, length: u64::from(length), extents: None, error: None, answer };
        if let Some(cookie) = self.table.enter(Pending::Status(Box::new(status))) {
            self.send(&command.header(cookie), &[]).await;
        }
        answered.await.unwrap_or_else(|_| Err(Errno::Eshutdown.into()))
    }

    /// Says goodbye and ends the connection. Requests in flight fail.
    pub(crate) async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        if !self.is_broken() {
            let goodbye = Command { kind: cmd::DISC, flags: 0, offset: 0, length: 0 };
            // A server that does not read gets none.
            let _ = tokio::time::timeout(GOODBYE, self.send(&goodbye.header(u64::MAX), &[])).await;
        }
        self.end(Broken::new("the connection was closed"));
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
        self.end(Broken::new("the connection was dropped"));
    }
}

fn end(socket: &Socket, table: &Table, closing: &AtomicBool, broken: Broken) {
    if table.end(broken.clone()) {
        if !closing.load(Ordering::Acquire) {
            tracing::error!("nbd: {}: {broken}", table.server());
        }
        socket.shut();
    }
}
