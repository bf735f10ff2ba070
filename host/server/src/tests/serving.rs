//! Requests and their replies.

use super::client::*;
use super::plugin::{Disk, FAILS, PANICS, PANICS_LATER, PLAIN, SPLICED, WAITS};
use super::*;

#[test]
fn spliced_bytes_that_cannot_be_spliced_on_are_copied() {
    let running = Running::plain();
    let spliced = pattern(200_000);
    running.disk.bytes()[SPLICED as usize..][..spliced.len()].copy_from_slice(&spliced);
    let to_server = rustix::pipe::pipe().unwrap();
    // The kernel splices nothing into a file that is opened for appending.
    let path = running.path.with_extension("answers");
    let file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
    let mut script = 3u32.to_be_bytes().to_vec();
    script.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    script.extend(request(READ, 0, 2, SPLICED, 200_000));
    script.extend(request(DISC, 0, 3, 0, 0));
    std::io::Write::write_all(&mut std::fs::File::from(to_server.1), &script).unwrap();
    running.block_on("the client is served", running.server.serve_one(to_server.0, file.into(), running.stop.clone()));
    let answer = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(answer.len(), 18 + 10 + 16 + 200_000);
    assert!(answer[answer.len() - 200_000..] == spliced);
}

#[test]
fn data_written_is_read_back_with_simple_and_structured_replies() {
    let running = Running::plain();
    let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8 + 1).collect();
    assert_eq!(running.client(false).write(12_345, &data), 0);
    for structured in [false, true] {
        let mut client = running.client(structured);
        let read = client.read(0, 1 << 20);
        assert!(read[12_345..][..data.len()] == data[..]);
        assert!(read[..12_345].iter().chain(&read[112_345..]).all(|byte| *byte == 0));
    }
}

#[test]
fn the_old_way_in_works_with_and_without_zeroes() {
    let running = Running::plain();
    for (flags, length) in [(0, 134), (1, 134), (3, 10)] {
        let mut client = running.connect();
        client.greet(flags);
        client.send_option(1, b"");
        let answer = client.take(length);
        assert_eq!(answer[..8], (8u64 << 20).to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read(0, 512), vec![0; 512]);
    }
}

#[test]
fn information_is_given_as_it_is_asked_for_and_the_export_closed_again() {
    let running = Running::plain();
    let mut client = running.connect();
    client.greet(3);
    let replies = client.option(6, &go("", &[0, 1, 2, 3, 99]));
    let data: Vec<&[u8]> = replies.iter().map(|reply| &reply.data[..]).collect();
    // Flags: has flags, flush, FUA, trim, write zeroes, multi-conn, cache; not DF before structured
    // replies.
    let mut export = vec![0, 0];
    export.extend((8u64 << 20).to_be_bytes());
    export.extend((1u16 | 4 | 8 | 32 | 64 | 256 | 1024).to_be_bytes());
    assert_eq!(data, [&export[..], b"\0\x01", b"\0\x02a disk for tests", b""]);
    assert_eq!(running.disk.diary(), ["open ''", "export_description", "block_size", "finalize", "close"]);
    let list = client.option(3, &[]);
    assert_eq!(list[0].data, b"\0\0\0\0the disk");
    assert_eq!(list[1].data, b"\0\0\0\x05otherthe same");
    assert_eq!(client.option(2, &[])[0].kind, 1);
    assert!(client.rest().is_empty());
}

#[test]
fn what_the_client_does_not_ask_for_is_not_asked_of_the_layers() {
    let running = Running::plain();
    for (infos, expected) in [
        (&[][..], &["open ''"][..]),
        (&[0, 1, 99], &["open ''"]),
        (&[2], &["open ''", "export_description"]),
        (&[3], &["open ''", "block_size"]),
    ] {
        let before = running.disk.diary().len();
        let mut client = running.connect();
        client.greet(3);
        assert_eq!(client.option(7, &go("", infos)).last().unwrap().kind, 1);
        assert_eq!(running.disk.diary()[before..], *expected, "{infos:?}");
        drop(client);
        running.until_all_is_given_back();
    }
}

