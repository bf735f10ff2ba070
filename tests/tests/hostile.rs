//! Clients that break the protocol. Each gets an error or is disconnected, and no other client
//! notices.

use std::io::Write;
use std::net::Shutdown;

use rbdkit_tests::raw::{self, IHAVEOPT, NBDMAGIC, Stream, can, cmd, error, flag, opt, rep};
use rbdkit_tests::server::program;
use rbdkit_tests::{Client, Launch, Rng, Server, seed};

const SIZE: u64 = 16 << 20;

/// A server with filters, and a well-behaved client that stays connected.
struct Victim {
    server: Server,
    bystander: Client,
}

impl Victim {
    fn new() -> Victim {
        Victim::with(&["--filter=nofilter", "--filter=readahead", "--filter=cow", "memory", "16M"])
    }

    fn with(arguments: &[&str]) -> Victim {
        let server = Server::start(arguments);
        let mut bystander = server.client();
        bystander.write(0, b"untouched").expect("a write");
        Victim { server, bystander }
    }

    fn greeted(&self) -> Stream {
        let mut stream = Stream::connect(self.server.socket());
        stream.greet(3).expect("a greeting");
        stream
    }

    /// Checks that the bystander and a new client are served, and that the server's memory has not
    /// grown.
    fn unharmed(mut self) {
        assert_eq!(self.bystander.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
        let mut other = self.server.client();
        assert_eq!(other.size, SIZE);
        assert_eq!(other.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
        other.disconnect();
        self.bystander.disconnect();
        let outcome = self.server.stop();
        assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
    }
}

#[test]
fn a_client_that_is_not_an_nbd_client_is_cut_off() {
    let victim = Victim::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 64], &NBDMAGIC.to_be_bytes()] {
        let mut stream = Stream::connect(victim.server.socket());
        stream.send(bytes).expect("bytes");
        stream.0.shutdown(Shutdown::Write).expect("shutdown");
        stream.drain();
    }
    victim.unharmed();
}

#[test]
fn client_flags_that_do_not_exist_are_refused() {
    let victim = Victim::new();
    let mut stream = Stream::connect(victim.server.socket());
    stream.greet(0xffff_ffff).expect("a greeting");
    assert!(stream.is_closed());
    victim.unharmed();
}

#[test]
fn requests_before_negotiation_are_cut_off() {
    let victim = Victim::new();
    let mut stream = victim.greeted();
    stream.request(0, cmd::READ, 1, 0, 512).expect("a request");
    assert!(stream.is_closed());
    victim.unharmed();
}

#[test]
fn an_option_that_does_not_exist_is_unsupported_and_the_next_one_works() {
    let victim = Victim::new();
    let mut stream = victim.greeted();
    for option in [0, 4, 12, 77, u32::MAX] {
        stream.option(option, b"whatever").expect("an option");
        assert_eq!(stream.option_replies(option).expect("a reply").0, rep::ERR_UNSUP, "option {option}");
    }
    stream.option(opt::LIST, &[]).expect("LIST");
    assert_eq!(stream.option_replies(opt::LIST).expect("replies").0, rep::ACK);
    victim.unharmed();
}

#[test]
fn an_option_of_absurd_length_costs_nothing() {
    let victim = Victim::new();
    let before = victim.server.resident();
    for length in [u32::MAX, 1 << 31, 1 << 24, 70_000] {
        for option in [opt::EXPORT_NAME, opt::LIST, opt::GO, opt::SET_META_CONTEXT, 99] {
            let mut stream = victim.greeted();
            stream.option_header(option, length).expect("a head");
            // The server may refuse the option before all data is sent, or because the data ends
            // too early.
            if stream.send(&[0; 1000]).is_ok() && stream.0.shutdown(Shutdown::Write).is_ok() {
                stream.drain();
            }
        }
    }
    let grown = victim.server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    victim.unharmed();
}

