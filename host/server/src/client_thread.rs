//! A thread for a busy client.
//!
//! A client that keeps sending gets a thread of its own, as long as fewer than
//! [`MAX_CLIENT_THREADS`](super::thread_permits::MAX_CLIENT_THREADS) clients have one. The reader
//! runs there. The thread waits for the socket itself, where a task would wait through the runtime.
//! That saves each request two thread switches and the time to put a processor to sleep and wake
//! it. When the client pauses, the thread ends and the connection's task goes on.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::end::EndReason;
use super::panics::caught;
use super::requests::{HandOver, RequestReader};

/// Runs the reader on a thread of its own until its client pauses or leaves. Never returns None,
/// because panics on the thread are caught.
pub(super) async fn read_requests(
    mut reader: RequestReader,
    permit: OwnedSemaphorePermit,
) -> Option<(RequestReader, HandOver)> {
    let runtime = tokio::runtime::Handle::current();
    // The thread gets the reader once it runs. If it cannot be started, the reader is still here.
    let (to_thread, on_thread) = std::sync::mpsc::sync_channel::<RequestReader>(1);
    let (to_task, in_task) = oneshot::channel();
    let work = move || {
        let _permit = permit;
        let Ok(mut reader) = on_thread.recv() else { return };
        reader.wait_as_thread();
        let next = runtime.block_on(caught(reader.read_requests())).unwrap_or_else(|panic| {
            tracing::error!("connection {}: {panic}", reader.client().id);
            HandOver::End(EndReason::Gone)
        });
        reader.wait_as_task();
        let _ = to_task.send((reader, next));
    };
    reader.forget_busy();
    match std::thread::Builder::new().name("rbdkit-client".to_string()).spawn(work) {
        Ok(_) => {
            let _ = to_thread.send(reader);
            in_task.await.ok()
        }
        Err(error) => {
            tracing::debug!("connection {}: cannot start a thread: {error}", reader.client().id);
            Some((reader, HandOver::ToRuntime))
        }
    }
}
