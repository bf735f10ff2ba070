//! The life of one connection: preconnect, handshake, transmission, finalize and close.

use std::sync::Arc;

use rbdkit_plugin_api::{Client, Peer};
use tokio::time::Instant;

use super::attended::{Attendant, Attended};
use super::connections::Place;
use super::negotiation::{Negotiation, close};
use super::panics::caught;
use super::socket::{Input, Output};
use super::state::ServerState;
use super::stop::Stop;
use super::transmission;

/// Serves a client until it is gone and everything that it opened is closed. Then it gives back its
/// place.
pub(super) async fn serve(
    server: Arc<ServerState>,
    socket: (Input, Output),
    client: Arc<Client>,
    place: Place,
    stop: Stop,
) {
    // There is one for each place.
    let permit = Arc::clone(&server.connection_permits).acquire_owned().await;
    serve_client(&server, socket, client, stop).await;
    drop((permit, place));
    server.connection_closed.notify_one();
    // A connection has memory besides its buffers, which may be freed later.
    server.chain.pool().activity().signal();
}

async fn serve_client(server: &Arc<ServerState>, socket: (Input, Output), client: Arc<Client>, stop: Stop) {
    let (mut input, output) = socket;
    let id = client.id;
    tracing::debug!("connection {id}: {:?} credentials {:?}", client.peer, client.credentials);
    let top = server.chain.top(Arc::clone(&client));
    let attendant = Attendant { server, input: &input, client: &client, stop: &stop, deadline: None };
    let (admitting, readonly) = (top.clone(), server.options.readonly);
    let preconnect = async move { caught(admitting.preconnect(readonly)).await.and_then(|result| result) };
    match attendant.attend(Box::pin(preconnect), |_| async {}).await {
        Attended::Answer(Ok(())) if client.is_disconnect_requested() => {
            tracing::debug!("connection {id}: preconnect: a filter ended it");
            return;
        }
        Attended::Answer(Ok(())) => {}
        Attended::Answer(Err(error)) => {
            tracing::error!("connection {id}: preconnect: {error}");
            return;
        }
        left @ (Attended::Gone | Attended::Stop | Attended::TooLate) => {
            tracing::debug!("connection {id}: preconnect: {left:?}");
            return;
        }
    }
    // In a box, so that the state of the negotiation is freed before requests are served.
    let deadline = server.options.limits.negotiation_timeout.and_then(|limit| Instant::now().checked_add(limit));
    let negotiation = Negotiation {
        server,
        input: &mut input,
        output: &output,
        top: &top,
        client: &client,
        id,
        room: None,
        deadline,
    };
    let negotiated = Box::pin(negotiation.run(&stop)).await;
    // Opening took instances of filters, and the next request may come much later.
    server.chain.pool().activity().signal();
    match negotiated {
        Ok(Some((hop, session))) => {
            tracing::debug!(
                "connection {id}: size {} replies {:?} base:allocation {}",
                session.size,
                session.reply_format,
                session.base_allocation
            );
            if client.peer == Peer::Unix {
                output.widen_send_buffer();
            }
            let output = Arc::new(output);
            let (client, for_transmission) = (Arc::clone(&client), Arc::clone(&hop));
            transmission::serve(server, input, Arc::clone(&output), client, for_transmission, session, stop).await;
            close(&hop, id).await;
            // The socket is closed only after every layer has finished its work.
            drop(output);
        }
        Ok(None) => {}
        Err(error) => tracing::debug!("connection {id}: handshake: {error}"),
    }
    client.set_gone();
    tracing::debug!("connection {id}: closed");
}
