//! Replies that make no sense: they end the connection and fail every request in flight.

use std::io::Write;

use rbdkit_plugin_api::{BoxFuture, Errno};

use super::fake_server::{chunk_header, data_chunk};
use super::*;
use crate::wire::{cmd, reply_type};

/// A read of 100 bytes at 1000, a flush with it in flight, and what the server does when it has
/// both: everything fails with EIO, and so does what comes after.
fn breaks(what: &str, script: impl FnOnce(&mut Server, u64, u64) + Send + 'static) {
    breaks_for(what, script, |handle| Box::pin(async move { pread(&*handle, 1000, 100).await.map(|_| ()) }));
}

fn breaks_for(
    what: &str,
    script: impl FnOnce(&mut Server, u64, u64) + Send + 'static,
    request: impl Fn(Arc<dyn Handle>) -> BoxFuture<'static, Result<()>>,
) {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 0x1ff);
            let (first, second) = (server.request(), server.request());
            let (data, flush) = if first.kind == cmd::FLUSH { (second, first) } else { (first, second) };
            script(server, data.cookie, flush.cookie);
            let _ = server.0.shutdown(std::net::Shutdown::Write);
            server.wait_for_end();
        })
        .await;
        let other = Arc::clone(&handle);
        let flush = tokio::spawn(async move { other.flush().await });
        let error = request(Arc::clone(&handle)).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{what}");
        assert!(error.context().is_some_and(|text| text.starts_with("nbd: server at ")), "{what}: {error}");
        assert_eq!(flush.await.unwrap().unwrap_err().errno(), Errno::Eio, "{what}");
        let again = pread(&*handle, 0, 1).await.unwrap_err();
        assert_eq!((again.errno(), again.context()), (Errno::Eio, error.context()), "{what}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_reply_that_makes_no_sense_ends_the_connection_and_fails_what_is_in_flight() {
    use reply_type::{BLOCK_STATUS, ERROR, NONE, OFFSET_DATA, OFFSET_HOLE};
    breaks("the end", |_, _, _| {});
    breaks("junk", |server, _, _| server.send(&[0x55; 10_000]));
    breaks("endless junk", |server, _, _| while server.0.write_all(&[0; 4096]).is_ok() {});
    breaks("a foreign cookie", |server, read, _| server.simple(read ^ 0x1000, 0));
    breaks("a simple reply to a read", |server, read, _| server.simple(read, 0));
    breaks("short data", |server, read, _| {
        server.send(&chunk_header(true, OFFSET_DATA, read, 108));
        server.send(&data_chunk(1000, &[1; 50]));
    });
    let chunk = |what: &str, done: bool, kind: u16, payload: Vec<u8>| {
        breaks(what, move |server, read, _| server.chunk(done, kind, read, &payload));
    };
    chunk("data beyond the end", true, OFFSET_DATA, data_chunk(1001, &[1; 100]));
    chunk("data before the beginning", true, OFFSET_DATA, data_chunk(999, &[1; 100]));
    chunk("an overlong chunk", true, OFFSET_DATA, data_chunk(1000, &[1; 101]));
    chunk("an offset that overflows", true, OFFSET_DATA, data_chunk(u64::MAX, &[1; 100]));
    chunk("no data", false, OFFSET_DATA, data_chunk(1000, &[]));
    chunk("half an offset", false, OFFSET_DATA, vec![0; 4]);
    chunk("an end before everything has come", true, OFFSET_DATA, data_chunk(1000, &[1; 99]));
    chunk("an end without anything", true, NONE, vec![]);
    chunk("nothing, and no end", false, NONE, vec![]);
    chunk("a payload of nothing", true, NONE, vec![0]);
    let hole = |offset: u64, length: u32| [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    chunk("a hole beyond the end", true, OFFSET_HOLE, hole(1050, 51));
    chunk("an empty hole", true, OFFSET_HOLE, hole(1000, 0));
    chunk("a hole of 4 GiB", true, OFFSET_HOLE, hole(1000, u32::MAX));
    chunk("half a hole", true, OFFSET_HOLE, vec![0; 8]);
    chunk("extents for a read", true, BLOCK_STATUS, [&7_u32.to_be_bytes()[..], &[0, 0, 0, 100, 0, 0, 0, 0]].concat());
    chunk("an unknown kind", true, 99, vec![0; 8]);
    chunk("half an error", true, ERROR + 1, vec![0, 0, 0]);
    chunk("an error that is none", true, ERROR + 1, vec![0; 6]);
    chunk("a message that is longer than its chunk", true, ERROR + 1, vec![0, 0, 0, 5, 0, 9, b'x']);
    breaks("an endless message", |server, read, _| {
        server.send(&chunk_header(true, ERROR + 1, read, u32::MAX));
        while server.0.write_all(&[1; 4096]).is_ok() {}
    });
    breaks("a byte twice", |server, read, _| {
        server.chunk(false, OFFSET_DATA, read, &data_chunk(1000, &[1; 60]));
        server.chunk(true, OFFSET_DATA, read, &data_chunk(1059, &[1; 41]));
    });
    breaks("data for a flush", |server, _, flush| {
        server.chunk(true, OFFSET_DATA, flush, &data_chunk(1000, &[1; 60]));
    });
}

#[test]
fn an_answer_that_comes_twice_ends_the_connection() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let first = server.request();
            server.simple(first.cookie, 0);
            server.simple(first.cookie, 0);
            server.wait_for_end();
        })
        .await;
        handle.flush().await.unwrap();
        let error = handle.flush().await.unwrap_err();
        assert!(error.to_string().contains("that was never made, or that it had answered"), "{error}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn extents_that_make_no_sense_end_the_connection() {
    let status = |what: &str, context: u32, extents: &[[u32; 2]], rest: &[u8]| {
        let mut payload = context.to_be_bytes().to_vec();
        for number in extents.iter().flatten() {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        payload.extend_from_slice(rest);
        breaks_for(
            what,
            move |server, status, _| server.chunk(true, reply_type::BLOCK_STATUS, status, &payload),
            |handle| Box::pin(async move { handle.extents(4096, 8192, Flags::NONE).await.map(|_| ()) }),
        );
    };
    status("a foreign context", 8, &[[8192, 0]], &[]);
    status("none", 7, &[], &[]);
    status("an empty one", 7, &[[4096, 0], [0, 3], [4096, 0]], &[]);
    status("one too many", 7, &[[4096, 0], [4096, 3], [4096, 0]], &[]);
    status("half of one", 7, &[[4096, 0]], &[0; 4]);
    let request = |handle: Arc<dyn Handle>| -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { handle.extents(4096, 8192, Flags::NONE).await.map(|_| ()) })
    };
    let no_end = |server: &mut Server, status: u64, _| {
        server.send(&chunk_header(true, reply_type::BLOCK_STATUS, status, u32::MAX));
        while server.0.write_all(&[1; 4096]).is_ok() {}
    };
    breaks_for("an endless list", no_end, request);
    breaks_for("no list", |server, status, _| server.chunk(true, reply_type::NONE, status, &[]), request);
    let twice = |server: &mut Server, status: u64, _| {
        let one = [&7_u32.to_be_bytes()[..], &8192_u32.to_be_bytes(), &[0; 4]].concat();
        server.chunk(false, reply_type::BLOCK_STATUS, status, &one);
        server.chunk(true, reply_type::BLOCK_STATUS, status, &one);
    };
    breaks_for("two lists", twice, request);
}

