//! Sockets, connections and their requests, drain and shutdown.
//!
//! A connection is one task. It reads what one `read` brings, takes all complete requests out of it and runs each at once, in the same
//! task; answers of what completes without waiting are collected and written together, payloads straight from their buffers. An
//! operation that has to wait becomes a task of its own, which appends its answer when it ends. Nothing is locked over a system call,
//! and an operation is polled to its end whatever becomes of its client.
//!
//! # What is in flight is bounded
//!
//! A request counts from before its buffer is taken until its answer has been written: one towards
//! [`Limits::requests_per_connection`], its payload towards [`Limits::bytes_per_connection`] and [`Limits::bytes_in_all`]. At a ceiling the
//! connection reads nothing more, so a client that sends and does not read its answers stops there.
//!
//! Nobody waits for ever at the ceilings:
//!
//! * A request takes all its bytes at once, before it does anything, so none waits for more while it holds some.
//! * What holds bytes does not need the connection's task: operations run and answers are written by tasks of their own
//!   while it waits for room.
//! * Every ceiling lets the largest request through when nothing else is in flight ([`Limits`] are raised to that).
//! * Room is given in the order in which it was asked for.
//! * That leaves clients that hold bytes and do nothing: half a payload sent, or answers not read. They may, as long as nobody else
//!   needs the bytes; when somebody waits for them, a client that has not moved for [`Limits::stall_timeout`] is disconnected.
//!
//! A client that has nothing in flight costs a task of a few KiB: receive buffers are shared ([`receive`]). What a burst leaves behind is given back
//! when it is over ([`spare`]).
//!
//! # The end of a connection
//!
//! After the client has left (or the server stops) nothing more is read. Operations in flight run to their end, which layers that only wait may
//! bring nearer once the client has gone ([`Client::set_gone`]); answers are written as long as the client takes them. A client has gone when it has closed
//! its side without a good-bye, and after one when operations still go on long after it has closed. Then the layers are finalized and closed, then the socket. A panic in a layer is the
//! failure (EIO) of the request that it happened in.

mod answers;
mod budget;
mod complaints;
mod connection;
mod guard;
mod listen;
mod receive;
mod socket;
mod spare;
mod stop;
mod transmission;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rbdkit_plugin_api::{Client, MAX_REQUEST, Peer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub use stop::Stop;

use budget::Budget;
use rbdkit_chain::Chain;
use receive::ReceivePool;
use socket::{Input, Output};

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// `-r`: no layer is opened for writing.
    pub readonly: bool,
    /// Structured replies for clients that ask; `--no-sr` clears it.
    pub structured_replies: bool,
    /// Multi-conn where the layers have it; `--no-mc` clears it.
    pub multi_conn: bool,
    /// `--mask-handshake`: the handshake flags that may be offered.
    pub handshake_mask: Option<u16>,
    /// Ceilings and times.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            readonly: false,
            structured_replies: true,
            multi_conn: true,
            handshake_mask: None,
            limits: Limits::default(),
        }
    }
}

/// Ceilings and times. Impossible values are raised to the least that works: one request, [`MAX_REQUEST`] bytes, one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests of one connection in flight (`-t`). nbdkit has 16, one thread each. Here a request in flight costs no thread, so the
    /// default of 256 is twice the depth of the deepest clients (128), which then never wait for a place.
    pub requests_per_connection: usize,
    /// Payload bytes of one connection in flight. The default, 128 MiB, is two of the largest requests: one is received or done while
    /// the other's answer is written.
    pub bytes_per_connection: u64,
    /// Payload bytes of all connections in flight. The default, 512 MiB, is four connections at their own ceiling, or 128 requests
    /// of 4 MiB, beyond what a disk or a network has use for.
    pub bytes_in_all: u64,
    /// Clients at a time; further ones wait to be accepted. The default, 4096, keeps idle clients under 64 MiB at some 10 KiB each.
    pub connections: usize,
    /// For each message of the handshake to be complete, and each answer to it to be taken. The default, 60 s, is for people who type.
    pub handshake_timeout: Duration,
    /// How long a client may sit on bytes that others wait for. The default, 10 s, is beyond any hiccup of a network that TCP survives
    /// without the user noticing.
    pub stall_timeout: Duration,
    /// How long a client that leaves, or that the server leaves, may take none of its last answers. Default 10 s.
    pub answer_timeout: Duration,
    /// How often it is looked for what nobody has needed since and can be given back, while something goes on. Default 5 s ([`spare`]).
    pub look_period: Duration,
    /// How long a stopping server waits for its connections in all. Default 30 s: longer than [`Limits::answer_timeout`] and
    /// shorter than what service managers grant (90 s).
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests_per_connection: 256,
            bytes_per_connection: 128 << 20,
            bytes_in_all: 512 << 20,
            connections: 4096,
            handshake_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            look_period: spare::PERIOD,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn raised(mut self) -> Limits {
        self.requests_per_connection = self.requests_per_connection.max(1);
        self.bytes_per_connection = self.bytes_per_connection.max(MAX_REQUEST.into());
        self.bytes_in_all = self.bytes_in_all.max(MAX_REQUEST.into());
        // A client that is alone waits at its own ceiling. At the server's it would count as one that keeps others waiting: itself.
        self.bytes_per_connection = self.bytes_per_connection.min(self.bytes_in_all);
        self.connections = self.connections.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        self
    }
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
    /// A TCP socket.
    Tcp(std::net::TcpListener),
}

