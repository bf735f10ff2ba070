//! How long an operation of the plugin is waited for after its client has gone.
//!
//! A plugin completes what it began, but nobody needs the answer of a read whose client has gone.
//! If such a read hangs, it would keep its client's place, its turn, and a request of the plugin's
//! upstream. So the plugin's gate drops reads, block status and the like as soon as their client
//! has gone, if the plugin frees their buffers then ([`Handle::drops_reads`]). It waits for the
//! reads of other plugins, and for everything that changes data. It gives up an open or a list that
//! has not ended [`LEFT_FOR`] after its client left.
//!
//! [`Handle::drops_reads`]: rbdkit_plugin_api::Handle::drops_reads
//!
//! A layer above may need a read although the client has gone: to write back a block in finalize or
//! close. It polls such an operation inside [`poll_until_done`], which sets a flag for the layers
//! below.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rbdkit_plugin_api::{BoxFuture, Buffer, Client, Done, Errno, Op, Result};

/// How long an open or a list goes on without its client. A plugin may have begun something that
/// others use, such as a shared connection or a log-in, and most sources answer within that time.
/// Until then the open keeps the place of one client.
const LEFT_FOR: Duration = Duration::from_secs(10);

/// What a layer above needs the operation for that is being polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its client's answer.
    Client,
    /// A call on an instance whose memory holds state. It waits until the operation is done.
    Instance,
    /// To end the connection: finalize or close, which write back what must not be lost.
    End,
}

thread_local! {
    static NEED: Cell<Need> = const { Cell::new(Need::Client) };
}

// This function and the next are not inlined, because a fiber may continue on another thread, which
// has another variable.
/// What a layer above needs the operation for that is being polled.
#[inline(never)]
pub fn need() -> Need {
    NEED.get()
}

#[inline(never)]
fn set_need(need: Need) -> Need {
    NEED.replace(need)
}

/// Whether a layer above needs the operation that is being polled, even without a client.
pub fn is_needed() -> bool {
    need() != Need::Client
}

/// Polls an operation that a layer above needs for `purpose`, unless a layer further above needs it
/// for more.
pub fn poll_for<T>(purpose: Need, poll: impl FnOnce() -> T) -> T {
    struct Before(Need);
    impl Drop for Before {
        fn drop(&mut self) {
            set_need(self.0);
        }
    }
    let _before = Before(set_need(purpose.max(need())));
    poll()
}

/// Polls an operation that has to wait until it is done, even if the client leaves.
pub fn poll_until_done<T>(poll: impl FnOnce() -> T) -> T {
    poll_for(Need::Instance, poll)
}

/// The answer of an operation that was dropped because its client has gone.
pub(super) trait Dropped {
    fn dropped() -> Self;
}

impl<T> Dropped for Result<T> {
    fn dropped() -> Self {
        Err(Errno::Eshutdown.into())
    }
}

impl Dropped for Done {
    fn dropped() -> Self {
        (Buffer::new(0), Err(Errno::Eshutdown.into()))
    }
}

/// A read that is dropped when its client has gone.
struct WhileNeeded<T> {
    read: BoxFuture<'static, T>,
    client: Arc<Client>,
    /// Made when the read first has to wait.
    gone: Option<BoxFuture<'static, ()>>,
}

impl<T: Dropped> Future for WhileNeeded<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        if let Poll::Ready(answer) = this.read.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        if is_needed() {
            return Poll::Pending;
        }
        let client = &this.client;
        let gone = this.gone.get_or_insert_with(|| {
            let client = Arc::clone(client);
            Box::pin(async move { client.until_gone().await })
        });
        gone.as_mut().poll(cx).map(|()| T::dropped())
    }
}

/// Drops a read of the plugin when its client has gone. None as client: it is waited for.
pub(super) fn while_needed<T: Dropped + 'static>(read: Op<T>, client: Option<&Arc<Client>>) -> Op<T> {
    match (read, client) {
        (Op::Later(read), Some(client)) => {
            Op::Later(Box::pin(WhileNeeded { read, client: Arc::clone(client), gone: None }))
        }
        (read, _) => read,
    }
}

/// Waits for an open or a list of the plugin, but not for long after its client has left.
///
/// # Errors
/// That of the call, or ESHUTDOWN.
pub(super) async fn not_long_without<T>(client: &Client, call: BoxFuture<'_, Result<T>>) -> Result<T> {
    until_left_for(LEFT_FOR, client, call).await
}

async fn until_left_for<T>(time: Duration, client: &Client, call: BoxFuture<'_, Result<T>>) -> Result<T> {
    let left = async {
        client.until_gone().await;
        tokio::time::sleep(time).await;
    };
    tokio::select! {
        biased;
        answer = call => answer,
        () = left => Err(Errno::Eshutdown.into()),
    }
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::{Peer, Result};

    use super::*;

    fn client() -> Arc<Client> {
        Arc::new(Client::new(1, Peer::Unknown, None, false))
    }

    fn hangs(client: &Arc<Client>) -> Op<Result<()>> {
        while_needed(Op::later(std::future::pending()), Some(client))
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_dropped_when_its_client_has_gone_unless_a_layer_above_needs_it() {
        let client = client();
        let mut read = std::pin::pin!(hangs(&client));
        let mut needed = std::pin::pin!(hangs(&client));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(read.as_mut().poll(&mut cx).is_pending());
        assert!(poll_until_done(|| needed.as_mut().poll(&mut cx)).is_pending());
        client.set_gone();
        assert!(poll_until_done(|| needed.as_mut().poll(&mut cx)).is_pending());
        let Poll::Ready(Err(error)) = read.as_mut().poll(&mut cx) else { panic!("it still waits") };
        assert_eq!(error.errno(), Errno::Eshutdown);
    }

    #[tokio::test]
    async fn an_open_that_hangs_is_given_up_some_time_after_its_client_has_left() {
        let client = client();
        let hangs = Box::pin(std::future::pending::<Result<()>>());
        let open = until_left_for(Duration::from_millis(1), &client, hangs);
        client.set_gone();
        assert_eq!(open.await.unwrap_err().errno(), Errno::Eshutdown);
    }
}
