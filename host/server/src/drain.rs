//! The end of a server: waits for its connections, but not for ever.
//!
//! In order:
//!
//! 1. At once: guests no longer wait (sleep, locks, places), and nothing new is accepted or read.
//! 2. After [`stop_grace`](super::options::ServerLimits::stop_grace): each connection says that its
//!    client has gone, so filters give up what they wait for, and drops replies that its client
//!    does not take ([`transmission`](super::transmission)). The plugin ends operations that only
//!    read.
//! 3. After [`stop_timeout`](super::options::ServerLimits::stop_timeout) without a write of the
//!    plugin: the rest is given up. A write that is under way is waited for, up to
//!    [`drain_timeout`](super::options::ServerLimits::drain_timeout).

use std::time::Duration;

use rbdkit_chain::WriteWatch;
use rbdkit_plugin_api::StopScope;
use tokio::time::{Instant, sleep, timeout};

use super::state::{MAX_STRAY_CALLS, ServerState};

/// How often to check whether the plugin still writes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits for every connection to close, and for calls and writes that go on without one. The chain
/// was told of the stop at `began`.
pub(super) async fn drain(server: &ServerState, began: Instant) {
    let limits = &server.options.limits;
    if timeout(limits.stop_grace, all_closed(server)).await.is_ok() {
        return;
    }
    server.chain.abandon(StopScope::Reads);
    tokio::select! {
        biased;
        () = all_closed(server) => return,
        () = until_hopeless(server, began) => {}
    }
    let open = limits.connections - server.connection_permits.available_permits();
    tracing::warn!("{open} connections do not end: the server ends without them");
    server.chain.abandon(StopScope::Everything);
}

/// Waits for every connection to close, and for every call and write without one to end.
async fn all_closed(server: &ServerState) {
    // Within 32 bits: see `ServerLimits::raised`.
    let connections = server.connection_permits.acquire_many(server.options.limits.connections as u32).await;
    let strays = server.stray_permits.acquire_many(MAX_STRAY_CALLS as u32).await;
    while server.chain.writes().is_under_way() {
        sleep(POLL_INTERVAL).await;
    }
    drop((connections, strays));
}

/// Returns once nothing suggests that the connections will end.
async fn until_hopeless(server: &ServerState, began: Instant) {
    let limits = &server.options.limits;
    let mut watch = WriteWatch::new(server.chain.writes());
    loop {
        let last_write = watch.last_write().unwrap_or(began);
        let now = Instant::now();
        if now - began >= limits.drain_timeout || now - last_write >= limits.stop_timeout {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}
