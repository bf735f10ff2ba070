//! The handshake of one connection: the protocol's state machine, its bytes and the chain's
//! answers.
//!
//! [`Handshake`] does no I/O. [`Negotiation`] gives it the client's bytes, asks the chain about
//! exports, and sends the replies. Each message has a time limit, and the whole negotiation has one
//! if the operator wants that.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::{Hop, NextLayer};
use rbdkit_nbd::{
    Export, Handshake, HandshakeAction, HandshakeConfig, MAX_OPTION, OpenRequest, Session, oldstyle_greeting,
    oldstyle_request, wire,
};
use rbdkit_plugin_api::text::quoted;
use rbdkit_plugin_api::{BoxFuture, Client, Error, Held, Op};
use rbdkit_tls::Handshake as TlsHandshake;
use tokio::time::{Instant, timeout};

use super::attended::{Attendant, Attended, expired};
use super::lists::{ExportList, ExportLists};
use super::options::ServerOptions;
use super::panics::caught;
use super::socket::{Input, Output, Source, read_into};
use super::state::ServerState;
use super::stop::Stop;
use super::tls::TlsStream;

/// What the negotiation of one connection needs.
pub(super) struct Negotiation<'a> {
    pub server: &'a ServerState,
    pub input: &'a mut Input,
    pub output: &'a Output,
    pub top: &'a NextLayer,
    pub client: &'a Client,
    /// The connection's number, for the log.
    pub id: u64,
    /// The charge for long options, from the first one until the negotiation ends.
    pub room: Option<Held>,
    /// When the negotiation has to have ended.
    pub deadline: Option<Instant>,
}

/// The longest option, in bytes, that needs no room of its own. Clients send names and queries of
/// some hundred bytes at most.
const LONG_OPTION: usize = 4096;

/// The charge for the options of one connection: a vector that grows has up to twice the memory
/// that it needs.
const LONG_OPTION_ROOM: u64 = 2 * MAX_OPTION as u64;

