//! Extended headers: lengths of 64 bits from the client down to the plugin, hostile clients, and
//! real programs in both directions.

use rbdkit_tests::raw::{
    Client, Extent, Replies, Reply, Stream, can, cmd, contexts, error, extended_request, flag, go, opt, rep,
};
use rbdkit_tests::{Launch, Server, TempDir, tool};

/// The largest size of an export, in bytes.
const MOST: u64 = i64::MAX as u64;

const GIB: u64 = 1 << 30;

fn long(client: &mut Client, kind: u16, flags: u16, offset: u64, length: u64) -> Result<(), u32> {
    client.call_long(kind, flags, offset, length, &[]).result.map(drop)
}

fn status(client: &mut Client, offset: u64, length: u64, flags: u16) -> Vec<Extent> {
    let reply: Reply = client.call_long(cmd::BLOCK_STATUS, flags, offset, length, &[]);
    reply.result.expect("extents");
    reply.extents
}

fn extent(length: u64, flags: u32) -> Extent {
    Extent { length, flags }
}

#[test]
fn requests_of_8_eib_end_at_once_where_nothing_has_to_be_done() {
    let most = MOST.to_string();
    for words in [&["null", &most][..], &["memory", &most], &["--filter=exportname", "memory", &most]] {
        let server = Server::start(words);
        let mut client = Client::extended(server.socket());
        assert_eq!(client.size, MOST, "{words:?}");
        for kind in [cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(long(&mut client, kind, 0, 0, MOST), Ok(()), "{words:?} {kind}");
            assert_eq!(long(&mut client, kind, flag::FUA, 512, MOST - 512), Ok(()), "{words:?} {kind}");
        }
        assert_eq!(status(&mut client, 0, MOST, 0), [extent(MOST, 3)], "{words:?}");
        assert_eq!(status(&mut client, 4096, 1 << 40, flag::REQ_ONE), [extent(1 << 40, 3)], "{words:?}");
        client.disconnect();
        // With 32 bits the same extent is told in part.
        let mut compact = server.client();
        assert_eq!(compact.extents(0, 512, 0), Ok(vec![extent(0xffff_0000, 3)]), "{words:?}");
        compact.disconnect();
    }
}

#[test]
fn lengths_at_the_edges_are_served_or_refused_and_the_connection_goes_on() {
    let server = Server::start(["memory", "5G"]);
    let mut client = Client::extended(server.socket());
    let max = u64::from(u32::MAX);
    for kind in [cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, cmd::BLOCK_STATUS] {
        for length in [1, max, 1 << 32, (1 << 32) + 1, 5 * GIB] {
            assert_eq!(long(&mut client, kind, 0, 0, length), Ok(()), "{kind} {length}");
        }
        let outside = if kind == cmd::WRITE_ZEROES { error::ENOSPC } else { error::EINVAL };
        for (offset, length) in [
            (0, 0),
            (0, 5 * GIB + 1),
            (GIB, 5 * GIB),
            (5 * GIB, 1),
            (0, 1 << 63),
            (1 << 63, 1 << 63),
            (512, u64::MAX - 511),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(long(&mut client, kind, 0, offset, length), Err(outside), "{kind} {offset} {length}");
        }
    }
    // Data of more than 64 MiB: reads say so, with DF and without.
    for length in [(64 << 20) + 1, max, 1 << 32, 5 * GIB] {
        assert_eq!(long(&mut client, cmd::READ, 0, 0, length), Err(error::EOVERFLOW), "{length}");
        assert_eq!(long(&mut client, cmd::READ, flag::DF, 0, length), Err(error::EOVERFLOW), "{length}");
    }
    for (offset, length) in [(0, 0), (0, 1 << 63), (5 * GIB - 1, 2)] {
        assert_eq!(long(&mut client, cmd::READ, 0, offset, length), Err(error::EINVAL), "{offset} {length}");
    }
    // A write's payload of up to twice that is read and dropped.
    let data = vec![7; (64 << 20) + 512];
    assert_eq!(client.write(0, &data), Err(error::EINVAL));
    assert_eq!(client.write(0, &data[..1 << 20]), Ok(()));
    assert!(client.read(0, 1 << 20).expect("data") == data[..1 << 20]);
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(status(&mut client, 0, 5 * GIB, 0), [extent(1 << 20, 0), extent(5 * GIB - (1 << 20), 3)]);
    // A long zero reaches the data in its middle.
    assert_eq!(long(&mut client, cmd::WRITE_ZEROES, 0, 512, 5 * GIB - 512), Ok(()));
    assert!(client.read(0, 1024).expect("data") == [[7; 512], [0; 512]].concat());
    client.disconnect();
}

