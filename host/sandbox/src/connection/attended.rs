//! A call's wait for the layers below while they open, list or admit.
//!
//! Such an operation has no buffer of the call, and the guest can go on without its answer. So when
//! the client leaves, the guest gets ESHUTDOWN and keeps its instance, and the operation goes on in
//! a task of its own, as a detached operation does. It counts among the filter's detached
//! operations. Beyond their limit the call waits as if its client were still connected.

use std::sync::Arc;

use rbdkit_plugin_api::{BoxFuture, Client};

use super::shared::FilterShared;
use super::waiting::WaitPolicy;

/// Waits for `operation`. None: the client has gone first. Then the operation goes on by itself,
/// and `discard` undoes what it did.
pub(crate) async fn attended<T: Send + 'static, D: Future<Output = ()> + Send>(
    shared: &Arc<FilterShared>,
    client: &Client,
    policy: WaitPolicy,
    mut operation: BoxFuture<'static, T>,
    discard: impl FnOnce(T) -> D + Send + 'static,
) -> Option<T> {
    if policy == WaitPolicy::UntilDone {
        return Some(operation.await);
    }
    tokio::select! {
        biased;
        answer = &mut operation => return Some(answer),
        () = client.until_gone() => {}
    }
    let Some(place) = shared.detached_operations.hold(1) else { return Some(operation.await) };
    shared.detached_tasks.spawn(async move {
        discard(operation.await).await;
        drop(place);
    });
    None
}