impl Negotiation<'_> {
    /// Negotiates until an export is open. None: the client left in an orderly way, or the server
    /// stops.
    ///
    /// # Errors
    /// The client took too long or closed the connection in the middle.
    pub async fn run(mut self, stop: &Stop) -> io::Result<Option<(Arc<Hop>, Session)>> {
        let options = &self.server.options;
        if options.oldstyle {
            return self.run_oldstyle(stop).await;
        }
        let supported = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
        let mut handshake = Handshake::new(HandshakeConfig {
            structured_replies: options.structured_replies,
            meta_contexts: options.meta_contexts,
            flags: options.handshake_mask.map_or(supported, |mask| supported & mask),
            tls: options.tls_policy(),
        });
        let mut out = Vec::new();
        handshake.greeting(&mut out);
        let mut input = Vec::new();
        loop {
            self.send(&mut out, stop).await?;
            if self.client.is_disconnect_requested() {
                return Ok(None);
            }
            match self.next_action(&mut handshake, &mut input, &mut out, stop).await? {
                None | Some(HandshakeAction::Abort) => {
                    self.send(&mut out, stop).await?;
                    return Ok(None);
                }
                Some(HandshakeAction::StartTls) => {
                    // An attacker on the way could have added what comes behind the option.
                    if !input.is_empty() || self.input.has_unread() {
                        tracing::warn!("connection {}: closed: it sends more before TLS begins", self.id);
                        return Ok(None);
                    }
                    let Some(stream) = self.tls_stream() else {
                        handshake.refuse_tls("too many clients use TLS", &mut out);
                        continue;
                    };
                    handshake.accept_tls(&mut out);
                    self.send(&mut out, stop).await?;
                    if !self.start_tls(stream, stop).await? {
                        return Ok(None);
                    }
                    handshake.begin_tls();
                }
                Some(HandshakeAction::List) => {
                    if !self.list(&mut handshake, &mut out, stop).await? {
                        return Ok(None);
                    }
                }
                Some(HandshakeAction::Open(request)) => match self.open(&request, stop).await? {
                    None => return Ok(None),
                    Some(Ok((hop, export))) => {
                        let Some(session) = handshake.accept(&request, &export, &mut out) else {
                            // The client only asked about the export (INFO). The export is closed
                            // before the reply, so the client can rely on that.
                            close(&hop, self.id).await;
                            continue;
                        };
                        if let Err(error) = self.send(&mut out, stop).await {
                            close(&hop, self.id).await;
                            return Err(error);
                        }
                        return Ok(Some((hop, session)));
                    }
                    Some(Err(error)) => {
                        tracing::error!("connection {}: open {}: {error}", self.id, quoted(&request.name));
                        if request.cannot_be_refused() {
                            return Ok(None);
                        }
                        let message = error.context().unwrap_or("the export cannot be opened");
                        handshake.refuse(&request, message, &mut out);
                    }
                },
            }
        }
    }

    /// Opens the default export and tells the client about it (`-o`). If it cannot be opened, the
    /// client learns only that the connection ends.
    async fn run_oldstyle(self, stop: &Stop) -> io::Result<Option<(Arc<Hop>, Session)>> {
        let (hop, export) = match self.open(&oldstyle_request(), stop).await? {
            None => return Ok(None),
            Some(Ok(opened)) => opened,
            Some(Err(error)) => {
                tracing::error!("connection {}: open: {error}", self.id);
                return Ok(None);
            }
        };
        let mut out = Vec::new();
        let session = oldstyle_greeting(&export, &mut out);
        if let Err(error) = self.send(&mut out, stop).await {
            close(&hop, self.id).await;
            return Err(error);
        }
        Ok(Some((hop, session)))
    }

    /// The time limit of the next message: what is left of the negotiation's, if that is less.
    fn limit(&self) -> Duration {
        let limit = self.server.options.limits.handshake_timeout;
        match self.deadline {
            Some(deadline) => limit.min(deadline.saturating_duration_since(Instant::now())),
            None => limit,
        }
    }

    /// The next option that needs the chain. The state machine answers other options on the way.
    /// None: the client closed its side, or the server stops.
    ///
    /// Never reads past the handshake: requests are left in the socket for the transmission.
    async fn next_action(
        &mut self,
        handshake: &mut Handshake,
        input: &mut Vec<u8>,
        out: &mut Vec<u8>,
        stop: &Stop,
    ) -> io::Result<Option<HandshakeAction>> {
        loop {
            let mut rest = &input[..];
            let action = handshake.advance(&mut rest, out);
            let used = input.len() - rest.len();
            input.drain(..used);
            match action {
                Ok(None) => {}
                Ok(action) => return Ok(action),
                Err(violation) => {
                    tracing::warn!("connection {}: closed: {violation}", self.id);
                    return Ok(None);
                }
            }
            self.send(out, stop).await?;
            if !self.read_message(handshake, input, stop).await? {
                return Ok(None);
            }
        }
    }

    /// Reads until there is a whole message. The time limit is for the message, however slowly its
    /// bytes come. False: the client closed its side, or the server stops.
    async fn read_message(&mut self, handshake: &Handshake, input: &mut Vec<u8>, stop: &Stop) -> io::Result<bool> {
        let started = handshake.wanted(input);
        if self.room.is_none() && input.len() + started > LONG_OPTION {
            let all = &self.server.handshakes;
            let Some(room) = all.hold(LONG_OPTION_ROOM) else {
                return Err(io::Error::other("too many clients send long options (--limit handshakes=SIZE)"));
            };
            self.room = Some(room);
        }
        let limit = self.limit();
        let socket = &mut *self.input;
        let read = async {
            // `wanted` is a lower bound until the length of the data is known: the caller calls
            // twice.
            let mut missing = started;
            while missing > 0 {
                let mut bytes = [0; 1024];
                let room = missing.min(bytes.len());
                let count = socket.read(|fd| read_into(fd, &mut bytes[..room], &mut [])).await?;
                if count == 0 {
                    return Ok(false);
                }
                input.extend_from_slice(&bytes[..count]);
                missing -= count;
            }
            Ok(true)
        };
        within(limit, read, stop).await
    }

    async fn send(&self, out: &mut Vec<u8>, stop: &Stop) -> io::Result<()> {
        if !out.is_empty() {
            let limit = self.limit();
            let write = async { self.output.write_all(out).await.map(|()| true) };
            if !within(limit, write, stop).await? {
                return Err(stopping());
            }
            out.clear();
        }
        Ok(())
    }

    /// TLS over the connection that does not say anything yet. None: there is no room for it.
    fn tls_stream(&self) -> Option<Arc<TlsStream>> {
        let memory = &self.server.tls_memory;
        let charge = memory.hold_session()?;
        let session = self.server.options.tls.as_ref()?.server.accept();
        let session = session.inspect_err(|error| tracing::error!("connection {}: TLS: {error}", self.id)).ok()?;
        let output = (self.output.fd(), self.output.is_socket());
        Some(Arc::new(TlsStream::new(session, charge, memory, self.input.fd(), output)))
    }

    /// Agrees upon TLS with the client. The time limit is for all of it, and no later than that of
    /// the whole negotiation. From then on everything is
    /// encrypted. False: the server stops.
    ///
    /// # Errors
    /// The client has left, takes too long, or does not prove who it is.
    async fn start_tls(&mut self, stream: Arc<TlsStream>, stop: &Stop) -> io::Result<bool> {
        let limit = self.limit();
        let (input, output) = (&mut *self.input, self.output);
        let handshake = async {
            let mut step = stream.handshake()?;
            loop {
                match step {
                    TlsHandshake::Done => return Ok(true),
                    TlsHandshake::WantsWrite => {
                        output.writable().await?;
                        step = stream.handshake()?;
                    }
                    TlsHandshake::WantsRead => {
                        let next = |_: Source<'_>| match stream.handshake()? {
                            TlsHandshake::WantsRead => Err(io::ErrorKind::WouldBlock.into()),
                            next => {
                                step = next;
                                // The socket may have more, so it counts as readable.
                                Ok((1, 1))
                            }
                        };
                        input.read(next).await?;
                    }
                }
            }
        };
        match within(limit, handshake, stop).await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                tracing::warn!("connection {}: closed: TLS: {error}", self.id);
                return Err(error);
            }
        }
        let (peer, algorithms) = stream.peer();
        let subject = peer.subject.as_deref().unwrap_or("no certificate");
        tracing::debug!("connection {}: {algorithms}, client: {}", self.id, quoted(subject));
        self.client.begin_tls(peer);
        self.output.begin_tls(Arc::clone(&stream));
        self.input.begin_tls(stream);
        Ok(true)
    }

    /// Answers LIST. The answer is written as the client takes it (see [`super::lists`]). False:
    /// the server stops.
    ///
    /// # Errors
    /// The client has left, or takes too long.
    async fn list(&self, handshake: &mut Handshake, out: &mut Vec<u8>, stop: &Stop) -> io::Result<bool> {
        let ServerState { options, lists, .. } = self.server;
        let limit = options.limits.handshake_timeout;
        let list = list(self.top.clone(), options.readonly, Arc::clone(lists), limit);
        let Some(listed) = or_left(self.attendant(stop).attend(Box::pin(list), |_| async {}).await)? else {
            return Ok(false);
        };
        match listed {
            Ok(list) => {
                tokio::select! {
                    sent = lists.send(&list, limit, handshake, self.output) => sent?,
                    () = stop.stopped() => return Ok(false),
                    () = expired(self.deadline) => return Err(too_late()),
                }
                handshake.end_list(out);
            }
            Err(error) => {
                tracing::error!("connection {}: list_exports: {error}", self.id);
                handshake.cannot_list(error.context().unwrap_or("the exports cannot be listed"), out);
            }
        }
        Ok(true)
    }

    /// Opens an export. None: the server stops.
    ///
    /// # Errors
    /// The client has left.
    async fn open(&self, request: &OpenRequest, stop: &Stop) -> io::Result<Option<Result<Opened, Error>>> {
        let id = self.id;
        let discard = move |opened: Result<Opened, Error>| async move {
            if let Ok((hop, _)) = opened {
                close(&hop, id).await;
            }
        };
        let open = open(self.top.clone(), self.server.options.clone(), request.clone());
        or_left(self.attendant(stop).attend(Box::pin(open), discard).await)
    }

    fn attendant<'b>(&'b self, stop: &'b Stop) -> Attendant<'b> {
        Attendant { server: self.server, input: self.input, client: self.client, stop, deadline: self.deadline }
    }
}