#[test]
fn an_absent_export_is_unknown_and_the_connection_continues() {
    let running = Running::plain();
    let mut client = running.connect();
    client.greet(3);
    let replies = client.option(7, &go("absent", &[]));
    assert_eq!(replies[0].kind, (1 << 31) + 6);
    assert_eq!(replies[0].data, b"there is no export 'absent'");
    assert_eq!(client.option(7, &go("panics", &[]))[0].kind, (1 << 31) + 6);
    assert_eq!(client.option(7, &go("", &[])).last().unwrap().kind, 1);
    // EXPORT_NAME has no error: the connection ends.
    let mut client = running.connect();
    client.greet(3);
    client.send_option(1, b"absent");
    assert!(client.rest().is_empty());
}

#[test]
fn holes_are_sent_as_holes_and_fragments_only_where_allowed() {
    let running = Running::plain();
    running.disk.bytes()[8192..12288].fill(7);
    let mut client = running.client(true);
    client.request(READ, 0, 1, 0, 65536);
    let mut kinds = Vec::new();
    loop {
        let Reply::Chunk { flags, kind, data, .. } = client.reply() else { panic!() };
        kinds.push((kind, data.len()));
        if flags == 1 {
            break;
        }
    }
    assert_eq!(kinds, [(2, 12), (1, 8 + 4096), (2, 12)]);
    // A reply that may not be fragmented is one chunk of data.
    client.request(READ, 4, 1, 0, 65536);
    let Reply::Chunk { flags: 1, kind: 1, data, .. } = client.reply() else { panic!() };
    assert!(data[8..][..8192].iter().all(|byte| *byte == 0) && data[8 + 8192] == 7);
    // Only zeroes are one hole, whether or not the reply may be fragmented.
    client.request(READ, 4, 1, 65536, 1 << 20);
    let Reply::Chunk { flags: 1, kind: 2, data, .. } = client.reply() else { panic!() };
    assert_eq!(data, [0, 0, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0]);
}

#[test]
fn block_status_tells_holes_and_honours_req_one() {
    let running = Running::plain();
    running.disk.bytes()[4096..8192].fill(7);
    let mut client = running.client(true);
    client.request(STATUS, 0, 1, 0, 16384);
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let status = |words: Vec<u8>| Reply::Chunk { flags: 1, kind: 5, cookie: 1, data: words };
    assert_eq!(client.reply(), status(words(&[1, 4096, 3, 4096, 0, 8192, 3])));
    client.request(STATUS, 8, 1, 0, 16384);
    assert_eq!(client.reply(), status(words(&[1, 4096, 3])));
    // Clients that did not select the context get an error.
    assert_eq!(running.client(false).error(STATUS, 0, 0, 4096), 22);
}

#[test]
fn errors_are_those_of_nbdkit() {
    let running = Running::plain();
    let size = 8u64 << 20;
    for structured in [false, true] {
        let mut client = running.client(structured);
        for (what, expected) in [
            ((READ, 0, size - 512, 1024), 22),
            ((ZERO, 0, size - 512, 1024), 28),
            ((TRIM, 0, size - 512, 1024), 22),
            ((CACHE, 0, size - 512, 1024), 22),
            ((READ, 0, u64::MAX, 1024), 22),
            ((READ, 0, u64::MAX - 511, 512), 22),
            ((READ, 0, 0, 0), 22),
            ((ZERO, 0, 0, 0), 28),
            ((FLUSH, 0, 0, 512), 22),
            ((FLUSH, 0, 512, 0), 22),
            ((99, 0, 0, 512), 22),
            ((READ, 2, 0, 512), 22),
            ((READ, 8, 0, 512), 22),
            ((READ, 0x80, 0, 512), 22),
            ((ZERO, 4, 0, 512), 22),
            // Fast zero was not offered.
            ((ZERO, 16, 0, 512), 22),
            // FUA was offered, so every command accepts it.
            ((FLUSH, 1, 0, 0), 0),
            ((TRIM, 1, 0, 512), 0),
            ((ZERO, 2, 0, 512), 0),
            ((CACHE, 1, 0, 512), 0),
        ] {
            let (command, flags, offset, length) = what;
            assert_eq!(client.error(command, flags, offset, length), expected, "{what:?}");
        }
        assert_eq!(client.write(size - 512, &[1; 1024]), 28);
        assert_eq!(client.write(0, &[]), 28);
        assert_eq!(client.read(0, 512), vec![0; 512]);
        if !structured {
            assert_eq!(client.error(READ, 4, 0, 512), 22);
        }
    }
}

