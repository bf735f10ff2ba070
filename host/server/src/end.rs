//! Why the requests of a connection end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use rbdkit_nbd::Violation;
use rbdkit_plugin_api::Client;

use super::stop::Stop;

/// Why the server reads no more requests from a client.
#[derive(Debug)]
pub(super) enum EndReason {
    /// The client sent NBD_CMD_DISC.
    Disconnect,
    /// The client closed its side without NBD_CMD_DISC, or reading from it failed.
    Gone,
    /// The client broke the protocol, or it holds bytes that others need.
    Violation(String),
    /// The server stops.
    Stop,
    /// A layer disconnects the client ([`Client::disconnect`]).
    Unwanted,
    /// A layer ends the connection, and the requests under way are answered
    /// ([`Ending::AfterAnswers`](rbdkit_plugin_api::Ending)).
    Dismissed,
}

impl From<Violation> for EndReason {
    fn from(violation: Violation) -> EndReason {
        EndReason::Violation(violation.to_string())
    }
}

/// The result of a read from the client; an error ends the connection.
pub(super) fn or_gone<T>(read: io::Result<T>) -> Result<T, EndReason> {
    read.map_err(|error| {
        tracing::debug!("reading from the client: {error}");
        EndReason::Gone
    })
}

/// Completes when the server stops or a layer disconnects the client.
pub(super) type EndSignal = Pin<Box<dyn Future<Output = EndReason> + Send>>;

/// The signal for one connection.
pub(super) fn end_signal(stop: Stop, client: Arc<Client>) -> EndSignal {
    Box::pin(async move {
        tokio::select! {
            biased;
            () = stop.stopped() => EndReason::Stop,
            () = client.until_disconnect_requested() => disconnected(&client),
        }
    })
}

/// Why a connection ends that a layer wants to end.
pub(super) fn disconnected(client: &Client) -> EndReason {
    if client.ends_after_answers() { EndReason::Dismissed } else { EndReason::Unwanted }
}
