//! Clients that misbehave, and the limits.

use std::io::{ErrorKind, Read, Write};

use super::client::*;
use super::plugin::{PLAIN, WAITS};
use super::*;
use crate::trim;

#[test]
fn nonsense_ends_the_connection_and_no_other() {
    let running = Running::plain();
    let mut other = running.client(true);
    let mut option = b"IHAVEOPT".to_vec();
    option.extend([0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]);
    let mut options_first = 3u32.to_be_bytes().to_vec();
    options_first.extend(&option);
    for nonsense in [
        // Requests before negotiation.
        request(READ, 0, 1, 0, 512),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [3u32.to_be_bytes().as_slice(), b"IHAVEOPTIONS and more"].concat(),
        options_first,
        [0xff; 4].to_vec(),
    ] {
        let mut client = running.connect();
        client.send(&nonsense);
        assert_eq!(client.rest().len(), 18, "{nonsense:?}");
    }
    for nonsense in [vec![0; 28], request(READ, 0, 1, 0, 512)[1..].to_vec(), b"IHAVEOPT".to_vec()] {
        let mut client = running.client(false);
        client.send(&nonsense);
        assert!(client.rest().is_empty(), "{nonsense:?}");
    }
    assert_eq!(other.read(PLAIN, 512), vec![0; 512]);
    drop(other);
    running.until_all_is_given_back();
}

