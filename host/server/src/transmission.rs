//! The transmission phase of one connection, from its first request to its last reply.
//!
//! [`RequestReader`] reads and dispatches requests, in this task or on a thread of its own. When it
//! returns, nothing more is read. Operations in flight run to their end, and their replies are
//! written as long as the client takes them.

use std::sync::Arc;

use rbdkit_chain::Hop;
use rbdkit_nbd::Session;
use rbdkit_plugin_api::Client;
use tokio::time::Instant;

use super::admission::Admission;
use super::budget::ConnectionBudget;
use super::client_thread;
use super::dispatch::Dispatcher;
use super::end::EndReason;
use super::options::ServerLimits;
use super::reply_queue::ReplyQueue;
use super::requests::{HandOver, RequestReader};
use super::socket::{Input, Output};
use super::state::ServerState;
use super::stop::Stop;

/// Serves requests until the client leaves or the server stops, and waits until nothing is in
/// flight.
pub(super) async fn serve(
    server: &Arc<ServerState>,
    input: Input,
    output: Arc<Output>,
    client: Arc<Client>,
    hop: Arc<Hop>,
    session: Session,
    stop: Stop,
) {
    let activity = Arc::clone(server.chain.pool().activity());
    let stall = server.options.limits.stall_timeout;
    let budget = ConnectionBudget::new(&server.budget);
    let replies = Arc::new(ReplyQueue::new(output, budget, activity, stall));
    let dispatcher = Arc::new(Dispatcher::new(hop, session, replies, Arc::clone(&client)));
    let Some((mut reader, end)) = read_all(RequestReader::new(server, input, dispatcher, stop.clone())).await else {
        return;
    };
    reader.flush();
    tracing::debug!("connection {}: {end:?}", client.id);
    let RequestReader { dispatcher, admission, input, .. } = &reader;
    let limits = &server.options.limits;
    let settle = async {
        match end {
            EndReason::Disconnect => wait_after_disconnect(dispatcher, input, limits, &stop).await,
            EndReason::Stop | EndReason::Dismissed => wait_for_answers(dispatcher, input, limits, &stop).await,
            EndReason::Gone | EndReason::Unwanted => client.set_gone(),
            EndReason::Violation(what) => {
                tracing::warn!("connection {}: closed: {what}", client.id);
                client.set_gone();
            }
        }
        drain(dispatcher, admission, limits, &stop).await;
    };
    tokio::pin!(settle);
    tokio::select! {
        biased;
        () = &mut settle => {}
        () = client.until_cut() => {
            client.set_gone();
            dispatcher.replies.break_off();
            settle.await;
        }
    }
    client.set_gone();
}

/// Reads all requests, alternately in this task and on a thread. Never returns None (see
/// [`client_thread::read_requests`]).
async fn read_all(mut reader: RequestReader) -> Option<(RequestReader, EndReason)> {
    loop {
        match reader.read_requests().await {
            HandOver::End(end) => return Some((reader, end)),
            HandOver::ToRuntime => {}
            HandOver::ToThread(permit) => match client_thread::read_requests(reader, permit).await? {
                (reader, HandOver::End(end)) => return Some((reader, end)),
                (back, _) => reader = back,
            },
        }
    }
}

/// Waits for the operations of a client that sent NBD_CMD_DISC and may still want their replies.
/// The client is gone if operations still run [`reply_timeout`](super::options::ServerLimits) after
/// it closed its side, or [`stop_grace`](super::options::ServerLimits) after the server stopped.
async fn wait_after_disconnect(dispatcher: &Dispatcher, input: &Input, limits: &ServerLimits, stop: &Stop) {
    let closed = async {
        input.until_closed().await;
        tokio::time::sleep(limits.reply_timeout).await;
    };
    tokio::select! {
        biased;
        () = dispatcher.until_idle() => return,
        () = closed => {}
        () = stop.stopped_for(limits.stop_grace) => {}
    }
    dispatcher.client.set_gone();
}

/// Waits for the operations of a client when the server stops, or when a layer ends the connection
/// after the answers. The client is gone if it leaves, or if operations still run
/// [`stop_grace`](super::options::ServerLimits) after the server stopped.
async fn wait_for_answers(dispatcher: &Dispatcher, input: &Input, limits: &ServerLimits, stop: &Stop) {
    tokio::select! {
        biased;
        () = dispatcher.until_idle() => return,
        () = input.until_gone() => {}
        () = stop.stopped_for(limits.stop_grace) => {}
    }
    dispatcher.client.set_gone();
}

/// Waits until every operation has ended, however long that takes, and every reply is written. A
/// client gets no more replies if it takes none for
/// [`reply_timeout`](super::options::ServerLimits), or if it has not taken all of them
/// [`stop_grace`](super::options::ServerLimits) after the server stopped.
async fn drain(dispatcher: &Dispatcher, admission: &Admission, limits: &ServerLimits, stop: &Stop) {
    let replies = &dispatcher.replies;
    dispatcher.until_idle().await;
    let mut written = replies.written();
    let mut since = Instant::now();
    let stopped = stop.stopped_for(limits.stop_grace);
    tokio::pin!(stopped);
    while admission.in_flight() > 0 {
        let none_left = replies.until(|| admission.in_flight() == 0);
        let stopping = tokio::select! {
            biased;
            _ = tokio::time::timeout_at(since + limits.reply_timeout, none_left) => false,
            () = &mut stopped, if !replies.is_broken() => true,
        };
        if replies.written() != written && !stopping {
            (written, since) = (replies.written(), Instant::now());
        } else if (stopping || since.elapsed() >= limits.reply_timeout) && !replies.is_broken() {
            tracing::debug!("connection {}: the client does not take its replies", dispatcher.client.id);
            replies.break_off();
            since = Instant::now();
        }
    }
}