#[test]
fn a_file_is_punched_and_zeroed_with_64_bits() {
    let dir = TempDir::new();
    let path = dir.sparse_file("disk", 6 * GIB);
    let server = Launch::new(["file"]).path("file", &path).start();
    let mut client = Client::extended(server.socket());
    for kind in [cmd::TRIM, cmd::WRITE_ZEROES] {
        for at in [0, 3 * GIB, 5 * GIB] {
            assert_eq!(client.write(at, &[7; 65536]), Ok(()));
        }
        assert_eq!(long(&mut client, kind, 0, 4096, 5 * GIB), Ok(()));
        let data = [0, 3 * GIB, 5 * GIB].map(|at| client.read(at, 65536).expect("data"));
        assert!(data[0] == [vec![7; 4096], vec![0; 61440]].concat());
        assert!(data[1] == vec![0; 65536]);
        assert!(data[2] == [vec![0; 4096], vec![7; 61440]].concat());
    }
    client.disconnect();
}

#[test]
fn a_filter_gets_long_requests_in_pieces() {
    let server = Server::start(["--filter=count", "--filter=log", "null", "5G", "logfile=/dev/stderr"]);
    let mut client = Client::extended(server.socket());
    assert_eq!(long(&mut client, cmd::TRIM, 0, 512, 5 * GIB - 512), Ok(()));
    assert_eq!(long(&mut client, cmd::WRITE_ZEROES, 0, 0, 5 * GIB), Ok(()));
    client.disconnect();
    let log = server.stop().stderr;
    let pieces = |name: &str| -> Vec<String> {
        let of = log.lines().filter(|line| line.contains(&format!(" {name} id=")));
        let word = |line: &str, key: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(key)).expect("its number").to_owned()
        };
        of.map(|line| format!("{} {}", word(line, "offset="), word(line, "count="))).collect()
    };
    let rest = ["0x80000000 0x80000000", "0x100000000 0x40000000"];
    assert_eq!(pieces("Trim"), [&["0x200 0x7ffffe00"][..], &rest].concat(), "{log}");
    assert_eq!(pieces("Zero"), [&["0x0 0x80000000"][..], &rest].concat(), "{log}");
}