#[test]
fn a_disconnect_in_the_middle_of_a_write_writes_nothing() {
    let running = Running::plain();
    for sent in [0, 1, 27, 28, 29, 5000, 300_000] {
        let mut client = running.client(true);
        let mut message = request(WRITE, 0, 1, 0, 1 << 20);
        message.resize(28 + (1 << 20), 0xbb);
        client.send(&message[..sent]);
        drop(client);
    }
    running.until_all_is_given_back();
    assert!(running.disk.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn half_a_handshake_and_then_silence_is_closed() {
    let running =
        Running::limited(ServerLimits { handshake_timeout: Duration::from_millis(50), ..ServerLimits::default() });
    for sent in [&b""[..], b"\0\0", b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0"] {
        let mut client = running.connect();
        client.send(sent);
        assert_eq!(client.rest().len(), 18);
    }
    running.until_all_is_given_back();
    // In the transmission phase there is no time limit.
    let mut client = running.client(false);
    client.send(&request(READ, 0, 1, 0, 8)[..9]);
    let idle_since = std::time::Instant::now();
    while idle_since.elapsed() < Duration::from_millis(200) {
        assert_eq!(running.open_connections(), 1);
        std::thread::yield_now();
    }
    client.send(&request(READ, 0, 1, 0, 8)[9..]);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
}

#[test]
fn the_whole_negotiation_has_one_limit_however_busy_the_client_is() {
    let limit = Duration::from_secs(1);
    let running = Running::limited(ServerLimits { negotiation_timeout: Some(limit), ..ServerLimits::default() });
    let mut client = running.connect();
    client.greet(3);
    let began = std::time::Instant::now();
    // An option that does not exist, again and again.
    let option = [&b"IHAVEOPT"[..], &99_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    let mut options = 0;
    let ended = loop {
        let mut answer = [0; 64];
        match client.stream.write_all(&option).and_then(|()| client.stream.read(&mut answer)) {
            Ok(0) | Err(_) => break began.elapsed(),
            Ok(_) => options += 1,
        }
        #[allow(clippy::disallowed_methods, reason = "a client that takes its time: the number of options is limited")]
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended >= limit && options > 0, "{options} options in {ended:?}");
    running.until_all_is_given_back();
    // A client that has negotiated may be idle.
    let mut client = running.client(false);
    let idle_since = std::time::Instant::now();
    while idle_since.elapsed() < limit + limit / 10 {
        assert_eq!(running.open_connections(), 1);
        std::thread::yield_now();
    }
    assert_eq!(client.read(PLAIN, 512), vec![0; 512]);
}

#[test]
fn an_open_that_is_late_ends_the_negotiation_and_is_undone() {
    let limit = Duration::from_secs(1);
    let running = Running::limited(ServerLimits { negotiation_timeout: Some(limit), ..ServerLimits::default() });
    let mut client = running.connect();
    client.greet(3);
    client.send_option(7, &go("hangs", &[]));
    assert!(client.rest().is_empty());
    // The client's place is free, although the plugin still opens.
    running.until_all_is_given_back();
    assert_eq!(running.disk.diary(), ["open hangs"]);
    running.disk.gate.add_permits(1);
    running.until("what was opened is closed", || running.disk.diary().iter().any(|entry| entry == "close"));
}

#[test]
fn an_oldstyle_client_begins_with_requests() {
    let running = Running::with(ServerOptions { oldstyle: true, ..ServerOptions::default() });
    let mut silent = running.connect();
    assert_eq!(silent.take(16)[8..], 0x0000_4202_8186_1253_u64.to_be_bytes());
    let mut client = running.connect();
    let rest = client.take(152);
    assert_eq!(rest[16..24], (8_u64 << 20).to_be_bytes());
    assert!(rest[28..].iter().all(|byte| *byte == 0));
    assert_eq!(client.read(PLAIN, 512), vec![0; 512]);
    // Options are no requests.
    client.send(b"IHAVEOPT\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0");
    assert!(client.rest().is_empty());
    drop(silent);
    running.until_all_is_given_back();
}

/// Sends until the server takes no more. Returns how many messages it took. Fails if the server
/// never stops taking them.
fn flood(client: &mut Client, message: &[u8]) -> usize {
    client.stream.set_nonblocking(true).unwrap();
    let (mut sent, mut full_since) = (0, None::<std::time::Instant>);
    loop {
        match client.stream.write(message) {
            Ok(count) => {
                assert_eq!(count, message.len());
                (sent, full_since) = (sent + 1, None);
                assert!(sent < 1_000_000, "the server takes more and more requests");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let since = full_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > Duration::from_millis(300) {
                    client.stream.set_nonblocking(false).unwrap();
                    return sent;
                }
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_client_that_never_reads_stops_at_its_ceiling() {
    let limits = ServerLimits { bytes_in_all: 256 << 20, bytes_per_connection: 64 << 20, ..ServerLimits::default() };
    let running = Running::limited(limits.clone());
    let mut client = running.client(false);
    flood(&mut client, &request(READ, 0, 1, PLAIN, 1 << 20));
    running.until("the ceiling is reached", || running.taken_bytes() == limits.bytes_per_connection);
    // Replies in the socket's buffer count as written, so some more reads may begin.
    let reads = || running.disk.reads.load(Ordering::SeqCst);
    running.until("what holds bytes has begun", || reads() >= 64);
    assert!(reads() < 70, "{}", reads());
    assert_eq!(running.taken_bytes(), limits.bytes_per_connection);
    // Small requests stop at the limit on their number.
    let mut second = running.client(false);
    flood(&mut second, &request(READ, 0, 1, WAITS, 1));
    // Reads of the first client may still begin; this counts only those of the second.
    let begun = || running.disk.diary().iter().filter(|entry| *entry == "read waits").count();
    running.until("all have begun", || begun() >= limits.requests_per_connection);
    assert_eq!(begun(), limits.requests_per_connection);
    assert_eq!(running.client(true).read(PLAIN, 512), vec![0; 512]);
    running.disk.gate.add_permits(1_000_000);
    drop((client, second));
    running.until_all_is_given_back();
}

/// Clients that ask for 128 MiB each and take no replies.
fn hogs(running: &Running, count: usize) -> Vec<Client> {
    let mut hogs: Vec<Client> = (0..count).map(|_| running.client(false)).collect();
    for hog in &mut hogs {
        for _ in 0..2 {
            hog.request(READ, 0, 1, PLAIN, 64 << 20);
        }
    }
    running.until("no common bytes are left for a hog", || {
        running.server.state.budget.free_common_bytes() < 64 << 20 && running.server.state.budget.waiters() > 0
    });
    hogs
}

#[test]
fn small_requests_do_not_wait_for_those_who_take_no_replies() {
    // A stall that never ends: nobody is disconnected.
    let limits =
        ServerLimits { bytes_in_all: 192 << 20, stall_timeout: Duration::from_secs(3600), ..ServerLimits::default() };
    let running = Running::over(Disk::new(66 << 20), limits);
    let hogs = hogs(&running, 40);
    for _ in 0..3 {
        let mut client = running.client(true);
        for _ in 0..100 {
            assert_eq!(client.read(PLAIN, 4096).len(), 4096);
        }
    }
    // More requests than fit into the first share go through it one after the other.
    let mut deep = running.client(false);
    for cookie in 0..64 {
        deep.request(READ, 0, cookie, PLAIN, 4096);
    }
    for cookie in 0..64 {
        assert_eq!(deep.reply(), Reply::Simple { error: 0, cookie });
        deep.take(4096);
    }
    running.until("only the others are closed", || running.open_connections() == 41);
    drop((hogs, deep));
    running.until_all_is_given_back();
}

#[test]
fn who_asks_for_less_comes_first_and_who_asks_for_more_comes_too() {
    let limits =
        ServerLimits { bytes_in_all: 192 << 20, stall_timeout: Duration::from_secs(3600), ..ServerLimits::default() };
    let running = Running::over(Disk::new(66 << 20), limits);
    let mut hogs = hogs(&running, 3);
    // What is left of the common bytes goes to small requests, although large ones wait.
    let mut small = running.client(false);
    for _ in 0..20 {
        assert_eq!(small.read(PLAIN, 256 << 10).len(), 256 << 10);
    }
    // All large ones are served once their clients take the replies, though small ones keep coming.
    std::thread::scope(|scope| {
        for hog in &mut hogs {
            scope.spawn(move || {
                for _ in 0..2 {
                    assert_eq!(hog.reply(), Reply::Simple { error: 0, cookie: 1 });
                    hog.take(64 << 20);
                }
            });
        }
        for _ in 0..20 {
            assert_eq!(small.read(PLAIN, 1 << 20).len(), 1 << 20);
        }
    });
    drop((hogs, small));
    running.until_all_is_given_back();
}

#[test]
fn a_client_that_keeps_bytes_which_others_need_is_disconnected() {
    let limits =
        ServerLimits { bytes_in_all: 192 << 20, stall_timeout: Duration::from_millis(50), ..ServerLimits::default() };
    let running = Running::over(Disk::new(66 << 20), limits);
    let keep = |command: u16| {
        let mut client = running.client(false);
        client.request(command, 0, 1, PLAIN, 64 << 20);
        client
    };
    // They take no replies, or send no payload; or a byte now and then.
    for (command, slowly) in [(READ, false), (READ, true), (WRITE, false), (WRITE, true)] {
        let mut keeper = keep(command);
        let mut other = keep(command);
        running.until("all common bytes are held", || running.taken_bytes() >= 128 << 20);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while slowly && !stop.load(Ordering::SeqCst) {
                    for client in [&mut keeper, &mut other] {
                        // One of them is disconnected at some time.
                        let _ = match command {
                            READ => client.stream.read(&mut [0]),
                            _ => client.stream.write(&[0]),
                        };
                    }
                    std::thread::yield_now();
                }
            });
            assert_eq!(running.client(true).read(PLAIN, 64 << 20).len(), 64 << 20);
            stop.store(true, Ordering::SeqCst);
        });
        running.until("one is disconnected", || running.open_connections() < 2);
        drop((keeper, other));
        running.until_all_is_given_back();
    }
}

#[test]
fn without_receive_buffers_requests_are_received_header_by_header() {
    let running = Running::limited(ServerLimits { receive_bytes: 0, ..ServerLimits::default() });
    let mut client = running.client(true);
    for (number, length) in [1, 27, 28, 29, 4096, 100_000, 1 << 20].into_iter().enumerate() {
        let data: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
        assert_eq!(client.write(PLAIN + number as u64, &data), 0, "{length}");
        assert_eq!(client.read(PLAIN + number as u64, length as u32), data, "{length}");
    }
    // Many at once, a write beyond the end between them, and a header in two parts.
    let mut messages = Vec::new();
    for cookie in 0..50 {
        messages.extend(request(READ, 0, cookie, PLAIN, 8));
    }
    messages.extend(request(WRITE, 0, 50, 1 << 40, 1000));
    messages.extend([0; 1000]);
    messages.extend(request(FLUSH, 0, 51, 0, 0));
    let half = messages.len() - 10;
    client.send(&messages[..half]);
    client.send(&messages[half..]);
    let mut cookies: Vec<u64> = Vec::new();
    while cookies.len() < 52 {
        match client.reply() {
            Reply::Simple { cookie, .. } => cookies.push(cookie),
            Reply::Chunk { flags, cookie, .. } => cookies.extend((flags & 1 == 1).then_some(cookie)),
        }
    }
    assert_eq!(cookies, (0..52).collect::<Vec<_>>());
    drop(client);
    running.until_all_is_given_back();
}

#[test]
fn a_long_option_that_finds_no_room_ends_only_its_own_connection() {
    let running = Running::limited(ServerLimits { handshake_bytes: 128 << 10, ..ServerLimits::default() });
    let begin = || {
        let mut client = running.connect();
        client.greet(3);
        let mut message = b"IHAVEOPT\0\0\0\x07".to_vec();
        message.extend(20_000u32.to_be_bytes());
        client.send(&message);
        client
    };
    let first = begin();
    running.until("the first has room", || running.server.state.handshakes.used() > 0);
    assert!(begin().rest().is_empty());
    // Short options need no room.
    assert_eq!(running.client(true).read(PLAIN, 512), vec![0; 512]);
    drop(first);
    running.until_all_is_given_back();
    assert_eq!(running.server.state.handshakes.used(), 0);
}

#[test]
fn many_who_compete_for_few_bytes_all_finish() {
    let limits = ServerLimits { bytes_in_all: 64 << 20, ..ServerLimits::default() };
    let running = Running::limited(limits);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut client = running.client(false);
                for _ in 0..4 {
                    // As many requests as the socket takes, then as many replies.
                    for _ in 0..20 {
                        client.request(READ, 0, 1, PLAIN, 3 << 20);
                    }
                    for _ in 0..20 {
                        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
                        client.take(3 << 20);
                    }
                }
            });
        }
    });
    running.until_all_is_given_back();
}