#[test]
fn a_reply_without_an_end_ends_the_connection() {
    use reply_type::{ERROR, OFFSET_DATA, OFFSET_HOLE};
    fn chunks(what: &str, kind: u16, payload: impl Fn(u64) -> Vec<u8> + Send + 'static) {
        let request = |handle: Arc<dyn Handle>| -> BoxFuture<'static, Result<()>> {
            Box::pin(async move { pread(&*handle, 1000, 1 << 20).await.map(|_| ()) })
        };
        let endless = move |server: &mut Server, read: u64, _| {
            for at in 0.. {
                let payload = payload(at);
                let chunk = [chunk_header(false, kind, read, payload.len() as u32), payload].concat();
                // The client closes the connection.
                if server.0.write_all(&chunk).is_err() {
                    break;
                }
            }
        };
        breaks_for(what, endless, request);
    }
    chunks("errors", ERROR + 1, |_| vec![0, 0, 0, 5, 0, 0]);
    chunks("errors with an offset", ERROR + 2, |_| [&[0, 0, 0, 5, 0, 0][..], &1000_u64.to_be_bytes()].concat());
    chunks("single bytes", OFFSET_DATA, |at| data_chunk(1000 + at, &[1]));
    chunks("single bytes of a hole", OFFSET_HOLE, |at| [&(1000 + at).to_be_bytes()[..], &1_u32.to_be_bytes()].concat());
    breaks("errors for a flush", |server, _, flush| {
        while server.0.write_all(&[chunk_header(false, ERROR + 1, flush, 6), vec![0, 0, 0, 5, 0, 0]].concat()).is_ok() {
        }
    });
}

#[test]
fn some_errors_in_a_reply_fail_that_request_alone() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let read = server.request();
            for _ in 0..32 {
                let error = [&[0, 0, 0, 28, 0, 0][..], &1000_u64.to_be_bytes()].concat();
                server.chunk(false, reply_type::ERROR + 2, read.cookie, &error);
            }
            server.chunk(true, reply_type::NONE, read.cookie, &[]);
            let flush = server.request();
            server.simple(flush.cookie, 0);
            server.wait_for_end();
        })
        .await;
        assert_eq!(pread(&*handle, 1000, 100).await.unwrap_err().errno(), Errno::Enospc);
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_list_of_extents_is_cut_at_what_an_answer_holds() {
    const LENGTH: u64 = 1 << 20;
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let request = server.request();
            let list: Vec<u32> = (0..1 << 20).flat_map(|at| [1, at % 2 * 3]).collect();
            let payload: Vec<u8> = [7].iter().chain(&list).flat_map(|number: &u32| number.to_be_bytes()).collect();
            server.chunk(true, reply_type::BLOCK_STATUS, request.cookie, &payload);
            let flush = server.request();
            server.simple(flush.cookie, 0);
            server.wait_for_end();
        })
        .await;
        let extents = handle.extents(0, LENGTH, Flags::NONE).await.unwrap();
        assert_eq!(extents.as_slice().len(), rbdkit_plugin_api::Extents::limit(LENGTH));
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}