/// The answer of a call. None: the server stops.
///
/// # Errors
/// The client has left.
fn or_left<T>(attended: Attended<T>) -> io::Result<Option<T>> {
    match attended {
        Attended::Answer(answer) => Ok(Some(answer)),
        Attended::Stop => Ok(None),
        Attended::Gone => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has left")),
        Attended::TooLate => Err(too_late()),
    }
}

async fn list(
    top: NextLayer,
    readonly: bool,
    lists: Arc<ExportLists>,
    limit: Duration,
) -> Result<Arc<ExportList>, Error> {
    let ask = || -> BoxFuture<'_, _> { Box::pin(async { flat(caught(top.list_exports(readonly)).await) }) };
    lists.get(limit, ask).await
}

type Opened = (Arc<Hop>, Export);

/// Opens an export, and asks for what the client wants to know about it.
async fn open(top: NextLayer, options: ServerOptions, request: OpenRequest) -> Result<Opened, Error> {
    let hop = flat(caught(top.open(options.readonly, &request.name)).await)?;
    let mut can = hop.can();
    can.multi_conn &= options.multi_conn;
    let mut export = Export { size: hop.size(), can, name: None, description: None, block_sizes: None };
    if request.wants_name {
        // The chain remembers the name of the default export from opening it.
        export.name = match request.name.as_str() {
            "" => flat(caught(top.default_export(options.readonly)).await).ok(),
            name => Some(name.to_string()),
        };
    }
    if request.wants_description {
        export.description = optional(|| hop.description()).await;
    }
    if request.wants_block_size {
        export.block_sizes = optional(|| hop.block_sizes()).await;
    }
    Ok((hop, export))
}

