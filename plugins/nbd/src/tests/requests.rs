//! Requests and their replies.

use std::io::Read;

use rbdkit_plugin_api::{Errno, Extent};

use super::fake_server::{Request, data_chunk};
use super::*;
use crate::wire::{cmd, info, opt, rep, reply_type};

#[test]
fn extents_are_carried_through_and_what_goes_past_the_request_is_cut() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let request = server.request();
            assert_eq!((request.kind, request.flags, request.offset), (cmd::BLOCK_STATUS, 1 << 3, 4096));
            let list = [7_u32, 4096, 0, 2048, 1, 1 << 30, 3];
            let list: Vec<u8> = list.iter().flat_map(|number| number.to_be_bytes()).collect();
            server.chunk(true, reply_type::BLOCK_STATUS, request.cookie, &list);
            server.wait_for_end();
        })
        .await;
        let flags = Flags { req_one: true, ..Flags::NONE };
        let extents = handle.extents(4096, 8192, flags).await.unwrap();
        let extent = |offset, length, hole, zero| Extent { offset, length, hole, zero };
        let expected =
            [extent(4096, 4096, false, false), extent(8192, 2048, true, false), extent(10240, 1 << 30, true, true)];
        assert_eq!(extents.as_slice(), expected);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn requests_in_flight_are_answered_in_any_order() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let mut requests: Vec<Request> = (0..50).map(|_| server.request()).collect();
            requests.sort_by_key(|request| request.offset % 7);
            for request in requests {
                // The second half first, and a hole in between.
                let (from, length) = (request.offset, request.length);
                let byte = (from / 4096) as u8;
                let kinds = reply_type::OFFSET_DATA;
                server.chunk(
                    false,
                    kinds,
                    request.cookie,
                    &data_chunk(from + 8192, &vec![byte; length as usize - 8192]),
                );
                let hole = [&(from + 4096).to_be_bytes()[..], &4096_u32.to_be_bytes()].concat();
                server.chunk(false, reply_type::OFFSET_HOLE, request.cookie, &hole);
                server.chunk(false, kinds, request.cookie, &data_chunk(from, &[byte; 4096]));
                server.chunk(true, reply_type::NONE, request.cookie, &[]);
            }
            server.wait_for_end();
        })
        .await;
        let reads: Vec<_> = (0..50)
            .map(|nth: u32| {
                let handle = Arc::clone(&handle);
                tokio::spawn(
                    async move { pread(&*handle, u64::from(nth) * 4096, 8192 + nth * 3000 + 1).await.unwrap() },
                )
            })
            .collect();
        for (nth, read) in reads.into_iter().enumerate() {
            let bytes = read.await.unwrap();
            assert_eq!(bytes.len(), 8193 + nth * 3000);
            let right = |at: usize| if (4096..8192).contains(&at) { 0 } else { nth as u8 };
            assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == right(at)), "read {nth}");
        }
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn flags_are_carried_through_and_errors_come_back() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 0xfff);
            let mut seen = Vec::new();
            for error in [1_u32, 5, 12, 22, 28, 75, 95, 108, 9999] {
                let request = server.request();
                if request.kind == cmd::WRITE {
                    server.receive_vec(request.length);
                }
                seen.push((request.kind, request.flags));
                match error {
                    22 => server.simple(request.cookie, error),
                    _ => {
                        let payload = [&error.to_be_bytes()[..], &3_u16.to_be_bytes(), b"why"].concat();
                        server.chunk(true, reply_type::ERROR + 1, request.cookie, &payload);
                    }
                }
            }
            assert_eq!(seen[..4], [(cmd::WRITE, 1), (cmd::WRITE, 0), (cmd::TRIM, 1), (cmd::WRITE_ZEROES, 0b10)]);
            assert_eq!(seen[4..6], [(cmd::WRITE_ZEROES, 0b10001), (cmd::CACHE, 0)]);
            server.wait_for_end();
        })
        .await;
        let flags = Flags { fua: true, may_trim: true, fast_zero: true, req_one: false };
        let errors = [
            pwrite(&*handle, 0, &[1; 100], Flags::FUA).await,
            pwrite(&*handle, 0, &[1; 100], Flags::NONE).await,
            handle.trim(0, 100, Flags::FUA).await,
            handle.zero(0, 100, Flags::NONE).await,
            handle.zero(0, 100, flags).await,
            handle.cache(0, 100).await,
            handle.flush().await,
            pread(&*handle, 0, 100).await.map(|_| ()),
            handle.extents(0, 100, Flags::NONE).await.map(|_| ()),
        ];
        let errors = errors.map(|result| result.unwrap_err());
        use Errno::*;
        let expected = [Eperm, Eio, Enomem, Einval, Enospc, Eoverflow, Enotsup, Eshutdown, Einval];
        assert_eq!(errors.each_ref().map(|error| error.errno()), expected);
        assert_eq!(errors[0].context(), Some("nbd: the server says \"why\""));
        handle.close().await;
        thread.join().unwrap();
    });
}