/// Serves the chain to clients.
pub struct Server {
    chain: Arc<Chain>,
    options: Options,
    budget: Arc<Budget>,
    receive_pool: ReceivePool,
    /// A place for each client.
    places: Arc<Semaphore>,
    /// One for each busy client.
    threads: Arc<Semaphore>,
    next_id: AtomicU64,
    /// A connection has closed: there may be file descriptors again.
    closed: Notify,
}

impl Server {
    /// Not serving yet.
    pub fn new(chain: Arc<Chain>, mut options: Options) -> Arc<Server> {
        options.limits = options.limits.raised();
        let receive_pool = ReceivePool::new(Arc::clone(chain.pool().stir()));
        Arc::new(Server {
            chain,
            budget: Arc::new(Budget::new(options.limits.bytes_in_all)),
            receive_pool,
            places: Arc::new(Semaphore::new(options.limits.connections)),
            threads: Arc::new(Semaphore::new(transmission::MAX_THREADS)),
            next_id: AtomicU64::new(1),
            closed: Notify::new(),
            options,
        })
    }

    /// Accepts clients until it is stopped. Returns when all connections are closed, or after [`Limits::drain_timeout`].
    pub async fn serve(self: &Arc<Self>, listeners: Vec<Listener>, stop: Stop) {
        let mut accepting = Vec::new();
        for listener in listeners {
            accepting.push(tokio::spawn(listen::accept(Arc::clone(self), listener, stop.clone())));
        }
        self.keep_until(&stop).await;
        for task in accepting {
            // It ends by itself; a panic in it has been reported and must not keep the rest from draining.
            let _ = task.await;
        }
        self.drained().await;
    }

    /// Serves one client (`-s`). Returns when it has left or the server was stopped, its export closed.
    pub async fn serve_one(self: &Arc<Self>, input: OwnedFd, output: OwnedFd, stop: Stop) {
        let socket = match socket::pair(input, output) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!("standard input or output cannot be served: {error}"),
        };
        let client = self.client(Peer::Unknown, None);
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
        let served = tokio::spawn(self.clone().connection(socket, client, place, stop.clone()));
        tokio::select! {
            _ = served => {}
            () = async { self.keep_until(&stop).await; self.drained().await } => {}
        }
    }

    /// Returns when the server is stopped, and gives back until then what it does not need.
    async fn keep_until(self: &Arc<Self>, stop: &Stop) {
        tokio::select! {
            () = stop.stopped() => {}
            () = self.give_back() => {}
        }
    }

    fn client(&self, peer: Peer, credentials: Option<(i64, i64, i64)>) -> Arc<Client> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Client::new(id, peer, credentials, false))
    }

    async fn connection(
        self: Arc<Self>,
        socket: (Input, Output),
        client: Arc<Client>,
        place: OwnedSemaphorePermit,
        stop: Stop,
    ) {
        connection::serve(Arc::clone(&self), socket, client, stop).await;
        drop(place);
        self.closed.notify_one();
        // It had memory besides buffers.
        self.chain.pool().stir().stir();
    }

    /// Waits for every connection to close.
    async fn drained(&self) {
        let limits = &self.options.limits;
        // Within 32 bits: see `Limits::raised`.
        let all = self.places.acquire_many(limits.connections as u32);
        if tokio::time::timeout(limits.drain_timeout, all).await.is_err() {
            let open = limits.connections - self.places.available_permits();
            tracing::warn!("{open} connections are not closed after {:?}", limits.drain_timeout);
        }
    }
}

#[cfg(test)]
mod tests;