#[test]
fn a_request_that_would_take_years_ends_when_its_client_leaves() {
    let dir = TempDir::new();
    let mark = dir.join("mark");
    let most = MOST.to_string();
    // A plugin that cannot zero is written to, piece by piece.
    let size = format!("get_size=echo {most}");
    let write = format!("pwrite=cat >/dev/null; echo >>{}", mark.display());
    let server = Server::start(["eval", &size, "pread=head -c $3 /dev/zero", &write]);
    let files = server.open_files();
    let mut client = Client::extended(server.socket());
    assert!(client.can(can::WRITE_ZEROES));
    client.submit_long(cmd::WRITE_ZEROES, 0, 0, MOST, &[]).expect("a request");
    server.wait_until("it has begun", |_| mark.exists());
    drop(client);
    server.wait_until("the connection is closed", |server| server.open_files() == files);
    let mut client = Client::extended(server.socket());
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    // The server stops although one is under way.
    client.submit_long(cmd::WRITE_ZEROES, 0, 0, MOST, &[]).expect("a request");
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn a_fast_zero_that_would_be_slow_is_refused_however_long_it_is() {
    let server = Server::start(["--filter=nozero", "null", "8G", "zeromode=emulate"]);
    let mut client = Client::extended(server.socket());
    assert!(client.can(can::WRITE_ZEROES));
    if client.can(can::FAST_ZERO) {
        assert_eq!(long(&mut client, cmd::WRITE_ZEROES, flag::FAST_ZERO, 0, 8 * GIB), Err(error::ENOTSUP));
    } else {
        assert_eq!(long(&mut client, cmd::WRITE_ZEROES, flag::FAST_ZERO, 0, 8 * GIB), Err(error::EINVAL));
    }
    client.disconnect();
}

#[test]
fn a_client_may_ask_for_one_context_by_number() {
    let server = Server::start(["memory", "8G"]);
    let mut client = Client::extended(server.socket());
    assert!(client.can(can::BLOCK_STATUS_PAYLOAD));
    let context = client.context().expect("base:allocation");
    assert_eq!(client.filtered_extents(0, 8 * GIB, &[context]), Ok(vec![extent(8 * GIB, 3)]));
    for contexts in [&[][..], &[context + 1], &[context, context], &[context, context + 1], &[0; 1000]] {
        assert_eq!(client.filtered_extents(0, GIB, contexts), Err(error::EINVAL), "{contexts:?}");
    }
    assert_eq!(client.filtered_extents(0, 9 * GIB, &[context]), Err(error::EINVAL));
    // An odd length.
    assert_eq!(client.call_long(cmd::BLOCK_STATUS, 0, 0, GIB, &[0; 13]).result, Err(error::EINVAL));
    assert_eq!(client.filtered_extents(0, GIB, &[context]), Ok(vec![extent(8 * GIB, 3)]));
    client.disconnect();

    // Without a context there is nothing to ask for, and compact headers know no payload.
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::EXTENDED_HEADERS, &[]).expect("the option");
    assert_eq!(stream.option_reply(opt::EXTENDED_HEADERS).expect("a reply").0, rep::ACK);
    stream.option(opt::GO, &go("", &[])).expect("GO");
    let (last, replies) = stream.option_replies(opt::GO).expect("replies");
    assert_eq!((last, replies[0].1[10] & 0x10), (rep::ACK, 0), "BLOCK_STATUS_PAYLOAD is not offered");
    assert!(!server.client().can(can::BLOCK_STATUS_PAYLOAD));
}

#[test]
fn a_payload_where_none_belongs_is_dropped_and_one_that_lies_ends_its_connection_alone() {
    let server = Server::start(["memory", "1M"]);
    let mut bystander = Client::extended(server.socket());
    let mut client = Client::extended(server.socket());
    for kind in [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, 8, 77, u16::MAX] {
        for length in [1, 12, 512, 100_000] {
            let reply = client.call_long(kind, 0, 0, 0, &vec![0x21; length]);
            assert_eq!(reply.result, Err(error::EINVAL), "{kind} {length}");
        }
    }
    // The flag without a payload.
    assert_eq!(long(&mut client, cmd::TRIM, flag::PAYLOAD_LEN, 0, 0), Err(error::EINVAL));
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    client.disconnect();

    // A payload that is too long to be dropped, on every command.
    for kind in [cmd::READ, cmd::WRITE, cmd::FLUSH, cmd::TRIM, cmd::BLOCK_STATUS, 99] {
        for length in [(128 << 20) + 1, 1 << 32, (1 << 32) + 512, u64::MAX] {
            let mut stream = Client::extended(server.socket()).into_stream();
            stream.send(&extended_request(flag::PAYLOAD_LEN, kind, 1, 0, length)).expect("a request");
            assert_eq!(stream.drain(), 0, "{kind} {length}");
        }
    }
    // The header of the other kind.
    let mut stream = Client::extended(server.socket()).into_stream();
    stream.request(0, cmd::READ, 1, 0, 512).expect("a request");
    assert_eq!(stream.drain(), 0);
    let mut stream = server.client().into_stream();
    stream.send(&extended_request(0, cmd::READ, 1, 0, 512)).expect("a request");
    assert_eq!(stream.drain(), 0);
    // A payload that does not come: the client leaves in the middle of it.
    for sent in [0, 1, 11] {
        let mut stream = Client::extended(server.socket()).into_stream();
        stream.send(&extended_request(flag::PAYLOAD_LEN, cmd::BLOCK_STATUS, 1, 0, 12)).expect("a request");
        stream.send(&vec![0; sent]).expect("a part of its payload");
        stream.0.shutdown(std::net::Shutdown::Write).expect("the end");
        assert_eq!(stream.drain(), 0);
    }
    assert_eq!(bystander.read(0, 512), Ok(vec![0; 512]));
    bystander.disconnect();
}

