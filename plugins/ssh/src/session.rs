//! One SFTP session with one open file.
//!
//! Requests take turns on the way out and are answered in whatever order, so a client's requests, and the pieces of a long one, are all in
//! flight together: what a request costs is the bandwidth, and the way there and back only once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Program};
use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Result, Span, lock, run_blocking};
use rbdkit_stream::{Broken, Input, Socket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::{Create, Settings};
use crate::device;
use crate::launch::{Launched, launch};
use crate::replies::{self, failure, header};
use crate::said;
use crate::table::{Reply, Table, Transfer};
use crate::wire::{self, Attributes, FSYNC, LIMITS, Packet, Reader, attr, kind};

/// How long it may take until the file is open, if `timeout` says no more.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the end of a session waits for the server to close the file.
const GOODBYE: Duration = Duration::from_secs(5);

/// The most data in one request to a server that does not tell its limit: what every server has to take, by the protocol.
const USUAL_PIECE: u32 = 32 << 10;

/// The most data in one request. OpenSSH takes 255 KiB; in whole pages, so that the server's reads and writes stay aligned.
const LARGEST_PIECE: u32 = 252 << 10;

/// The longest handle of the protocol.
const MAX_HANDLE: usize = 256;

/// How the file is opened.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) readonly: bool,
    /// Make it first.
    pub(crate) create: Option<Create>,
}

/// The most data in a request, in bytes.
#[derive(Clone, Copy)]
struct Limits {
    read: u32,
    write: u32,
}

/// See the module.
pub(crate) struct Session {
    socket: Arc<Socket>,
    table: Arc<Table>,
    /// Held by whoever writes a packet.
    turn: tokio::sync::Mutex<()>,
    closing: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
    program: Mutex<Option<Program>>,
    limits: Mutex<Limits>,
    fsync: bool,
}

/// A session, and the file in it.
pub(crate) struct Opened {
    pub(crate) session: Arc<Session>,
    pub(crate) handle: Vec<u8>,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) writable: bool,
}

/// Connects and opens the file.
pub(crate) async fn open(launcher: &Launcher, settings: &Settings, open: Open) -> Result<Opened> {
    let patience = settings.timeout.map_or(PATIENCE, |seconds| PATIENCE.max(Duration::from_secs(seconds.into()) * 2));
    let session = connect(launcher, settings, patience).await?;
    let opened = tokio::time::timeout(patience, session.open_file(settings, open));
    let result = opened.await.unwrap_or_else(|_| Err(late(settings, patience)));
    match result {
        Ok(opened) => Ok(opened),
        Err(error) => {
            session.close(None).await;
            Err(error)
        }
    }
}

fn late(settings: &Settings, patience: Duration) -> Error {
    Error::new(Errno::Etimedout, format!("ssh: {}: no answer within {} s", settings.host, patience.as_secs()))
}

async fn connect(launcher: &Launcher, settings: &Settings, patience: Duration) -> Result<Arc<Session>> {
    let Launched { socket, program, words } = launch(launcher, settings)?;
    let mut input = Input::new(Arc::clone(&socket));
    let greeted = tokio::time::timeout(patience, greet(&socket, &mut input)).await;
    let problem = match greeted {
        Ok(Ok(fsync)) => {
            words.connected();
            program.release();
            return Ok(Session::start(socket, input, Some(program), settings.host.clone(), fsync));
        }
        Ok(Err(broken)) => Some(broken),
        Err(_late) => None,
    };
    // No more is to be said: in both cases ssh ends.
    socket.shut();
    let ended = run_blocking(move || {
        drop(program);
        Ok(())
    });
    match problem {
        // What ssh says of it says more than that the connection ended.
        Some(broken) => {
            let said = words.last().await;
            ended.await?;
            match said.trim().is_empty() {
                true => Err(Error::new(Errno::Eio, format!("ssh: {}: {broken}", settings.host))),
                false => Err(said::error(settings, &said)),
            }
        }
        None => {
            ended.await?;
            Err(late(settings, patience))
        }
    }
}

