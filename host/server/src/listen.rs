//! Accepting clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::Peer;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::{Input, Output, socket, watched};
use super::{Listener, Server, Stop};

/// After an error of `accept` that is not the client's: a connection that closes ends the wait at once; this is for when
/// what is missing is held by somebody else.
const RETRY: Duration = Duration::from_secs(1);

/// Accepts clients until the server stops. The listener is closed then.
pub(super) async fn accept(server: Arc<Server>, listener: Listener, stop: Stop) {
    let listener = match listener {
        Listener::Unix(listener) => OwnedFd::from(listener),
        Listener::Tcp(listener) => OwnedFd::from(listener),
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

async fn accept_all(server: &Arc<Server>, listener: &AsyncFd<OwnedFd>, stop: &Stop) {
    let mut complained = false;
    loop {
        // First a place, then the client: who finds none waits in the listener's queue.
        let Ok(place) = Arc::clone(&server.places).acquire_owned().await else { return };
        let accepted = listener.async_io(Interest::READABLE, |listener| accept_one(listener.as_fd())).await;
        match accepted.and_then(|(socket, peer)| prepare(socket, peer)) {
            Ok((socket, peer, credentials)) => {
                complained = false;
                let client = server.client(peer, credentials);
                tokio::spawn(Arc::clone(server).connection(socket, client, place, stop.clone()));
            }
            Err(error) if is_the_clients(&error) => tracing::debug!("a client that did not stay: {error}"),
            Err(error) => {
                drop(place);
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!("clients cannot be accepted for now: {error}");
                }
                let _ = tokio::time::timeout(RETRY, server.closed.notified()).await;
            }
        }
    }
}

/// It left before it was accepted; the next may be fine.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | NotConnected)
}

fn accept_one(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    Ok(rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// What a Unix socket should hold of answers, in bytes. The default (208 KiB) does not take one answer of 256 KiB, so that each costs
/// a wait for the client in its middle. TCP sockets are left to the kernel, which adapts them.
const SEND_BUFFER: usize = 1 << 20;

/// Beyond the system's ceiling if we may. Not being allowed either is no reason to turn a client away.
fn widen(socket: &OwnedFd) {
    if sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER);
    }
}

type Prepared = ((Input, Output), Peer, Option<(i64, i64, i64)>);

fn prepare(socket: OwnedFd, address: Option<SocketAddrAny>) -> io::Result<Prepared> {
    let ip = address.as_ref().and_then(|address| SocketAddr::try_from(address.clone()).ok());
    let (peer, credentials) = match (ip, address.map(|address| address.address_family())) {
        (Some(ip), _) => {
            // Answers are written in batches already; waiting for more would only delay them.
            sockopt::set_tcp_nodelay(&socket, true)?;
            (Peer::Ip(ip), None)
        }
        (None, Some(AddressFamily::UNIX)) => {
            widen(&socket);
            let credentials = sockopt::socket_peercred(&socket).ok().map(|peer| {
                let pid = i64::from(peer.pid.as_raw_pid());
                (pid, i64::from(peer.uid.as_raw()), i64::from(peer.gid.as_raw()))
            });
            (Peer::Unix, credentials)
        }
        _ => (Peer::Unknown, None),
    };
    Ok((self::socket(socket)?, peer, credentials))
}