/// Negotiates with block sizes, without structured replies.
fn with_block_sizes(server: &mut Server, size: u64, sizes: [u32; 3]) {
    server.greet(3);
    loop {
        match server.option().0 {
            opt::GO => break,
            option => server.reply(option, rep::ERR_UNSUP, &[]),
        }
    }
    server.export(size, 0xfff);
    let sizes = sizes.map(u32::to_be_bytes).concat();
    server.reply(opt::GO, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat());
    server.reply(opt::GO, rep::ACK, &[]);
}

#[test]
fn what_is_not_aligned_to_the_servers_blocks_is_refused_here() {
    block_on(async {
        let size = 10 * 4096 + 100;
        let (handle, thread) = handle(move |server| {
            with_block_sizes(server, size, [4096, 4096, u32::MAX]);
            // Only the read of the tail arrives.
            let request = server.request();
            assert_eq!((request.kind, request.offset, request.length), (cmd::READ, 9 * 4096, 4196));
            server.simple(request.cookie, 0);
            server.send(&[1; 4196]);
            server.wait_for_end();
        })
        .await;
        for (offset, length) in [(512, 4096), (0, 512), (4096, 4097), (1, 4095), (10 * 4096 + 1, 99)] {
            let none = Flags::NONE;
            let errors = [
                pread(&*handle, offset, length).await.map(|_| ()),
                pwrite(&*handle, offset, &vec![0; length as usize], none).await,
                handle.trim(offset, length.into(), none).await,
                handle.zero(offset, length.into(), none).await,
                handle.cache(offset, length.into()).await,
                handle.extents(offset, length.into(), none).await.map(|_| ()),
            ];
            for error in errors.map(Result::unwrap_err) {
                assert_eq!(error.errno(), Errno::Einval);
                assert!(error.to_string().contains("aligned to 4096 bytes"), "{error}");
            }
        }
        assert_eq!(pread(&*handle, 9 * 4096, 4196).await.unwrap(), vec![1; 4196]);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn impossible_block_sizes_of_the_server_are_none() {
    for sizes in [[3, 4096, 4096], [0, 0, 0], [4096, 512, 4096]] {
        block_on(async {
            let (handle, thread) = handle(move |server| {
                with_block_sizes(server, 1 << 20, sizes);
                server.wait_for_end();
            })
            .await;
            assert_eq!(handle.block_size().await.unwrap(), None, "{sizes:?}");
            handle.close().await;
            thread.join().unwrap();
        });
    }
}

#[test]
fn what_is_longer_than_the_server_takes_is_sent_in_pieces() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            with_block_sizes(server, 1 << 40, [512, 1024, 1536]);
            for expected in [(512, 1536), (2048, 1536), (3584, 1024)] {
                let request = server.request();
                assert_eq!((request.offset, request.length), expected);
                server.simple(request.cookie, 0);
                server.send(&vec![(request.offset / 512) as u8; request.length as usize]);
            }
            for expected in [(0, 1536), (1536, 512)] {
                let request = server.request();
                assert_eq!((request.offset, request.length), expected);
                let bytes = server.receive_vec(request.length);
                assert!(bytes.iter().all(|&byte| byte == 5));
                server.simple(request.cookie, 0);
            }
            for expected in [(512, 1 << 30), (512 + (1 << 30), 1 << 30), (512 + (2 << 30), 512)] {
                let request = server.request();
                assert_eq!((request.kind, request.offset, request.length), (cmd::TRIM, expected.0, expected.1));
                server.simple(request.cookie, 0);
            }
            server.wait_for_end();
        })
        .await;
        let sizes = handle.block_size().await.unwrap().unwrap();
        assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (512, 1024, u32::MAX));
        let read = pread(&*handle, 512, 4096).await.unwrap();
        assert_eq!((read[0], read[1535], read[1536], read[3072], read[4095]), (1, 1, 4, 7, 7));
        pwrite(&*handle, 0, &[5; 2048], Flags::NONE).await.unwrap();
        handle.trim(512, (2 << 30) + 512, Flags::NONE).await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn an_answer_that_comes_before_the_request_was_sent_does_no_harm() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let first = server.request();
            // The payload is still on its way: it does not fit the socket.
            server.chunk(true, reply_type::ERROR + 1, first.cookie, &[0, 0, 0, 28, 0, 0]);
            let payload = server.receive_vec(first.length);
            assert!(payload.iter().all(|&byte| byte == 3));
            let second = server.request();
            server.simple(second.cookie, 0);
            server.wait_for_end();
        })
        .await;
        let error = pwrite(&*handle, 0, &[3; 1 << 20], Flags::NONE).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Enospc);
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_request_given_up_while_it_is_sent_ends_the_connection() {
    block_on(async {
        let (dropped, wait) = std::sync::mpsc::channel();
        let (handle, thread) = handle(move |server| {
            server.handshake(true, 1);
            // It reads on only when the request was given up, because all of it does not fit the
            // socket.
            server.request();
            wait.recv_timeout(DEADLINE).unwrap();
            let mut rest = Vec::new();
            let _ = server.0.read_to_end(&mut rest);
            assert!(rest.len() < 8 << 20);
        })
        .await;
        let span = Span::new(0, 8 << 20);
        let begun = std::future::poll_fn(|cx| {
            let op = handle.pwrite(Buffer::from_vec(vec![3; 8 << 20]), span, 0, Flags::NONE);
            std::task::Poll::Ready(op.poll_now(cx))
        });
        drop(begun.await);
        dropped.send(()).unwrap();
        let error = handle.flush().await.unwrap_err();
        assert!(error.to_string().contains("given up while it was sent"), "{error}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_read_that_is_dropped_leaves_the_connection_to_the_other_requests() {
    for structured in [false, true] {
        block_on(async {
            let (tell, is_there) = std::sync::mpsc::channel();
            let (dropped, wait) = std::sync::mpsc::channel();
            let (handle, thread) = handle(move |server| {
                server.handshake(structured, 1);
                let read = server.request();
                tell.send(()).unwrap();
                wait.recv_timeout(DEADLINE).unwrap();
                match structured {
                    true => server.chunk(true, reply_type::OFFSET_DATA, read.cookie, &data_chunk(0, &[1; 100])),
                    false => {
                        server.simple(read.cookie, 0);
                        server.send(&[1; 100]);
                    }
                }
                let flush = server.request();
                server.simple(flush.cookie, 0);
                server.wait_for_end();
            })
            .await;
            let reader = Arc::clone(&handle);
            let read = tokio::spawn(async move { pread(&*reader, 0, 100).await });
            tokio::task::spawn_blocking(move || is_there.recv_timeout(DEADLINE)).await.unwrap().unwrap();
            read.abort();
            assert!(read.await.unwrap_err().is_cancelled());
            dropped.send(()).unwrap();
            handle.flush().await.unwrap();
            handle.close().await;
            thread.join().unwrap();
        });
    }
}
