//! Calls of the chain during the handshake: preconnect, list and open.
//!
//! The server watches the client while such a call waits. If the client leaves, its place is given
//! back at once, and the call goes on in a task of its own: a plugin completes what it began. What
//! the call opened is closed again. The server does the same with a call that has not ended when
//! the server stops.

use std::sync::Arc;

use rbdkit_plugin_api::{BoxFuture, Client};
use tokio::time::Instant;

use super::socket::Input;
use super::state::ServerState;
use super::stop::Stop;

/// How a call ended for its client.
#[derive(Debug)]
pub(super) enum Attended<T> {
    Answer(T),
    /// The client has left, or a layer ended the connection at once.
    Gone,
    /// The server stops.
    Stop,
    /// The time for the negotiation is over.
    TooLate,
}

/// What a call in the handshake needs.
#[derive(Clone, Copy)]
pub(super) struct Attendant<'a> {
    pub server: &'a ServerState,
    pub input: &'a Input,
    pub client: &'a Client,
    pub stop: &'a Stop,
    /// When the client has to have negotiated.
    pub deadline: Option<Instant>,
}

/// Returns at this time, if there is one.
pub(super) async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Attendant<'_> {
    /// Waits for a call while the client is there and the server does not stop. `discard` undoes
    /// what a call did whose client does not wait for it any more.
    pub async fn attend<T: Send + 'static, D: Future<Output = ()> + Send>(
        self,
        mut call: BoxFuture<'static, T>,
        discard: impl FnOnce(T) -> D + Send + 'static,
    ) -> Attended<T> {
        let ended = tokio::select! {
            biased;
            answer = &mut call => return Attended::Answer(answer),
            () = self.stop.stopped() => Attended::Stop,
            () = self.input.until_gone() => Attended::Gone,
            () = self.client.until_cut() => Attended::Gone,
            () = expired(self.deadline) => Attended::TooLate,
        };
        self.client.set_gone();
        match Arc::clone(&self.server.stray_permits).try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(async move {
                discard(call.await).await;
                drop(permit);
            })),
            Err(_) => discard(call.await).await,
        }
        ended
    }
}