#[test]
fn requests_in_flight_are_told_apart() {
    let server = Server::start(["memory", "1M"]);
    let mut client = Client::extended(server.socket());
    let mut expected = std::collections::HashMap::new();
    for nth in 0..64_u32 {
        let at = u64::from(nth) * 4096;
        assert_eq!(client.write(at, &[nth as u8; 4096]), Ok(()));
    }
    for nth in 0..64_u32 {
        let cookie = client.submit(cmd::READ, 0, u64::from(nth) * 4096, 4096, &[]).expect("a request");
        expected.insert(cookie, vec![nth as u8; 4096]);
    }
    while !expected.is_empty() {
        let reply = client.receive().expect("a reply");
        assert!(reply.result.expect("data") == expected.remove(&reply.cookie).expect("once"));
    }
    client.disconnect();
}

#[test]
fn options_are_negotiated_in_every_order() {
    let server = Server::start(["null", "8G"]);
    let begin = || {
        let mut stream = Stream::connect(server.socket());
        stream.greet(3).expect("a greeting");
        stream
    };
    let ask = |stream: &mut Stream, option: u32, data: &[u8]| {
        stream.option(option, data).expect("the option");
        stream.option_replies(option).expect("replies")
    };
    let mut stream = begin();
    let query = contexts("", &["base:allocation"]);
    // LIST and SET want replies in chunks.
    assert_eq!(ask(&mut stream, opt::LIST_META_CONTEXT, &query).0, rep::ERR_INVALID);
    assert_eq!(ask(&mut stream, opt::SET_META_CONTEXT, &query).0, rep::ERR_INVALID);
    assert_eq!(ask(&mut stream, opt::EXTENDED_HEADERS, b"data").0, rep::ERR_INVALID);
    assert_eq!(ask(&mut stream, opt::STRUCTURED_REPLY, &[]).0, rep::ACK);
    assert_eq!(ask(&mut stream, opt::EXTENDED_HEADERS, &[]).0, rep::ACK);
    assert_eq!(ask(&mut stream, opt::EXTENDED_HEADERS, &[]).0, rep::ERR_INVALID);
    assert_eq!(ask(&mut stream, opt::STRUCTURED_REPLY, &[]).0, rep::ERR_EXT_HEADER_REQD);
    assert_eq!(ask(&mut stream, opt::LIST_META_CONTEXT, &contexts("", &["base:", "qemu:", "x-y:z"])).1.len(), 1);
    assert_eq!(ask(&mut stream, opt::SET_META_CONTEXT, &query).1.len(), 1);
    assert_eq!(ask(&mut stream, opt::INFO, &go("", &[])).0, rep::ACK);
    // EXPORT_NAME is not allowed any more.
    stream.option(opt::EXPORT_NAME, b"").expect("the option");
    assert_eq!(stream.drain(), 0);

    let off = Server::start(["--no-sr", "null", "8G"]);
    let mut stream = Stream::connect(off.socket());
    stream.greet(3).expect("a greeting");
    assert_eq!(ask(&mut stream, opt::EXTENDED_HEADERS, &[]).0, rep::ERR_UNSUP);
    assert_eq!(ask(&mut stream, opt::GO, &go("", &[])).0, rep::ACK);
}

#[test]
fn the_nbd_plugin_passes_lengths_on_and_falls_back() {
    let dir = TempDir::new();
    let cases: [(&[&str], bool); 2] = [(&[], true), (&["--no-sr"], false)];
    for (options, extended) in cases {
        let far = Server::start(options.iter().chain(&["-v", "memory", "16G"]));
        let socket = format!("socket={}", far.socket().display());
        let near = Server::start(["nbd", &socket]);
        let mut client = Client::extended(near.socket());
        assert_eq!(client.write(6 * GIB, &[7; 4096]), Ok(()));
        if extended {
            let expected = [extent(6 * GIB, 3), extent(32768, 0), extent(10 * GIB - 32768, 3)];
            assert_eq!(status(&mut client, 0, 16 * GIB, 0), expected);
        }
        assert_eq!(long(&mut client, cmd::WRITE_ZEROES, 0, 0, 16 * GIB), Ok(()));
        assert_eq!(client.read(6 * GIB, 4096), Ok(vec![0; 4096]));
        assert_eq!(long(&mut client, cmd::TRIM, 0, 0, 16 * GIB), Ok(()));
        assert_eq!(long(&mut client, cmd::CACHE, 0, 0, 16 * GIB), Ok(()));
        client.disconnect();
        assert!(near.stop().status.success());
        let outcome = far.stop();
        assert!(outcome.status.success());
        let whole = outcome.stderr.contains("replies Extended");
        assert_eq!(whole, extended, "{}", outcome.stderr);
    }
    drop(dir);
}