#[test]
fn a_read_only_server_refuses_to_write_with_eperm() {
    let running = Running::with(ServerOptions { readonly: true, ..ServerOptions::default() });
    let mut client = running.client(false);
    assert_eq!(client.write(0, &[1; 512]), 1);
    assert_eq!(client.write(u64::MAX, &[1; 512]), 1);
    assert_eq!(client.error(ZERO, 0, 0, 512), 1);
    assert_eq!(client.error(TRIM, 0, 0, 512), 1);
    assert_eq!(client.read(0, 512), vec![0; 512]);
}

#[test]
fn the_message_of_an_error_reaches_a_client_with_structured_replies() {
    let running = Running::plain();
    let mut client = running.client(true);
    client.request(READ, 0, 3, FAILS, 512);
    let mut data = vec![0, 0, 0, 28, 0, 26];
    data.extend(b"the read failed as ordered");
    assert_eq!(client.reply(), Reply::Chunk { flags: 1, kind: 0x8001, cookie: 3, data });
    assert_eq!(running.client(false).error(READ, 0, FAILS, 512), 28);
}

#[test]
fn a_panic_in_a_plugin_fails_that_request_alone() {
    let running = Running::plain();
    let mut other = running.client(true);
    for structured in [false, true] {
        let mut client = running.client(structured);
        assert_eq!(client.error(READ, 0, PANICS, 512), 5);
        assert_eq!(client.error(READ, 0, PANICS_LATER, 512), 5);
        assert_eq!(client.read(PLAIN, 512), vec![0; 512]);
        client.request(DISC, 0, 0, 0, 0);
        assert!(client.rest().is_empty());
    }
    assert_eq!(other.read(PLAIN, 512), vec![0; 512]);
    drop(other);
    running.until_all_is_given_back();
}

#[test]
fn long_requests_of_a_busy_client_are_answered_in_any_order_and_panics_stay_theirs() {
    let running = Running::plain();
    let mut client = running.client(false);
    let length = 256u32 << 10;
    let mut batch = Vec::new();
    for cookie in 0..8 {
        batch.extend(request(WRITE, 0, cookie, PLAIN + cookie * u64::from(length), length));
        batch.resize(batch.len() + length as usize, cookie as u8 + 1);
    }
    client.send(&batch);
    let mut answered: Vec<u64> = (0..8)
        .map(|_| match client.reply() {
            Reply::Simple { error: 0, cookie } => cookie,
            other => panic!("{other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2, 3, 4, 5, 6, 7]);
    let mut batch = request(READ, 0, 100, PANICS, length);
    for cookie in 0..8 {
        batch.extend(request(READ, 0, cookie, PLAIN + cookie * u64::from(length), length));
    }
    batch.extend(request(READ, 0, 100, PANICS, length));
    client.send(&batch);
    for _ in 0..10 {
        match client.reply() {
            Reply::Simple { error: 5, cookie: 100 } => {}
            Reply::Simple { error: 0, cookie } => {
                assert!(client.take(length as usize).iter().all(|byte| u64::from(*byte) == cookie + 1));
            }
            other => panic!("{other:?}"),
        }
    }
    drop(client);
    running.until_all_is_given_back();
}

#[test]
fn a_batch_of_requests_is_answered_whole() {
    let running = Running::plain();
    let mut client = running.client(false);
    let mut batch = Vec::new();
    for i in 0..500u64 {
        batch.extend(request(WRITE, 0, i, i * 8192, 3));
        batch.extend([i as u8 | 1, 2, 3]);
        batch.extend(request(READ, 0, 1000 + i, PLAIN, 8));
    }
    client.send(&batch);
    // A memory plugin answers in order.
    for i in 0..500 {
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: i });
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1000 + i });
        client.take(8);
    }
    assert_eq!(client.read(8192 * 4, 4), [5, 2, 3, 0]);
}

#[test]
fn how_the_bytes_are_cut_makes_no_difference() {
    let running = Running::plain();
    let mut client = running.connect();
    let mut script = 3u32.to_be_bytes().to_vec();
    script.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
    script.extend(request(WRITE, 0, 1, 700, 9000));
    script.extend([0x5a; 9000]);
    script.extend(request(READ, 0, 2, 699, 3));
    for (index, piece) in script.chunks(1).enumerate() {
        client.send(piece);
        // Only some pieces are sent separately; sending each piece separately would take long.
        if index % 97 == 0 {
            std::thread::yield_now();
        }
    }
    assert_eq!(client.take(18).len(), 18);
    client.option_replies(7);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 2 });
    assert_eq!(client.take(3), [0, 0x5a, 0x5a]);
}

