//! Servers with extended headers: good ones, and such as lie.

use rbdkit_plugin_api::{BoxFuture, Errno, Extent};

use super::fake_server::{Request, data_chunk, extended_header};
use super::*;
use crate::wire::{cmd, opt, rep, reply_type};

const SIZE: u64 = i64::MAX as u64;

/// All transmission flags, and 1 for their presence.
const EVERYTHING: u16 = 0x5fd;

/// The payload of a chunk with extents.
fn status(context: u32, count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut payload = [context.to_be_bytes(), count.to_be_bytes()].concat();
    for (length, flags) in extents {
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&flags.to_be_bytes());
    }
    payload
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

#[test]
fn requests_of_any_length_are_passed_on_whole() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.extended_handshake(SIZE, EVERYTHING);
            let mut seen = Vec::new();
            for _ in 0..3 {
                let request = server.extended_request();
                server.extended_chunk(true, reply_type::NONE, &request, &[]);
                seen.push((request.kind, request.flags, request.offset, request.length));
            }
            let expected =
                [(cmd::TRIM, 1, 0, SIZE), (cmd::WRITE_ZEROES, 0, 4096, 1 << 62), (cmd::CACHE, 0, 0, (1 << 32) + 1)];
            assert_eq!(seen, expected);
            let request = server.extended_request();
            assert_eq!((request.kind, request.length), (cmd::BLOCK_STATUS, SIZE));
            let list = status(7, 2, &[(1 << 40, 3), (SIZE - (1 << 40), 0)]);
            server.extended_chunk(true, reply_type::BLOCK_STATUS_EXT, &request, &list);
            server.wait_for_end();
        })
        .await;
        handle.trim(0, SIZE, Flags::FUA).await.unwrap();
        handle.zero(4096, 1 << 62, Flags { may_trim: true, ..Flags::NONE }).await.unwrap();
        handle.cache(0, (1 << 32) + 1).await.unwrap();
        let extents = handle.extents(0, SIZE, Flags::NONE).await.unwrap();
        let extent = |offset, length, hole| Extent { offset, length, hole, zero: hole };
        assert_eq!(extents.as_slice(), [extent(0, 1 << 40, true), extent(1 << 40, SIZE - (1 << 40), false)]);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_long_request_that_is_too_much_for_the_server_is_cut() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.extended_handshake(SIZE, EVERYTHING);
            let mut lengths = Vec::new();
            for _ in 0..4 {
                let request = server.extended_request();
                lengths.push(request.length);
                match request.length > 1 << 30 {
                    // EOVERFLOW
                    true => server.extended_chunk(true, reply_type::ERROR + 1, &request, &[0, 0, 0, 75, 0, 0]),
                    false => server.extended_chunk(true, reply_type::NONE, &request, &[]),
                }
            }
            assert_eq!(lengths, [(2 << 30) + 512, 1 << 30, 1 << 30, 512]);
            // A short one is not tried again.
            let request = server.extended_request();
            server.extended_chunk(true, reply_type::ERROR + 1, &request, &[0, 0, 0, 22, 0, 0]);
            server.wait_for_end();
        })
        .await;
        handle.zero(0, (2 << 30) + 512, Flags::NONE).await.unwrap();
        assert_eq!(handle.zero(0, 1 << 20, Flags::NONE).await.unwrap_err().errno(), Errno::Einval);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn reads_come_in_parts_and_writes_say_that_data_follows() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.extended_handshake(1 << 20, EVERYTHING);
            let request = server.extended_request();
            assert_eq!((request.kind, request.offset, request.length), (cmd::READ, 1000, 8192));
            server.extended_chunk(false, reply_type::OFFSET_DATA, &request, &data_chunk(5096, &[2; 4096]));
            server.extended_chunk(false, reply_type::OFFSET_HOLE, &request, &hole(1000, 96));
            server.extended_chunk(true, reply_type::OFFSET_DATA, &request, &data_chunk(1096, &[1; 4000]));
            let request = server.extended_request();
            assert_eq!((request.kind, request.flags, request.length), (cmd::WRITE, 32 | 1, 512));
            assert_eq!(server.receive_vec(512), [7; 512]);
            server.extended_chunk(true, reply_type::NONE, &request, &[]);
            let request = server.extended_request();
            let text = [&[0, 0, 0, 5, 0, 4][..], b"dust", &1010_u64.to_be_bytes()].concat();
            server.extended_chunk(true, reply_type::ERROR_OFFSET, &request, &text);
            server.wait_for_end();
        })
        .await;
        let read = pread(&*handle, 1000, 8192).await.unwrap();
        assert!(read == [&[0; 96][..], &[1; 4000], &[2; 4096]].concat());
        pwrite(&*handle, 512, &[7; 512], Flags::FUA).await.unwrap();
        let error = pread(&*handle, 1000, 100).await.unwrap_err();
        assert_eq!((error.errno(), error.context()), (Errno::Eio, Some("nbd: the server says \"dust\"")));
        handle.close().await;
        thread.join().unwrap();
    });
}