/// The version of qemu's programs.
fn qemu_version() -> (u32, u32) {
    let text = tool("qemu-img", ["--version"]).ok();
    let number = text.split_whitespace().nth(2).expect("qemu-img version X.Y.Z");
    let mut parts = number.split('.').map(|part| part.parse::<u32>().expect("a number"));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[test]
fn qemu_as_client_zeroes_and_maps_more_than_4_gib() {
    let server = Server::start(["-v", "memory", "16G"]);
    let uri = server.uri();
    let version = qemu_version();
    let zero = if version >= (8, 2) { "write -z -n 0 12G" } else { "write -z 6G 1G" };
    let commands = ["-c", "write -P 7 6G 64k", "-c", zero, "-c", "read -P 0 6G 64k", "-c", "map"];
    tool("qemu-io", [&["-f", "raw"][..], &commands, &[&uri]].concat()).ok();
    let map = tool("qemu-img", ["map", "-f", "raw", "--output=json", &uri]).ok();
    assert!(map.contains("\"length\": 17179869184"), "{map}");
    let log = server.stop().stderr;
    match version >= (8, 2) {
        true => assert!(log.contains("replies Extended"), "{log}"),
        false => println!("qemu {}.{} is too old for extended headers (8.2 has them)", version.0, version.1),
    }
}

#[test]
fn qemu_as_server_is_asked_with_64_bits() {
    let dir = TempDir::new();
    let path = dir.sparse_file("disk", 16 * GIB);
    let far = Launch::new(["-f", "raw", "-t", "--discard=unmap"]).program("qemu-nbd".into());
    let far = far.socket_options(&["-k"], "--pid-file").arg(&path).start();
    let near = Launch::new(["nbd"]).path("socket", far.socket()).start();
    let mut client = Client::extended(near.socket());
    assert_eq!(client.size, 16 * GIB);
    assert_eq!(client.write(6 * GIB, &[7; 65536]), Ok(()));
    let extents = status(&mut client, 0, 16 * GIB, 0);
    let expected = [extent(6 * GIB, 3), extent(65536, 0), extent(10 * GIB - 65536, 3)];
    let version = qemu_version();
    match version >= (8, 2) {
        true => assert_eq!(extents, expected),
        false => println!("qemu {}.{} is too old for extended headers (8.2 has them)", version.0, version.1),
    }
    assert_eq!(long(&mut client, cmd::WRITE_ZEROES, 0, 4096, 16 * GIB - 4096), Ok(()));
    assert_eq!(client.read(6 * GIB, 65536), Ok(vec![0; 65536]));
    assert_eq!(long(&mut client, cmd::TRIM, 0, 0, 16 * GIB), Ok(()));
    client.disconnect();
    drop(near);
}

#[test]
fn many_clients_with_headers_of_both_kinds_share_a_disk() {
    let server = Server::start(["memory", "1M"]);
    std::thread::scope(|scope| {
        for nth in 0..8_u64 {
            let socket = server.socket();
            scope.spawn(move || {
                let replies = [Replies::Simple, Replies::Structured, Replies::Extended][nth as usize % 3];
                let mut client = Client::negotiate_with(socket, "", replies);
                assert!(client.can(can::MULTI_CONN));
                for round in 0..50_u8 {
                    assert_eq!(client.write(nth * 8192, &[round; 8192]), Ok(()));
                    assert!(client.read(nth * 8192, 8192).expect("data") == [round; 8192]);
                }
                client.disconnect();
            });
        }
    });
}