#[test]
fn what_waits_does_not_hold_up_the_rest() {
    let running = Running::plain();
    let mut client = running.client(false);
    client.request(READ, 0, 1, WAITS, 8);
    client.request(READ, 0, 2, WAITS, 8);
    assert_eq!(client.error(FLUSH, 0, 0, 0), 0);
    assert_eq!(client.read(PLAIN, 8), [0; 8]);
    running.disk.gate.add_permits(2);
    for _ in 0..2 {
        assert!(matches!(client.reply(), Reply::Simple { error: 0, cookie: 1 | 2 }));
        client.take(8);
    }
}

#[test]
fn an_export_is_closed_after_its_last_operation() {
    let running = Running::plain();
    let mut client = running.client(false);
    client.request(READ, 0, 1, WAITS, 8);
    running.until("the read waits", || running.disk.diary().len() == 2);
    drop(client);
    // Another client is served in the meantime.
    let mut other = running.client(false);
    assert_eq!(other.error(FLUSH, 0, 0, 0), 0);
    drop(other);
    running.until("the other has left", || running.disk.diary().contains(&"close".to_string()));
    running.disk.gate.add_permits(1);
    running.until_all_is_given_back();
    let expected =
        ["open ''", "read waits", "open ''", "flush", "finalize", "close", "read goes on", "finalize", "close"];
    assert_eq!(running.disk.diary(), expected);
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    let running = Running::plain();
    let mut client = running.client(false);
    client.request(READ, 0, 1, WAITS, 8);
    client.request(DISC, 0, 0, 0, 0);
    running.until("the read waits", || running.disk.diary().len() == 2);
    running.disk.gate.add_permits(1);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    client.take(8);
    assert!(client.rest().is_empty());
    // The client sees the end after the layers have finished.
    assert_eq!(running.disk.diary(), ["open ''", "read waits", "read goes on", "finalize", "close"]);
}

#[test]
fn stopping_answers_what_is_in_flight_and_ends_idle_clients() {
    let mut running = Running::plain();
    let mut busy = running.client(false);
    let mut idle = running.client(true);
    let mut shy = running.connect();
    shy.take(18);
    busy.request(READ, 0, 1, WAITS, 8);
    running.until("the read waits", || running.disk.diary().contains(&"read waits".to_string()));
    running.stop.stop();
    assert!(idle.rest().is_empty());
    assert!(shy.rest().is_empty());
    running.disk.gate.add_permits(1);
    assert_eq!(busy.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert_eq!(busy.take(8), [0; 8]);
    assert!(busy.rest().is_empty());
    running.stopped();
    assert_eq!(running.disk.diary().iter().filter(|line| *line == "close").count(), 2);
    assert!(UnixStream::connect(&running.path).is_err());
}

/// Sends one request after the other until the client has a thread.
fn keep_busy(running: &Running, client: &mut Client) {
    for _ in 0..100_000 {
        assert_eq!(client.read(PLAIN, 512), vec![0; 512]);
        if running.threads() > 0 {
            return;
        }
    }
    panic!("a busy client gets no thread");
}

#[test]
fn a_busy_client_has_a_thread_until_it_pauses() {
    let running = Running::plain();
    let mut client = running.client(false);
    assert_eq!(running.threads(), 0);
    for round in 0..3u8 {
        keep_busy(&running, &mut client);
        // A client with a thread can still do everything.
        let data = vec![round + 1; 300_000];
        assert_eq!(client.write(5 << 20, &data), 0);
        assert!(client.read(5 << 20, 300_000) == data);
        client.request(READ, 0, 7, WAITS, 8);
        let waiting = || running.disk.diary().iter().filter(|line| *line == "read waits").count();
        running.until("the read waits", || waiting() == usize::from(round) + 1);
        assert_eq!(client.read(PLAIN, 512), vec![0; 512]);
        running.disk.gate.add_permits(1);
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 7 });
        assert_eq!(client.take(8), [0; 8]);
        running.until("the thread ends", || running.threads() == 0);
    }
    keep_busy(&running, &mut client);
    drop(client);
    running.until_all_is_given_back();
    running.until("the thread ends", || running.threads() == 0);
}

