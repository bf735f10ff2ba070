//! Requests of 4 GiB and more, which clients with extended headers send.
//!
//! A layer that keeps to 32 bits, or for which the time of a request depends on its length, gets
//! them in pieces ([`Handle::takes_long`]). So does emulation. Between two pieces other tasks run,
//! and the request ends if its client has gone: the rest of 2^63 bytes could take years. Shorter
//! requests run to their end, as all requests that change data do.
//!
//! [`Handle::takes_long`]: rbdkit_plugin_api::Handle::takes_long

use std::sync::Arc;

use rbdkit_plugin_api::{Client, Errno, Op, Result};

use super::needed::{Need, need};

/// The longest piece, in bytes: a multiple of every block size that is half of what 32 bits can
/// say. Pieces begin and end at multiples of it, except at the ends of the request.
const PIECE: u64 = 1 << 31;

/// Whether a request is a long one.
#[inline]
pub(super) fn is_long(length: u64) -> bool {
    length > u64::from(u32::MAX)
}

/// The length of the first piece of a long request, or of what is left of it.
pub(super) fn first_piece(offset: u64, length: u64) -> u64 {
    length.min(PIECE - offset % PIECE)
}

/// Lets other tasks run between two pieces.
///
/// # Errors
/// ESHUTDOWN: the client has gone, and no layer needs the request to end its connection.
pub(super) async fn between_pieces(client: &Client) -> Result<()> {
    tokio::task::yield_now().await;
    match client.is_gone() && need() != Need::End {
        true => Err(Errno::Eshutdown.into()),
        false => Ok(()),
    }
}

/// Calls `call` with (hop, offset, length) for each piece of a long request, one after the other.
///
/// # Errors
/// That of a piece, or ESHUTDOWN: the client has gone.
pub(super) fn in_pieces<H: Send + Sync + 'static>(
    hop: &Arc<H>,
    client: &Arc<Client>,
    offset: u64,
    length: u64,
    call: impl Fn(&Arc<H>, u64, u64) -> Op<Result<()>> + Send + Sync + 'static,
) -> Op<Result<()>> {
    let (hop, client) = (Arc::clone(hop), Arc::clone(client));
    Op::later(async move {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let piece = first_piece(at, end - at);
            call(&hop, at, piece).await?;
            at += piece;
            if at < end {
                between_pieces(&client).await?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rbdkit_plugin_api::Peer;

    use super::*;

    fn client() -> Arc<Client> {
        Arc::new(Client::new(1, Peer::Unknown, None, false))
    }

    fn pieces(offset: u64, length: u64) -> Vec<(u64, u64)> {
        let hop = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let call = |hop: &Arc<Mutex<Vec<_>>>, at, length| {
            hop.lock().unwrap().push((at, length));
            Op::Ready(Ok(()))
        };
        runtime.block_on(async { in_pieces(&hop, &client(), offset, length, call).await }).unwrap();
        Arc::into_inner(hop).unwrap().into_inner().unwrap()
    }

    #[test]
    fn pieces_are_aligned_and_together_the_whole_request() {
        assert!(!is_long(u32::MAX.into()) && is_long(1 << 32));
        assert_eq!(pieces(0, 1 << 32), [(0, PIECE), (PIECE, PIECE)]);
        assert_eq!(pieces(512, 1 << 32), [(512, PIECE - 512), (PIECE, PIECE), (2 * PIECE, 512)]);
        let last = i64::MAX as u64;
        assert_eq!(pieces(last - (1 << 32), 1 << 32).iter().map(|(_, length)| length).sum::<u64>(), 1 << 32);
    }

    #[test]
    fn a_request_whose_client_has_gone_ends_between_two_pieces() {
        let (calls, client) = (Arc::new(Mutex::new(0)), client());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let leaving = Arc::clone(&client);
        let call = move |calls: &Arc<Mutex<u32>>, _, _| {
            *calls.lock().unwrap() += 1;
            if *calls.lock().unwrap() == 3 {
                leaving.set_gone();
            }
            Op::Ready(Ok(()))
        };
        let error = runtime.block_on(async { in_pieces(&calls, &client, 0, i64::MAX as u64, call).await }).unwrap_err();
        assert_eq!((error.errno(), *calls.lock().unwrap()), (Errno::Eshutdown, 3));
    }
}