#[test]
fn an_option_with_malformed_data_is_invalid_and_the_next_one_works() {
    let victim = Victim::new();
    let mut stream = victim.greeted();
    stream.option(opt::STRUCTURED_REPLY, &[]).expect("STRUCTURED_REPLY");
    assert_eq!(stream.option_reply(opt::STRUCTURED_REPLY).expect("a reply").0, rep::ACK);
    let long_name = [&u32::MAX.to_be_bytes()[..], b"x"].concat();
    let many_infos = [&0u32.to_be_bytes()[..], &u16::MAX.to_be_bytes(), &[0, 3]].concat();
    let many_queries = [&0u32.to_be_bytes()[..], &u32::MAX.to_be_bytes(), &[0; 4]].concat();
    let long_query = [&0u32.to_be_bytes()[..], &1u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    for (option, data) in [
        (opt::GO, &b""[..]),
        (opt::GO, &[0; 3]),
        (opt::GO, &[0; 5]),
        (opt::GO, &long_name),
        (opt::GO, &many_infos),
        (opt::INFO, &long_name),
        (opt::INFO, &[0; 7]),
        (opt::LIST, b"data"),
        (opt::STRUCTURED_REPLY, b"data"),
        (opt::SET_META_CONTEXT, b""),
        (opt::SET_META_CONTEXT, &long_name),
        (opt::SET_META_CONTEXT, &many_queries),
        (opt::SET_META_CONTEXT, &long_query),
        (opt::LIST_META_CONTEXT, &long_query),
        (opt::LIST_META_CONTEXT, &[0; 9]),
    ] {
        stream.option(option, data).expect("an option");
        let (answer, _) = stream.option_replies(option).unwrap_or_else(|error| panic!("{option} {data:?}: {error}"));
        assert!(matches!(answer, rep::ERR_INVALID | rep::ERR_TOO_BIG), "{option} {data:?}: {answer:#x}");
    }
    stream.option(opt::GO, &raw::go("", &[])).expect("GO");
    assert_eq!(stream.option_replies(opt::GO).expect("replies").0, rep::ACK);
    victim.unharmed();
}

#[test]
fn meta_contexts_need_structured_replies() {
    let victim = Victim::new();
    let mut stream = victim.greeted();
    stream.option(opt::SET_META_CONTEXT, &raw::contexts("", &["base:allocation"])).expect("an option");
    assert_eq!(stream.option_replies(opt::SET_META_CONTEXT).expect("a reply").0, rep::ERR_INVALID);
    victim.unharmed();
}

#[test]
fn names_that_are_not_text_or_too_long_do_no_harm() {
    let victim = Victim::new();
    for name in [&b"\xff\xfe"[..], b"\0", b"../../etc/passwd", &[b'x'; 4096], &[b'x'; 5000], b"\n\x1b[31m"] {
        for option in [opt::GO, opt::INFO, opt::EXPORT_NAME] {
            let mut stream = victim.greeted();
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(name);
            data.extend_from_slice(&[0, 0]);
            let data = if option == opt::EXPORT_NAME { name } else { &data };
            stream.option(option, data).expect("an option");
            stream.0.shutdown(Shutdown::Write).expect("shutdown");
            stream.drain();
        }
    }
    victim.unharmed();
}

#[test]
fn export_name_works_with_and_without_zeroes() {
    let victim = Victim::new();
    for (client_flags, padding) in [(3, 0), (1, 124)] {
        let mut stream = Stream::connect(victim.server.socket());
        stream.greet(client_flags).expect("a greeting");
        stream.option(opt::EXPORT_NAME, &[]).expect("EXPORT_NAME");
        assert_eq!(stream.u64().expect("a size"), SIZE);
        assert_ne!(stream.u16().expect("flags") & can::FLUSH, 0);
        assert_eq!(stream.bytes(padding).expect("padding"), vec![0; padding]);
        stream.request(0, cmd::READ, 7, 0, 9).expect("a request");
        assert_eq!(stream.u32().expect("a reply"), raw::SIMPLE_REPLY);
        assert_eq!((stream.u32().expect("an error"), stream.u64().expect("a cookie")), (0, 7));
        assert_eq!(stream.bytes(9).expect("data"), b"untouched");
    }
    victim.unharmed();
}

/// The client does not read the replies. The server disconnects it or stops reading.
#[test]
fn options_without_end_cost_nothing() {
    let victim = Victim::new();
    let before = victim.server.resident();
    let mut stream = victim.greeted();
    let timeout = std::time::Duration::from_millis(500);
    stream.0.set_write_timeout(Some(timeout)).expect("a timeout");
    let mut options = Vec::new();
    for _ in 0..1000 {
        options.extend_from_slice(&IHAVEOPT.to_be_bytes());
        options.extend_from_slice(&opt::LIST.to_be_bytes());
        options.extend_from_slice(&0u32.to_be_bytes());
    }
    for _ in 0..1000 {
        if stream.send(&options).is_err() {
            break;
        }
    }
    let grown = victim.server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    drop(stream);
    victim.unharmed();
}

#[test]
fn half_a_header_and_then_silence_hurts_nobody() {
    let victim = Victim::new();
    let files = victim.server.open_files();
    let silent: Vec<Stream> = (0..20)
        .map(|nth| {
            if nth % 2 == 0 {
                let mut stream = victim.greeted();
                stream.send(&IHAVEOPT.to_be_bytes()[..5]).expect("half an option");
                stream
            } else {
                let mut stream = victim.server.client().into_stream();
                stream.send(&raw::request(0, cmd::WRITE, 1, 4096, 65536)[..17]).expect("half a request");
                stream
            }
        })
        .collect();
    let mut other = victim.server.client();
    assert_eq!(other.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
    other.disconnect();
    drop(silent);
    victim.server.wait_until("all their connections are closed", |server| server.open_files() <= files);
    victim.unharmed();
}

#[test]
fn a_disconnect_in_the_middle_of_a_write_hurts_nobody() {
    let victim = Victim::new();
    let files = victim.server.open_files();
    for length in [0usize, 1, 4096, 100_000] {
        for _ in 0..10 {
            let mut stream = victim.server.client().into_stream();
            stream.request(0, cmd::WRITE, 1, 1 << 20, 200_000).expect("a request");
            stream.send(&vec![0xbb; length]).expect("a part");
            drop(stream);
        }
    }
    // Clients that go without waiting for the replies to requests in flight.
    for _ in 0..10 {
        let mut client = victim.server.client();
        for nth in 0..4 {
            client.submit(cmd::READ, 0, nth * 4096, 65536, &[]).expect("a request");
            client.submit(cmd::WRITE, 0, (2 << 20) + nth * 4096, 4096, &[1; 4096]).expect("a request");
        }
        drop(client);
    }
    victim.server.wait_until("all their connections are closed", |server| server.open_files() <= files);
    victim.unharmed();
}

#[test]
fn requests_out_of_range_are_refused_and_the_connection_lives() {
    let victim = Victim::new();
    let mut client = victim.server.client();
    for (kind, offset, length) in [
        (cmd::READ, SIZE, 1),
        (cmd::READ, SIZE - 1, 2),
        (cmd::READ, u64::MAX, 1),
        (cmd::READ, u64::MAX - 511, 512),
        (cmd::READ, 1 << 63, 512),
        (cmd::READ, 0, 0),
        (cmd::READ, 0, u32::MAX),
        (cmd::TRIM, u64::MAX - 1, u32::MAX),
        (cmd::CACHE, SIZE, 1),
        (cmd::BLOCK_STATUS, SIZE, 1),
        (cmd::BLOCK_STATUS, 0, 0),
        (cmd::BLOCK_STATUS, u64::MAX, u32::MAX),
    ] {
        let result = client.call(kind, 0, offset, length, &[]).result;
        assert!(matches!(result, Err(error::EINVAL | error::EOVERFLOW)), "{kind} {offset} {length}: {result:?}");
    }
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
        let result = client.call(cmd::WRITE_ZEROES, 0, offset, length, &[]).result;
        assert_eq!(result, Err(error::ENOSPC), "zero {offset} {length}");
    }
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1)] {
        let result = client.call(cmd::WRITE, 0, offset, length, &vec![0; length as usize]).result;
        assert_eq!(result, Err(error::ENOSPC), "write {offset} {length}");
    }
    client.disconnect();
    victim.unharmed();
}

