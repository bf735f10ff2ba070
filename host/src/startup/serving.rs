//! The one place where starting meets the server.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::listen::Socket;
use crate::cli::Plan;
use rbdkit_chain::Chain;
use rbdkit_server::{Listener, Server, ServerLimits, ServerOptions, Stop};

/// What the plan says of serving, in the server's words.
fn options(plan: &Plan) -> ServerOptions {
    let mut limits = ServerLimits::default();
    if let Some(threads) = plan.threads {
        limits.requests_per_connection = threads as usize;
    }
    if let Some(timeout) = plan.timeout {
        limits.handshake_timeout = timeout;
    }
    ServerOptions {
        readonly: plan.readonly,
        structured_replies: plan.structured_replies,
        multi_conn: plan.multi_conn,
        handshake_mask: plan.handshake_mask,
        limits,
    }
}

/// Serves until it is stopped and drained: one client if `stdio` is there, otherwise those of the sockets.
pub async fn serve(
    plan: &Plan,
    chain: Arc<Chain>,
    sockets: Vec<Socket>,
    stdio: Option<(OwnedFd, OwnedFd)>,
    stop: Stop,
) {
    let server = Server::new(chain, options(plan));
    match stdio {
        Some((input, output)) => server.serve_one(input, output, stop).await,
        None => server.serve(sockets.into_iter().map(listener).collect(), stop).await,
    }
}

fn listener(socket: Socket) -> Listener {
    match socket {
        Socket::Unix(listener) => Listener::Unix(listener),
        Socket::Tcp(listener) => Listener::Tcp(listener),
    }
}
