//! Accepts clients and starts a connection for each.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{Client, Peer};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::connection;
use super::connections::Entry;
use super::peer::{Process, credentials, security_context};
use super::socket::{Input, Output, socket, watched};
use super::state::ServerState;
use super::stop::Stop;
use super::vsock::VsockAddress;

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// An AF_VSOCK socket.
    Vsock(OwnedFd),
}

/// How long to wait after an error of `accept` that the client did not cause, such as a lack of
/// file descriptors. A connection that closes ends the wait early, because it frees descriptors.
/// The limit of 1 s is for descriptors that other processes free.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Accepts clients until the server stops. Then it closes the listener.
pub(super) async fn accept(server: Arc<ServerState>, listener: Listener, stop: Stop) {
    let listener = match listener {
        Listener::Unix(listener) => OwnedFd::from(listener),
        Listener::Tcp(listener) => OwnedFd::from(listener),
        Listener::Vsock(listener) => listener,
    };
    let prepared = rustix::io::ioctl_fionbio(&listener, true).map_err(io::Error::from);
    let listener = match prepared.and_then(|()| watched(listener, Interest::READABLE)) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("a socket cannot be served: {error}"),
    };
    tokio::select! {
        () = stop.stopped() => {}
        () = accept_all(&server, &listener, &stop) => {}
    }
}

async fn accept_all(server: &Arc<ServerState>, listener: &AsyncFd<OwnedFd>, stop: &Stop) {
    let mut reported = false;
    loop {
        let accepted = listener.async_io(Interest::READABLE, |listener| accept_one(listener.as_fd())).await;
        match accepted.and_then(|(socket, peer)| prepare(socket, peer, server.options.keepalive)) {
            Ok((socket, peer, process)) => {
                reported = false;
                enter(server, socket, server.new_client(peer, process), stop);
            }
            Err(error) if is_the_clients(&error) => tracing::debug!("a client left before it was accepted: {error}"),
            Err(error) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::error!("clients cannot be accepted for now: {error}");
                }
                let _ = tokio::time::timeout(RETRY_INTERVAL, server.connection_closed.notified()).await;
            }
        }
    }
}

/// Serves a client, at once or when there is a place for it.
fn enter(server: &Arc<ServerState>, socket: (Input, Output), client: Arc<Client>, stop: &Stop) {
    let entry = server.connections.enter(&client, socket.1.fd());
    let (server, stop) = (Arc::clone(server), stop.clone());
    match entry {
        Entry::Now(place) => {
            tokio::spawn(connection::serve(server, socket, client, place, stop));
        }
        Entry::Later(place) => {
            tracing::debug!("connection {}: waits until another one closes", client.id);
            tokio::spawn(async move {
                let place = tokio::select! {
                    place = place => place,
                    () = stop.stopped() => return,
                };
                if let Ok(place) = place {
                    connection::serve(server, socket, client, place, stop).await;
                }
            });
        }
        Entry::Refused => {
            if let Some(dropped) = server.refused_log.admit() {
                let more =
                    if dropped > 0 { format!(" ({dropped} more since the last message)") } else { String::new() };
                let (id, limit) = (client.id, server.max_connections);
                tracing::warn!("connection {id}: refused: its peer has its share of {limit} connections{more}");
            }
        }
    }
}

/// Whether the client left before it was accepted. Then the next client may be fine.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | NotConnected)
}

fn accept_one(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    Ok(rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

type Prepared = ((Input, Output), Peer, Process);

fn prepare(socket: OwnedFd, address: Option<SocketAddrAny>, keepalive: bool) -> io::Result<Prepared> {
    let ip = address.as_ref().and_then(|address| SocketAddr::try_from(address.clone()).ok());
    let vsock = address.as_ref().and_then(VsockAddress::of);
    if keepalive {
        sockopt::set_socket_keepalive(&socket, true)?;
    }
    let (peer, process) = match (ip, vsock, address.map(|address| address.address_family())) {
        (Some(ip), ..) => {
            // Replies are written in batches already; waiting for more would only delay them.
            sockopt::set_tcp_nodelay(&socket, true)?;
            (Peer::Ip(ip), Process::default())
        }
        (_, Some(VsockAddress { cid, port }), _) => (Peer::Vsock { cid, port }, Process::default()),
        (_, _, Some(AddressFamily::UNIX)) => {
            (Peer::Unix, Process { credentials: credentials(&socket), security_context: security_context(&socket) })
        }
        _ => (Peer::Unknown, Process::default()),
    };
    Ok((self::socket(socket)?, peer, process))
}