/// What the server does with a read of 100 bytes at 1000 while a flush is in flight: everything
/// fails with EIO.
fn breaks(what: &str, script: impl FnOnce(&mut Server, &Request, &Request) + Send + 'static) {
    breaks_for(what, script, |handle| Box::pin(async move { pread(&*handle, 1000, 100).await.map(|_| ()) }));
}

fn breaks_for(
    what: &str,
    script: impl FnOnce(&mut Server, &Request, &Request) + Send + 'static,
    request: impl Fn(Arc<dyn Handle>) -> BoxFuture<'static, Result<()>>,
) {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.extended_handshake(1 << 20, EVERYTHING);
            let (first, second) = (server.extended_request(), server.extended_request());
            let (data, flush) = if first.kind == cmd::FLUSH { (second, first) } else { (first, second) };
            script(server, &data, &flush);
            let _ = server.0.shutdown(std::net::Shutdown::Write);
            server.wait_for_end();
        })
        .await;
        let other = Arc::clone(&handle);
        let flush = tokio::spawn(async move { other.flush().await });
        let error = request(Arc::clone(&handle)).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{what}");
        assert_eq!(flush.await.unwrap().unwrap_err().errno(), Errno::Eio, "{what}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_reply_that_makes_no_sense_ends_the_connection() {
    use reply_type::{BLOCK_STATUS_EXT, ERROR_OFFSET, NONE, OFFSET_DATA, OFFSET_HOLE};
    breaks("a simple reply", |server, _, flush| server.simple(flush.cookie, 0));
    breaks("a structured reply", |server, _, flush| server.chunk(true, NONE, flush.cookie, &[]));
    breaks("the offset of no request", |server, read, _| {
        server.send(&extended_header(true, OFFSET_DATA, read.cookie, 1001, 108));
        server.send(&data_chunk(1000, &[1; 100]));
    });
    breaks("the offset of another request", |server, read, flush| {
        server.send(&extended_header(true, NONE, flush.cookie, read.offset, 0));
    });
    for length in [1 << 32, (1 << 32) + 108, u64::MAX] {
        breaks("a chunk of more than 32 bits", move |server, read, _| {
            server.send(&extended_header(true, OFFSET_DATA, read.cookie, read.offset, length));
            server.send(&data_chunk(1000, &[1; 100]));
        });
    }
    let chunk = |what: &str, kind: u16, payload: Vec<u8>| {
        breaks(what, move |server, read, _| server.extended_chunk(true, kind, read, &payload));
    };
    chunk("data beyond the end", OFFSET_DATA, data_chunk(1001, &[1; 100]));
    chunk("a hole of 4 GiB", OFFSET_HOLE, hole(1000, u32::MAX));
    chunk("extents for a read", BLOCK_STATUS_EXT, status(7, 1, &[(100, 0)]));
    let error = |offset: u64| [&[0, 0, 0, 5, 0, 0][..], &offset.to_be_bytes()].concat();
    chunk("an error before the range", ERROR_OFFSET, error(999));
    chunk("an error beyond the range", ERROR_OFFSET, error(1100));
    chunk("an error without its offset", ERROR_OFFSET, vec![0, 0, 0, 5, 0, 0]);
}