#[test]
fn one_request_at_a_time_if_so_wished() {
    let running = Running::limited(ServerLimits { requests_per_connection: 1, ..ServerLimits::default() });
    let mut client = running.client(false);
    client.request(READ, 0, 1, WAITS, 8);
    client.request(READ, 0, 2, PLAIN, 8);
    running.until("the read waits", || running.disk.diary().len() == 2);
    running.disk.gate.add_permits(1);
    for cookie in [1, 2] {
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie });
        client.take(8);
    }
}

#[test]
fn a_client_beyond_the_limit_waits_until_another_one_of_its_peer_leaves() {
    let running = Running::limited(ServerLimits { connections: 1, ..ServerLimits::default() });
    let first = running.client(false);
    let mut second = running.connect();
    running.until("the second waits", || running.server.state.connections.waiting() == 1);
    assert_eq!(running.open_connections(), 1);
    drop(first);
    second.go("", false);
    assert_eq!(second.read(0, 8), [0; 8]);
}

/// tests/tests/hostile.rs measures what they cost; here other tests use memory as well.
#[test]
fn a_thousand_idle_clients_are_given_back() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let running = Running::plain();
    let mut clients = Vec::new();
    for index in 0..1000 {
        let mut client = running.client(index % 2 == 0);
        assert_eq!(client.read(PLAIN, 4096).len(), 4096);
        // Some send only a part of the next header.
        client.send(&request(READ, 0, 1, 0, 8)[..index % 28]);
        clients.push(client);
    }
    drop(clients);
    running.until_all_is_given_back();
}

