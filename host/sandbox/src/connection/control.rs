//! Serves the control sockets of a filter: commands from programs of the operator, which the filter
//! answers (`on-control`).
//!
//! Each client has one buffer of [`MAX_COMMAND`] bytes and one command under way at most: the host
//! reads from it again when it has taken the answer. With [`MAX_CLIENTS`] clients at once that
//! bounds what a socket takes. All commands of a filter go through one queue, in the order in which
//! they were read, to the task that calls the filter's events.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::text::plain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::commands::MAX_COMMAND;
use super::shared::FilterShared;
use crate::state::ControlSocket;

/// The most clients of one socket at once.
const MAX_CLIENTS: usize = 16;

/// How long a client may take to take an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long to wait after a client could not be accepted, for example because the process has too
/// many descriptors.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves all control sockets of a filter until the server stops. Call it within a runtime.
pub(crate) fn serve(shared: &Arc<FilterShared>) {
    for (param, nth, socket) in shared.files.controls() {
        let Some(listener) = socket.listener() else { continue };
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        match listener {
            Ok(listener) => {
                let (param, socket) = (Arc::from(param), Arc::clone(socket));
                shared.detached_tasks.spawn(accept(Arc::clone(shared), listener, socket, param, nth));
            }
            Err(error) => tracing::error!("{}: {param}: the socket cannot be served: {}", shared.name, plain(&error)),
        }
    }
}

async fn accept(
    shared: Arc<FilterShared>,
    listener: UnixListener,
    socket: Arc<ControlSocket>,
    param: Arc<str>,
    nth: u32,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let refused = |why: &str| {
        if shared.faults.count(why).is_some() {
            tracing::warn!("{}: {param}: {why}", shared.name);
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stopping.wait() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else {
            tokio::select! {
                () = shared.stopping.wait() => break,
                () = tokio::time::sleep(AGAIN) => continue,
            }
        };
        if !client.peer_cred().is_ok_and(|peer| socket.admits(peer.uid())) {
            refused("a client of another user is disconnected");
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refused("a client is disconnected: 16 are connected, and no more are allowed");
            continue;
        };
        let (ours, param) = (Arc::clone(&shared), Arc::clone(&param));
        shared.detached_tasks.spawn(async move {
            let talk = talk(&ours, client, &param, nth);
            tokio::select! {
                biased;
                () = ours.stopping.wait() => {}
                () = talk => {}
            }
            drop(place);
        });
    }
    // No client can connect any more.
    drop(listener);
    socket.remove();
}

/// Passes on what a client sends, until it leaves.
async fn talk(shared: &FilterShared, mut client: UnixStream, param: &Arc<str>, nth: u32) {
    let mut buffer = vec![0; MAX_COMMAND];
    loop {
        let Ok(got @ 1..) = client.read(&mut buffer).await else { return };
        let Some(answer) = shared.commands.ask(param, nth, &buffer[..got]).await else { return };
        match tokio::time::timeout(ANSWER, client.write_all(&answer)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}