#[test]
fn extents_that_make_no_sense_end_the_connection() {
    let extents = |what: &str, kind: u16, payload: Vec<u8>| {
        breaks_for(
            what,
            move |server, request, _| server.extended_chunk(true, kind, request, &payload),
            |handle| Box::pin(async move { handle.extents(1000, 100, Flags::NONE).await.map(drop) }),
        );
    };
    let ext = reply_type::BLOCK_STATUS_EXT;
    let compact = [7_u32, 100, 0].iter().flat_map(|number| number.to_be_bytes()).collect();
    extents("the chunk of structured replies", reply_type::BLOCK_STATUS, compact);
    extents("another context", ext, status(8, 1, &[(100, 0)]));
    extents("none", ext, status(7, 0, &[]));
    extents("none, although one was announced", ext, status(7, 1, &[]));
    extents("fewer than announced", ext, status(7, 2, &[(100, 0)]));
    extents("more than announced", ext, status(7, 1, &[(50, 0), (50, 3)]));
    extents("a lying number", ext, status(7, u32::MAX, &[(100, 0)]));
    extents("half of one", ext, [status(7, 1, &[(100, 0)]), vec![0; 8]].concat());
    extents("an empty one", ext, status(7, 2, &[(0, 0), (100, 0)]));
    extents("more than was asked for", ext, status(7, 2, &[(100, 0), (100, 3)]));
    extents("one beyond 2^63", ext, status(7, 1, &[(SIZE - 999, 0)]));
    extents("one that overflows", ext, status(7, 2, &[(50, 0), (u64::MAX, 0)]));
    breaks_for(
        "an endless list",
        move |server, request, _| {
            server.send(&extended_header(true, ext, request.cookie, request.offset, u64::from(u32::MAX)));
            while std::io::Write::write_all(&mut server.0, &[1; 4096]).is_ok() {}
        },
        |handle| Box::pin(async move { handle.extents(1000, 100, Flags::NONE).await.map(drop) }),
    );
}

#[test]
fn a_server_with_extended_headers_has_to_have_go() {
    let (place, thread) = serve(|server| {
        server.greet(3);
        loop {
            match server.option() {
                (opt::EXTENDED_HEADERS, _) => server.reply(opt::EXTENDED_HEADERS, rep::ACK, &[]),
                (opt::EXPORT_NAME, _) => panic!("not allowed with extended headers"),
                (opt::GO, _) => {
                    server.reply(opt::GO, rep::ERR_UNSUP, &[]);
                    return server.wait_for_end();
                }
                (option, _) => server.reply(option, rep::ERR_UNSUP, &[]),
            }
        }
    });
    let Err(error) = block_on(open(&*at(&place.path), "")) else { panic!("it has no GO") };
    assert_eq!(error.errno(), Errno::Enotsup);
    thread.join().unwrap();
}

#[test]
fn a_request_in_pieces_ends_when_its_client_has_gone() {
    block_on(async {
        let (place, thread) = serve(|server| {
            server.extended_handshake(SIZE, EVERYTHING);
            let mut requests = 0_u64;
            let mut magic = [0; 4];
            while std::io::Read::read_exact(&mut server.0, &mut magic).is_ok() {
                let _: [u8; 4] = server.receive();
                let cookie = u64::from_be_bytes(server.receive());
                let (offset, length) = (u64::from_be_bytes(server.receive()), u64::from_be_bytes(server.receive()));
                let (kind, payload): (u16, &[u8]) = match length > 1 << 30 {
                    true => (reply_type::ERROR + 1, &[0, 0, 0, 22, 0, 0]),
                    false => (reply_type::NONE, &[]),
                };
                server.send(&extended_header(true, kind, cookie, offset, payload.len() as u64));
                server.send(payload);
                requests += 1;
            }
            assert!(requests > 3, "{requests}");
        });
        let client = client();
        let args = OpenArgs { readonly: false, exportname: String::new(), client: Arc::clone(&client) };
        let handle = at(&place.path).open(args).await.unwrap();
        let other = Arc::clone(&handle);
        let zero = tokio::spawn(async move { other.zero(0, SIZE, Flags::NONE).await });
        // Pieces are under way.
        handle.flush().await.unwrap();
        handle.flush().await.unwrap();
        client.set_gone();
        assert_eq!(zero.await.unwrap().unwrap_err().errno(), Errno::Eshutdown);
        handle.close().await;
        thread.join().unwrap();
    });
}
