//! The life of one connection: preconnect, handshake, transmission, finalize and close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{Client, Error};
use tokio::time::timeout;

use super::guard::caught;
use super::socket::{Input, Output, read_into};
use super::transmission::Transmission;
use super::{Server, Stop};
use rbdkit_chain::{Below, Hop};
use rbdkit_nbd::{Export, Handshake, HandshakeConfig, Opening, Session, Wish, wire};

/// Serves a client until it has gone and everything that it opened is closed.
pub(super) async fn serve(server: Arc<Server>, socket: (Input, Output), client: Arc<Client>, stop: Stop) {
    let (mut input, output) = socket;
    let id = client.id;
    tracing::debug!("connection {id}: {:?} credentials {:?}", client.peer, client.credentials);
    let readonly = server.options.readonly;
    let top = server.chain.top(Arc::clone(&client));
    if let Err(error) = flat(caught(top.preconnect(readonly)).await) {
        tracing::error!("connection {id}: preconnect: {error}");
        return;
    }
    // Boxed, so that its state is gone, and not only unused, while requests are served.
    let negotiation = Negotiation { server: &server, input: &mut input, output: &output, top: &top, id };
    let negotiated = Box::pin(negotiation.run(&stop)).await;
    // Opening took instances of filters, and the next request may be long in coming.
    server.chain.pool().stir().stir();
    match negotiated {
        Ok(Some((hop, session))) => {
            tracing::debug!(
                "connection {id}: size {} structured {} base:allocation {}",
                session.size,
                session.structured,
                session.base_allocation
            );
            let output = Arc::new(output);
            let transmission = Transmission::new(
                &server,
                input,
                Arc::clone(&output),
                Arc::clone(&client),
                Arc::clone(&hop),
                session,
                stop,
            );
            transmission.run().await;
            close(&hop, id).await;
            // Only now does the client see the end: what a layer had to do at the end is done.
            drop(output);
        }
        Ok(None) => {}
        Err(error) => tracing::debug!("connection {id}: handshake: {error}"),
    }
    client.set_gone();
    tracing::debug!("connection {id}: closed");
}

/// Ends what was opened, after its last operation.
async fn close(hop: &Hop, id: u64) {
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

struct Negotiation<'a> {
    server: &'a Arc<Server>,
    input: &'a mut Input,
    output: &'a Output,
    top: &'a Below,
    id: u64,
}

impl Negotiation<'_> {
    /// None: the client left in an orderly way, or the server stops.
    async fn run(mut self, stop: &Stop) -> io::Result<Option<(Arc<Hop>, Session)>> {
        let options = &self.server.options;
        let supported = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
        let mut handshake = Handshake::new(HandshakeConfig {
            structured_replies: options.structured_replies,
            flags: options.handshake_mask.map_or(supported, |mask| supported & mask),
        });
        let mut out = Vec::new();
        handshake.greeting(&mut out);
        let mut input = Vec::new();
        loop {
            self.send(&mut out, stop).await?;
            match self.wish(&mut handshake, &mut input, &mut out, stop).await? {
                None | Some(Wish::Abort) => {
                    self.send(&mut out, stop).await?;
                    return Ok(None);
                }
                Some(Wish::List) => self.list(&handshake, &mut out).await,
                Some(Wish::Open(opening)) => match self.open(&opening).await {
                    Ok((hop, export)) => {
                        let Some(session) = handshake.accept(&opening, &export, &mut out) else {
                            // Only looked at: closed before the answer, so that the client can rely on it.
                            close(&hop, self.id).await;
                            continue;
                        };
                        if let Err(error) = self.send(&mut out, stop).await {
                            close(&hop, self.id).await;
                            return Err(error);
                        }
                        return Ok(Some((hop, session)));
                    }
                    Err(error) => {
                        tracing::error!("connection {}: open '{}': {error}", self.id, opening.name.escape_debug());
                        if opening.cannot_be_refused() {
                            return Ok(None);
                        }
                        let message = error.context().unwrap_or("the export cannot be opened");
                        handshake.refuse(&opening, message, &mut out);
                    }
                },
            }
        }
    }

    /// The next wish; simple options are answered on the way. None: the client ended its side, or the server stops.
    ///
    /// Never reads past the handshake: requests are left in the socket for the transmission.
    async fn wish(
        &mut self,
        handshake: &mut Handshake,
        input: &mut Vec<u8>,
        out: &mut Vec<u8>,
        stop: &Stop,
    ) -> io::Result<Option<Wish>> {
        loop {
            let mut rest = &input[..];
            let wish = handshake.advance(&mut rest, out);
            let used = input.len() - rest.len();
            input.drain(..used);
            match wish {
                Ok(None) => {}
                Ok(wish) => return Ok(wish),
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

    /// Reads until there is a whole message. The time for it is limited, however it trickles in.
    async fn read_message(&mut self, handshake: &Handshake, input: &mut Vec<u8>, stop: &Stop) -> io::Result<bool> {
        let started = handshake.wanted(input);
        let limit = self.server.options.limits.handshake_timeout;
        let socket = &mut *self.input;
        let read = async {
            // What `wanted` says is a lower bound while the length of the data is unknown: twice is enough.
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
            let limit = self.server.options.limits.handshake_timeout;
            let write = async { self.output.write_all(out).await.map(|()| true) };
            if !within(limit, write, stop).await? {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the server stops"));
            }
            out.clear();
        }
        Ok(())
    }

    async fn list(&self, handshake: &Handshake, out: &mut Vec<u8>) {
        match flat(caught(self.top.list_exports(self.server.options.readonly)).await) {
            Ok(exports) => handshake.list(&exports, out),
            Err(error) => {
                tracing::error!("connection {}: list_exports: {error}", self.id);
                handshake.cannot_list(error.context().unwrap_or("the exports cannot be listed"), out);
            }
        }
    }

    async fn open(&self, opening: &Opening) -> Result<(Arc<Hop>, Export), Error> {
        let readonly = self.server.options.readonly;
        let hop = flat(caught(self.top.open(readonly, &opening.name)).await)?;
        let name = match opening.name.as_str() {
            "" if opening.wants_name => flat(caught(self.top.default_export(readonly)).await).ok(),
            name => Some(name.to_string()),
        };
        let mut can = hop.can();
        can.multi_conn &= self.server.options.multi_conn;
        let export = Export {
            size: hop.size(),
            can,
            name,
            description: hop.description().map(str::to_string),
            block_sizes: hop.block_sizes(),
        };
        Ok((hop, export))
    }
}

/// Waits for the client, for a limited time and not beyond the server's end (then false).
async fn within(limit: Duration, wait: impl Future<Output = io::Result<bool>>, stop: &Stop) -> io::Result<bool> {
    tokio::select! {
        answer = timeout(limit, wait) => match answer {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes too long")),
        },
        () = stop.stopped() => Ok(false),
    }
}