/// What a client does not need. If a layer panics, there is none.
async fn optional<T: Unpin>(ask: impl FnOnce() -> Op<Option<T>>) -> Option<T> {
    caught(async { ask().await }).await.unwrap_or_else(|panic| {
        tracing::error!("a layer fails to describe the export: {panic}");
        None
    })
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client takes too long")
}

fn stopping() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the server stops")
}

/// Finalizes and closes what was opened, after its last operation.
pub(super) async fn close(hop: &Hop, id: u64) {
    if let Err(error) = flat(caught(hop.finalize()).await) {
        tracing::error!("connection {id}: finalize: {error}");
    }
    if let Err(error) = caught(hop.close()).await {
        tracing::error!("connection {id}: close: {error}");
    }
}

fn flat<T>(nested: Result<Result<T, Error>, Error>) -> Result<T, Error> {
    nested.and_then(|result| result)
}

/// Waits for the client, for `limit` at most. False: the server stops.
///
/// # Errors
/// `TimedOut`, or the error of `wait`.
async fn within(limit: Duration, wait: impl Future<Output = io::Result<bool>>, stop: &Stop) -> io::Result<bool> {
    tokio::select! {
        answer = timeout(limit, wait) => match answer {
            Ok(answer) => answer,
            Err(_) => Err(too_late()),
        },
        () = stop.stopped() => Ok(false),
    }
}