#[test]
fn requests_and_flags_that_do_not_exist_are_invalid_and_the_connection_lives() {
    let victim = Victim::new();
    let mut client = victim.server.client();
    for kind in [8, 9, 0x7fff, 0xffff] {
        assert_eq!(client.call(kind, 0, 0, 512, &[]).result, Err(error::EINVAL), "request {kind}");
    }
    for flags in [0x20, 0x8000, 0xffff] {
        assert_eq!(client.call(cmd::READ, flags, 0, 512, &[]).result, Err(error::EINVAL), "flags {flags:#x}");
        assert_eq!(client.call(cmd::TRIM, flags, 0, 512, &[]).result, Err(error::EINVAL), "flags {flags:#x}");
    }
    assert_eq!(client.call(cmd::READ, flag::NO_HOLE, 0, 512, &[]).result, Err(error::EINVAL));
    assert_eq!(client.call(cmd::WRITE, flag::REQ_ONE, 0, 4, b"data").result, Err(error::EINVAL));
    assert_eq!(client.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
    client.disconnect();
    victim.unharmed();
}

#[test]
fn a_write_of_absurd_length_is_refused_without_memory() {
    let victim = Victim::new();
    let before = victim.server.resident();
    for length in [u32::MAX, 1 << 31, (64 << 20) + 1] {
        let mut stream = victim.server.client().into_stream();
        stream.request(0, cmd::WRITE, 1, 0, length).expect("a request");
        let _ = stream.send(&[0; 4096]);
        let _ = stream.0.shutdown(Shutdown::Write);
        stream.drain();
    }
    let grown = victim.server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    victim.unharmed();
}

#[test]
fn a_request_with_wrong_magic_is_cut_off() {
    let victim = Victim::new();
    let mut stream = victim.server.client().into_stream();
    stream.send(&[0x42; 28]).expect("bytes");
    assert!(stream.is_closed());
    victim.unharmed();
}

/// A thousand requests of 1 MiB each: the server holds no more for them than its ceiling.
#[test]
fn a_client_that_sends_and_never_reads_costs_what_the_ceiling_says() {
    for arguments in [&["memory", "16M"][..], &["--filter=readahead", "--filter=cow", "memory", "16M"]] {
        let victim = Victim::with(arguments);
        let before = victim.server.resident();
        let mut greedy: Vec<Stream> = (0..4).map(|_| victim.server.client().into_stream()).collect();
        for stream in &mut greedy {
            stream.0.set_write_timeout(Some(std::time::Duration::from_millis(200))).expect("a timeout");
            for nth in 0..1000u64 {
                if stream.request(0, cmd::READ, nth, (nth % 15) << 20, 1 << 20).is_err() {
                    break;
                }
            }
        }
        let grown = victim.server.resident().saturating_sub(before);
        println!("{arguments:?}: {} KiB for four clients that do not read", grown >> 10);
        assert!(grown < 300 << 20, "{grown} bytes more");
        let mut other = victim.server.client();
        assert_eq!(other.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
        other.disconnect();
        drop(greedy);
        victim.unharmed();
    }
}

/// The payloads are announced and do not come. Other clients are served all the same.
#[test]
fn clients_that_announce_large_writes_and_stop_cost_what_the_ceiling_says() {
    let victim = Victim::new();
    let before = victim.server.resident();
    let stalled: Vec<Stream> = (0..100)
        .map(|_| {
            let mut stream = victim.server.client().into_stream();
            stream.request(0, cmd::WRITE, 1, 0, 16 << 20).expect("a request");
            stream.send(&[1; 100]).expect("a beginning");
            stream
        })
        .collect();
    let mut other = victim.server.client();
    other.write(1 << 20, &[2; 65536]).expect("a write");
    other.disconnect();
    let grown = victim.server.resident().saturating_sub(before);
    println!("{} KiB for a hundred announced writes of 16 MiB", grown >> 10);
    // 512 MiB of payloads for the whole server, and a little for everything around them.
    assert!(grown < 560 << 20, "{grown} bytes more");
    drop(stalled);
    victim.unharmed();
}

#[test]
fn a_thousand_idle_clients_cost_what_the_ceiling_says() {
    let victim = Victim::new();
    let (before, files) = (victim.server.resident(), victim.server.open_files());
    let idle: Vec<Client> = (0..1000).map(|_| victim.server.client()).collect();
    let grown = victim.server.resident().saturating_sub(before);
    println!("{} KiB for a thousand idle clients through three filters", grown >> 10);
    assert!(grown < 128 << 20, "{grown} bytes more");
    let mut other = victim.server.client();
    assert_eq!(other.read(0, 9).as_deref(), Ok(&b"untouched"[..]));
    other.disconnect();
    drop(idle);
    victim.server.wait_until("all their connections are closed", |server| server.open_files() <= files);
    victim.unharmed();
}

/// A whole session with some of its bytes changed by seed. Whatever the server makes of it, the
/// server goes on and other clients notice nothing.
#[test]
fn mutilated_sessions_hurt_nobody() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let victim = Victim::with(&["--filter=nofilter", "--filter=readahead", "--filter=cow", "memory", "16M"]);
    let session = session();
    let mut rng = Rng::new(seed);
    for _ in 0..500 {
        let mut bytes = session.clone();
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(4) {
                0 => bytes[at] ^= 1 << rng.below(8),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][rng.below(4) as usize],
                2 => bytes.truncate(at.max(1)),
                _ => drop(bytes.drain(at..(at + 1 + rng.below(8) as usize).min(bytes.len()))),
            }
            if bytes.is_empty() {
                break;
            }
        }
        // A write to the first block would change what the bystander expects there.
        let mut stream = Stream::connect(victim.server.socket());
        let _ = stream.0.write_all(&bytes);
        let _ = stream.0.shutdown(Shutdown::Write);
        stream.drain();
    }
    let Victim { server, mut bystander } = victim;
    assert!(bystander.read(0, 9).is_ok());
    assert!(server.client().read(0, 9).is_ok());
    bystander.disconnect();
    assert!(server.stop().status.success());
}

