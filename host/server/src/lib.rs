//! The server: sockets, connections and their requests, draining and shutdown.
//!
//! A connection is one task. It reads what one `read` returns, takes all complete requests out of
//! it and runs each of them at once, in the same task. It collects the replies of operations that
//! complete without waiting and writes them together, payloads straight from their buffers. An
//! operation that has to wait becomes a task, which queues its reply when it ends. No lock is held
//! during a system call. An operation is polled to its end, whatever happens to its client.
//!
//! A client that keeps sending gets a thread of its own, which runs the same code
//! ([`client_thread`]).
//!
//! # Limits on what is in flight
//!
//! A request counts from before its buffer is taken until its reply is written: one request towards
//! [`ServerLimits::requests_per_connection`], its payload towards
//! [`ServerLimits::bytes_per_connection`] and [`ServerLimits::bytes_in_all`]. At a limit the server
//! reads nothing more from the connection. So a client that sends and does not read its replies is
//! stopped.
//!
//! No request waits for ever at the limits:
//!
//! * A request takes all its bytes at once, before it does anything. So no request that holds bytes
//!   waits for more.
//! * A request that holds bytes does not need the connection's task. While that task waits for
//!   room, other tasks run the operations and write the replies.
//! * Every limit lets the largest request through when nothing else is in flight (a smaller
//!   [`ServerLimits`] is raised to that).
//! * Each connection has a first share of the bytes, for which it never waits ([`budget`]). Of the
//!   connections that wait for more, the one that would hold the least comes first.
//! * A client may hold bytes and do nothing: it sent half a payload, or does not read its replies.
//!   It may do so as long as no other request needs the bytes. When one waits for bytes, the server
//!   disconnects a client that has made too little progress for [`ServerLimits::stall_timeout`]
//!   ([`stall`]).
//!
//! A client with nothing in flight costs a task of a few KiB, because connections share their
//! receive buffers ([`receive`]). The server frees what a burst leaves behind when the burst is
//! over ([`trim`]).
//!
//! # The end of a connection
//!
//! After the client has left, or when the server stops, the server reads nothing more. Operations
//! in flight run to their end, for a limited time when the server stops ([`drain`]). Once the
//! client is gone, layers that only wait may end an operation early
//! ([`Client::set_gone`](rbdkit_plugin_api::Client::set_gone)). A client that closes its side
//! without NBD_CMD_DISC is gone at once. After NBD_CMD_DISC it is gone only if operations still run
//! [`ServerLimits::reply_timeout`] after it closed its side. The server writes replies as long as
//! the client takes them. Then it finalizes and closes the layers, and then the socket.

mod accept;
mod admission;
mod attended;
mod budget;
mod client_thread;
mod connection;
mod connections;
mod dispatch;
mod drain;
mod end;
mod failure_log;
mod limit_options;
mod lists;
mod negotiation;
mod options;
mod panics;
mod peer;
mod receive;
mod reply_queue;
mod requests;
mod socket;
mod spin;
mod stall;
mod state;
mod stop;
mod thread_permits;
mod tls;
mod transmission;
mod trim;
mod vsock;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rbdkit_chain::Chain;
use rbdkit_plugin_api::{Peer, Usage};

pub use accept::Listener;
pub use limit_options::connections_for;
pub use options::{ServerLimits, ServerOptions, TlsOptions};
pub use stop::Stop;
pub use vsock::VsockAddress;

use connections::Entry;
use state::ServerState;
use tokio::time::Instant;

/// Serves a chain to clients.
pub struct Server {
    state: Arc<ServerState>,
}

impl Server {
    /// A server that does not serve yet.
    pub fn new(chain: Arc<Chain>, options: ServerOptions) -> Server {
        Server { state: Arc::new(ServerState::new(chain, options)) }
    }

    /// What the server and its layers use of their limits.
    pub fn usage(&self) -> Vec<Usage> {
        self.state.usage()
    }

    /// Accepts and serves clients until `stop`. Returns when all connections are closed, or when
    /// those that are left do not end ([`drain`]).
    pub async fn serve(&self, listeners: Vec<Listener>, stop: Stop) {
        let mut accepting = Vec::new();
        for listener in listeners {
            accepting.push(tokio::spawn(accept::accept(Arc::clone(&self.state), listener, stop.clone())));
        }
        let began = self.serve_until(&stop).await;
        for task in accepting {
            // It ends by itself. A panic in it was reported and must not keep the rest from
            // draining.
            let _ = task.await;
        }
        drain::drain(&self.state, began).await;
    }

    /// Serves one client (`-s`). Returns when the client has left and its export is closed, or some
    /// time after `stop`, as [`Server::serve`] does.
    pub async fn serve_one(&self, input: OwnedFd, output: OwnedFd, stop: Stop) {
        let socket = match socket::pair(input, output) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!("standard input or output cannot be served: {error}"),
        };
        let client = self.state.new_client(Peer::Unknown, peer::Process::default());
        let Entry::Now(place) = self.state.connections.enter(&client, socket.1.fd()) else { return };
        let served = tokio::spawn(connection::serve(Arc::clone(&self.state), socket, client, place, stop.clone()));
        tokio::select! {
            _ = served => {}
            () = async { drain::drain(&self.state, self.serve_until(&stop).await).await } => {}
        }
    }

    /// Returns when the server is stopped, and tells the chain. Until then it frees unused memory.
    async fn serve_until(&self, stop: &Stop) -> Instant {
        tokio::select! {
            () = stop.stopped() => {}
            () = trim::run(&self.state) => {}
        }
        self.state.chain.begin_stop();
        Instant::now()
    }
}

#[cfg(test)]
mod tests;