#[test]
fn a_client_with_a_thread_is_stopped_as_any_other() {
    let mut running = Running::plain();
    let mut client = running.client(false);
    keep_busy(&running, &mut client);
    client.request(READ, 0, 1, WAITS, 8);
    running.until("the read waits", || running.disk.diary().contains(&"read waits".to_string()));
    running.stop.stop();
    running.disk.gate.add_permits(1);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert_eq!(client.take(8), [0; 8]);
    assert!(client.rest().is_empty());
    running.stopped();
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 % 251) as u8 + 1).collect()
}

#[test]
fn spliced_bytes_arrive_whole_between_other_replies() {
    let running = Running::plain();
    let data = pattern(1 << 20);
    running.disk.bytes()[SPLICED as usize..][..data.len()].copy_from_slice(&data);
    for structured in [false, true] {
        let mut client = running.client(structured);
        assert!(client.read(SPLICED, 300_001) == data[..300_001]);
        assert!(client.read(SPLICED, 1000) == data[..1000]);
        // Requests for more than the socket and the pipes hold, before the first reply is read.
        let lengths: Vec<u32> = (0..60).map(|nth| if nth % 5 == 4 { 512 } else { 40_000 + 13_337 * nth }).collect();
        for (nth, length) in lengths.iter().enumerate() {
            client.request(READ, 0, nth as u64, SPLICED, *length);
        }
        let mut left: Vec<u64> = (0..lengths.len() as u64).collect();
        while !left.is_empty() {
            let (cookie, bytes) = match client.reply() {
                Reply::Simple { error: 0, cookie } => (cookie, client.take(lengths[cookie as usize] as usize)),
                Reply::Chunk { flags: 1, kind: 1, cookie, data } => (cookie, data[8..].to_vec()),
                other => panic!("{other:?}"),
            };
            assert!(bytes == data[..lengths[cookie as usize] as usize]);
            left.retain(|other| *other != cookie);
        }
    }
    // A client that leaves before it has read its replies does no harm.
    let mut client = running.client(false);
    for cookie in 0..60 {
        client.request(READ, 0, cookie, SPLICED, 1 << 20);
    }
    drop(client);
    running.until_all_is_given_back();
}

#[test]
fn a_client_on_pipes_is_served() {
    let running = Running::plain();
    let spliced = pattern(200_000);
    running.disk.bytes()[SPLICED as usize..][..spliced.len()].copy_from_slice(&spliced);
    let (to_server, to_client) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    let runtime = running.runtime.as_ref().unwrap();
    let (server, stop) = (Arc::clone(&running.server), running.stop.clone());
    let served = runtime.spawn(async move { server.serve_one(to_server.0, to_client.1, stop).await });
    let (mut output, mut input) = (std::fs::File::from(to_server.1), std::fs::File::from(to_client.0));
    let mut script = 3u32.to_be_bytes().to_vec();
    script.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    script.extend(request(READ, 0, 1, 0, 200_000));
    script.extend(request(READ, 0, 2, SPLICED, 200_000));
    std::io::Write::write_all(&mut output, &script).unwrap();
    let mut answer = vec![0; 18 + 10 + 2 * (16 + 200_000)];
    let answer = soon("both replies arrive", move || {
        std::io::Read::read_exact(&mut input, &mut answer).unwrap();
        answer
    });
    // Long reads may be answered in any order.
    for answer in answer[28..].chunks(16 + 200_000) {
        assert_eq!(answer[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        assert!(if answer[15] == 2 { answer[16..] == spliced } else { answer[16..].iter().all(|byte| *byte == 0) });
    }
    drop(output);
    running.block_on("the client is served", served).unwrap();
    assert_eq!(running.disk.diary(), ["open ''", "finalize", "close"]);
}

#[test]
fn the_largest_request_is_64_mib() {
    let running = Running::start(Disk::new(65 << 20), ServerOptions::default());
    let mut client = running.client(false);
    let largest = 64u32 << 20;
    let data = vec![0xa5; largest as usize + 1];
    assert_eq!(client.write(1, &data[1..]), 0);
    assert!(client.read(1, largest) == data[1..]);
    assert_eq!(client.error(READ, 0, 0, largest + 1), 12);
    // The server skips a refused payload, and the connection continues.
    assert_eq!(client.write(0, &data), 12);
    assert_eq!(client.read(0, 2), [0, 0xa5]);
    // A payload that is too long to be skipped ends the connection.
    client.request(WRITE, 0, 1, 0, 2 * largest + 1);
    assert!(client.rest().is_empty());
    running.until_all_is_given_back();
}