#[test]
fn what_a_burst_leaves_behind_is_freed_when_it_is_over() {
    // The interval is shorter than the time for which a thread with a receive buffer waits for the
    // next request. That buffer comes back when nothing else happens.
    let running = Running::limited(ServerLimits { trim_interval: Duration::from_millis(1), ..ServerLimits::default() });
    let pool = running.server.state.chain.pool();
    let mut client = running.client(false);
    for _ in 0..10 {
        for length in [512, 4096, 65536, 1 << 20] {
            assert_eq!(client.read(PLAIN, length).len(), length as usize);
        }
        // The client stays connected. In the later rounds trimming has to be woken first.
        running.until("buffers are freed", || pool.kept() == 0 && running.server.state.receive_pool.kept() == 0);
    }
}

#[test]
fn what_one_request_leaves_behind_is_freed_although_nothing_follows_it() {
    let chain = Chain::new(Vec::new(), "test", Box::new(TestPlugin(Disk::new(4096))), Pool::new());
    let pool = chain.pool().clone();
    let limits = ServerLimits { trim_interval: Duration::from_millis(1), ..ServerLimits::default() };
    let server = Server::new(chain, ServerOptions { limits, ..ServerOptions::default() });
    // The buffer comes back before trimming starts, and there is no activity afterwards.
    drop(pool.take(4096));
    assert_eq!(pool.kept(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let freed = async {
            while pool.kept() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = trim::run(&server.state) => {}
            freed = tokio::time::timeout(Duration::from_secs(20), freed) => freed.expect("the buffer is freed"),
        }
    });
}