fn session() -> Vec<u8> {
    let option = |option: u32, data: &[u8]| {
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(opt::STRUCTURED_REPLY, &[]));
    bytes.extend(option(opt::LIST, &[]));
    bytes.extend(option(opt::LIST_META_CONTEXT, &raw::contexts("", &[])));
    bytes.extend(option(opt::SET_META_CONTEXT, &raw::contexts("", &["base:allocation"])));
    bytes.extend(option(opt::INFO, &raw::go("", &[1, 2, 3])));
    bytes.extend(option(opt::GO, &raw::go("", &[3])));
    bytes.extend(raw::request(0, cmd::READ, 1, 0, 4096));
    bytes.extend(raw::request(flag::FUA, cmd::WRITE, 2, 1 << 20, 512));
    bytes.extend([7; 512]);
    bytes.extend(raw::request(0, cmd::BLOCK_STATUS, 3, 0, 1 << 20));
    bytes.extend(raw::request(flag::NO_HOLE, cmd::WRITE_ZEROES, 4, 2 << 20, 65536));
    bytes.extend(raw::request(0, cmd::TRIM, 5, 2 << 20, 65536));
    bytes.extend(raw::request(0, cmd::CACHE, 6, 0, 65536));
    bytes.extend(raw::request(0, cmd::FLUSH, 7, 0, 0));
    bytes.extend(raw::request(flag::DF, cmd::READ, 8, 1 << 20, 4096));
    bytes.extend(raw::request(0, cmd::DISC, 9, 0, 0));
    bytes
}

