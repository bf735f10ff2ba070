//! Converts the plan to the server's options, and serves.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rbdkit_chain::Chain;
use rbdkit_plugin_api::{ConfigError, Usage};
use rbdkit_server::{Listener, Server, ServerLimits, ServerOptions, Stop, connections_for};

use super::process;
use crate::cli::{HandshakeStyle, Plan};

/// Serves until it is stopped and all requests are answered: one client on `stdio` if it is given,
/// otherwise the clients of the listeners.
pub async fn serve(
    options: ServerOptions,
    chain: Arc<Chain>,
    listeners: Vec<Listener>,
    stdio: Option<(OwnedFd, OwnedFd)>,
    stop: Stop,
) {
    let server = Server::new(chain, options);
    match stdio {
        Some((input, output)) => server.serve_one(input, output, stop).await,
        None => server.serve(listeners, stop).await,
    }
    for Usage { account, limit, peak, .. } in server.usage() {
        match limit {
            u64::MAX => tracing::debug!("account {account}: at most {peak} were used"),
            _ => tracing::debug!("account {account}: at most {peak} of {limit} were used"),
        }
    }
}

/// The server's options for a plan.
///
/// # Errors
/// One line that says which limit is wrong and what would be right.
pub fn options(plan: &Plan) -> Result<ServerOptions, ConfigError> {
    let mut limits = ServerLimits::default();
    plan.limits.iter().try_for_each(|(resource, value)| limits.set(resource, value))?;
    let possible = connections_for(process::descriptor_limit());
    if limits.connections > possible {
        // The default is more than most servers need, so falling below it is no reason to warn.
        if limits.connections != ServerLimits::default().connections {
            tracing::warn!("{possible} connections instead of {}: see ulimit -n", limits.connections);
        }
        limits.connections = possible;
    }
    if let Some(threads) = plan.threads {
        limits.requests_per_connection = threads as usize;
    }
    if let Some(timeout) = plan.timeout {
        limits.handshake_timeout = timeout;
        limits.negotiation_timeout = Some(timeout);
    }
    Ok(ServerOptions {
        readonly: plan.readonly,
        oldstyle: plan.handshake_style == HandshakeStyle::Oldstyle,
        structured_replies: plan.structured_replies,
        meta_contexts: plan.meta_contexts,
        keepalive: plan.keepalive,
        multi_conn: plan.multi_conn,
        handshake_mask: plan.handshake_mask,
        tls: None,
        limits,
    })
}