/// Agrees upon the version. Whether the server has fsync.
pub(crate) async fn greet(socket: &Socket, input: &mut Input) -> Result<bool, Broken> {
    socket.send(&Packet::new(kind::INIT).u32(3).finish(0), &[]).await?;
    let (kind, length) = header(input).await?;
    let wrong = || Broken::new("this is not an SFTP server: it does not begin with its version");
    if kind != kind::VERSION {
        return Err(wrong());
    }
    let body = input.vec(length as usize).await?;
    let mut reader = Reader(&body);
    let version = reader.u32().ok_or_else(wrong)?;
    if version != 3 {
        return Err(Broken::new(format!("the server speaks version {version} of SFTP, not 3")));
    }
    let mut fsync = false;
    while let Some((name, value)) = reader.string().zip(reader.string()) {
        fsync |= name == FSYNC && value == b"1";
    }
    Ok(fsync)
}

/// A packet that is being written. Half a packet would turn what follows into nonsense, so if this is dropped the connection ends.
struct Unfinished<'a>(&'a Session);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.end(&Broken::new("a request was given up while it was sent"));
    }
}

impl Session {
    /// Takes over after the version. `program` ends with the session.
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
            turn: tokio::sync::Mutex::new(()),
            closing: Arc::new(AtomicBool::new(false)),
            reader: Mutex::new(None),
            program: Mutex::new(program),
            limits: Mutex::new(Limits { read: USUAL_PIECE, write: USUAL_PIECE }),
            fsync,
        });
        let (table, closing) = (Arc::clone(&session.table), Arc::clone(&session.closing));
        // It holds nothing of the session that would keep it alive.
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

    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken()
    }

    /// Whether writes can be made durable.
    pub(crate) fn has_fsync(&self) -> bool {
        self.fsync
    }

    fn end(&self, broken: &Broken) {
        end(&self.socket, &self.table, &self.closing, broken);
    }

    fn error(&self, what: &str, error: &Error) -> Error {
        let why = error.context().unwrap_or("it failed");
        match why.starts_with("ssh: ") {
            true => Error::new(error.errno(), why),
            false => Error::new(error.errno(), format!("ssh: {}: {what}: {why}", self.table.host())),
        }
    }

    async fn send(&self, packet: &[u8], payload: &[u8]) {
        let _turn = self.turn.lock().await;
        // Nobody would answer; the request was failed already.
        if self.table.is_broken() {
            return;
        }
        let unfinished = Unfinished(self);
        match self.socket.send(packet, payload).await {
            Ok(()) => std::mem::forget(unfinished),
            Err(error) => self.end(&error.into()),
        }
    }

    /// Sends a request, with the packet's payload behind it, and does not wait for the answer yet.
    async fn ask(&self, request: impl FnOnce(u32) -> Packet, payload: &[u8]) -> oneshot::Receiver<Result<Reply>> {
        let (answer, answered) = oneshot::channel();
        if let Some(id) = self.table.enter(answer) {
            self.send(&request(id).finish(payload.len() as u32), payload).await;
        }
        answered
    }

    async fn reply(&self, request: impl FnOnce(u32) -> Packet) -> Result<Reply> {
        // Only the end of the runtime drops a request without an answer.
        self.ask(request, &[]).await.await.unwrap_or_else(|_| Err(Errno::Eshutdown.into()))
    }

    /// The answer of a request that succeeds or fails.
    fn done(&self, what: &str, reply: Reply) -> Result<()> {
        let failed = match reply.kind {
            kind::STATUS => failure(&reply.body),
            kind => Err(Broken::new(format!("the server answered with a packet of type {kind}"))),
        };
        match failed {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(self.error(what, &error)),
            Err(broken) => Err(self.violated(broken)),
        }
    }

    fn violated(&self, broken: Broken) -> Error {
        self.end(&broken);
        Error::new(Errno::Eio, format!("ssh: {}: {broken}", self.table.host()))
    }

    /// The answer of a request that brings something: a packet of this kind, or a failure.
    fn brought(&self, what: &str, expected: u8, reply: Reply) -> Result<Vec<u8>> {
        match reply.kind {
            kind if kind == expected => Ok(reply.body),
            kind::STATUS => match self.done(what, reply) {
                Err(error) => Err(error),
                Ok(()) => Err(self.violated(Broken::new("the server says that all is well, and sends nothing"))),
            },
            kind => Err(self.violated(Broken::new(format!("the server answered with a packet of type {kind}")))),
        }
    }

    pub(crate) async fn open_file(self: &Arc<Self>, settings: &Settings, how: Open) -> Result<Opened> {
        self.ask_limits().await?;
        let path = settings.path.as_encoded_bytes();
        let what = format!("cannot open {}", settings.path.to_string_lossy());
        let (flags, mode) = match how.create {
            Some(create) => {
                (wire::open::READ | wire::open::WRITE | wire::open::CREATE | wire::open::TRUNCATE, Some(create.mode))
            }
            None if how.readonly => (wire::open::READ, None),
            None => (wire::open::READ | wire::open::WRITE, None),
        };
        let mut writable = flags & wire::open::WRITE != 0;
        let mut opened = self.open_path(&what, path, flags, mode).await;
        // As with files here: what cannot be written is served read-only.
        if how.create.is_none() && writable && opened.as_ref().is_err_and(|error| error.errno() == Errno::Eperm) {
            writable = false;
            opened = self.open_path(&what, path, wire::open::READ, None).await;
        }
        let handle = opened?;
        if let Some(create) = how.create {
            let reply =
                self.reply(|id| Packet::request(kind::FSETSTAT, id).string(&handle).u32(attr::SIZE).u64(create.size));
            self.done(&format!("cannot make the file {} bytes long", create.size), reply.await?)?;
        }
        let reply = self.reply(|id| Packet::request(kind::FSTAT, id).string(&handle)).await?;
        let body = self.brought(&what, kind::ATTRS, reply)?;
        let attributes = Attributes::read(Reader(&body))
            .ok_or_else(|| self.violated(Broken::new("the server sent malformed attributes")))?;
        let refuse = |why: &str| Err(Error::new(Errno::Eio, format!("ssh: {}: {what}: {why}", self.table.host())));
        const KIND: u32 = 0o170_000;
        const DIRECTORY: u32 = 0o040_000;
        const BLOCK_DEVICE: u32 = 0o060_000;
        if attributes.mode.is_some_and(|mode| mode & KIND == DIRECTORY) {
            return refuse("it is a directory");
        }
        let is_device = attributes.mode.is_some_and(|mode| mode & KIND == BLOCK_DEVICE);
        let size = match attributes.size {
            Some(0) if is_device => {
                Some(device::measure(self, &handle).await.map_err(|error| self.error(&what, &error))?)
            }
            size => size,
        };
        match size {
            Some(size) if size <= i64::MAX as u64 => {
                Ok(Opened { session: Arc::clone(self), handle, size, writable: writable && !how.readonly })
            }
            Some(_) => refuse("its size is beyond 2^63 - 1"),
            None => refuse("the server does not tell its size"),
        }
    }

    async fn open_path(&self, what: &str, path: &[u8], flags: u32, mode: Option<u32>) -> Result<Vec<u8>> {
        let reply = self.reply(|id| {
            let packet = Packet::request(kind::OPEN, id).string(path).u32(flags);
            match mode {
                Some(mode) => packet.u32(attr::PERMISSIONS).u32(mode),
                None => packet.u32(0),
            }
        });
        let body = self.brought(what, kind::HANDLE, reply.await?)?;
        match Reader(&body).string().filter(|handle| handle.len() <= MAX_HANDLE) {
            Some(handle) => Ok(handle.to_owned()),
            None => Err(self.violated(Broken::new("the server sent a malformed handle"))),
        }
    }

    /// How long a request may be. A server that does not know the question takes what all take.
    async fn ask_limits(&self) -> Result<()> {
        let reply = self.reply(|id| Packet::request(kind::EXTENDED, id).string(LIMITS)).await?;
        if reply.kind != kind::EXTENDED_REPLY {
            return Ok(());
        }
        let mut reader = Reader(&reply.body);
        let limits = reader.u64().and_then(|_packet| reader.u64().zip(reader.u64()));
        let (read, write) = limits.ok_or_else(|| self.violated(Broken::new("the server sent malformed limits")))?;
        // 0 is "not told".
        let piece = |limit: u64| match limit {
            0..=4095 => USUAL_PIECE,
            limit => limit.min(u64::from(LARGEST_PIECE)) as u32,
        };
        *lock(&self.limits) = Limits { read: piece(read), write: piece(write) };
        Ok(())
    }

    /// Reads at `offset` into `span`. Where the server sends less than was asked for the rest is asked for again.
    pub(crate) async fn read(&self, handle: &[u8], mut buffer: Buffer, span: Span, offset: u64) -> Done {
        let mut pieces: Vec<Span> = pieces(span, self.limits().read).collect();
        loop {
            let (answer, answered) = oneshot::channel();
            let transfer = Transfer { buffer, left: pieces.len(), missing: Vec::new(), error: None, answer };
            if let Some(ids) = self.table.enter_transfer(transfer, &pieces) {
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
            let missing;
            (buffer, missing) = match answered.await {
                Ok((buffer, Ok(missing))) if missing.is_empty() => return (buffer, Ok(())),
                Ok((buffer, Ok(missing))) => (buffer, missing),
                Ok((buffer, Err(error))) => return (buffer, Err(self.error("cannot read", &error))),
                Err(_) => return (Buffer::new(0), Err(Errno::Eshutdown.into())),
            };
            pieces = missing;
        }
    }

    /// Writes at `offset`.
    pub(crate) async fn write(&self, handle: &[u8], buffer: &Buffer, span: Span, offset: u64) -> Result<()> {
        let mut answers = Vec::new();
        for piece in pieces(span, self.limits().write) {
            let to = offset + u64::from(piece.at - span.at);
            let request = |id| Packet::request(kind::WRITE, id).string(handle).u64(to).u32(piece.len);
            answers.push(self.ask(request, buffer.data(piece)).await);
        }
        let mut result = Ok(());
        for answer in answers {
            let one = match answer.await {
                Ok(Ok(reply)) => self.done("cannot write", reply),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(Errno::Eshutdown.into()),
            };
            result = result.and(one);
        }
        result
    }

    /// Makes what was written durable.
    pub(crate) async fn fsync(&self, handle: &[u8]) -> Result<()> {
        let reply = self.reply(|id| Packet::request(kind::EXTENDED, id).string(FSYNC).string(handle)).await?;
        self.done("cannot flush", reply)
    }

    /// Closes the file and ends the session. Requests in flight fail.
    pub(crate) async fn close(&self, handle: Option<&[u8]>) {
        self.closing.store(true, Ordering::Release);
        if let Some(handle) = handle {
            let closed = self.reply(|id| Packet::request(kind::CLOSE, id).string(handle));
            let _ = tokio::time::timeout(GOODBYE, closed).await;
        }
        self.end(&Broken::new("the connection was closed"));
        let reader = lock(&self.reader).take();
        if let Some(reader) = reader {
            // Both directions are shut, so it ends by itself.
            let _ = reader.await;
        }
        let program = lock(&self.program).take();
        let _ = run_blocking(move || {
            drop(program);
            Ok(())
        })
        .await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Without close, as after an error while it was opened: the reader must not be left behind.
        self.closing.store(true, Ordering::Release);
        self.end(&Broken::new("the connection was dropped"));
    }
}

fn end(socket: &Socket, table: &Table, closing: &AtomicBool, broken: &Broken) {
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