#[test]
fn clients_that_list_many_exports_and_do_not_read_share_one_list() {
    const CLIENTS: usize = 300;
    let server = Server::start([
        "eval",
        "thread_model=echo parallel",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "list_exports=seq -f 'export number %.0f of a list that is long' 1 10000",
    ]);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = Stream::connect(server.socket());
        stream.greet(3).expect("a greeting");
        stream.option(opt::LIST, &[]).expect("LIST");
        // Its list is being sent.
        stream.option_reply(opt::LIST).expect("the first export");
        clients.push(stream);
    }
    // A list takes 1.5 MiB. Each for itself, they would take 450 MiB.
    let resident = server.resident();
    assert!(resident < 64 << 20, "{resident} bytes");
    // A client that reads gets its list, and one that reads late gets all of it.
    for nth in [CLIENTS - 1, 0] {
        let mut stream = clients.swap_remove(nth);
        let (end, listed) = stream.option_replies(opt::LIST).expect("the rest");
        assert_eq!((end, listed.len()), (rep::ACK, 9999));
    }
    drop(clients);
    assert!(server.stop().status.success());
}

/// Starts the program with a limit of 256 file descriptors.
const FEW_DESCRIPTORS: &str = r#"ulimit -n 256; exec "$PROGRAM" "$@""#;

#[test]
fn idle_connections_leave_descriptors_for_the_first_write_of_another_client() {
    let server = Launch::new(["--filter=cow", "memory", "16M"])
        .program("/bin/sh".into())
        .socket_options(&["-c", FEW_DESCRIPTORS, "sh", "-f", "-U"], "-P")
        .env("PROGRAM", program())
        .start();
    let mut client = server.client();
    // Beyond the limit they wait for a greeting, or are disconnected.
    let idle: Vec<Stream> = (0..300).map(|_| Stream::connect(server.socket())).collect();
    server.wait_for_log("refused: its peer has its share");
    assert_eq!(client.write(0, b"kept"), Ok(()));
    assert_eq!(client.read(0, 4).as_deref(), Ok(&b"kept"[..]));
    drop(idle);
    assert_eq!(server.client().read(0, 4).as_deref(), Ok(&b"kept"[..]));
    client.disconnect();
    assert!(server.stop().status.success());
}
