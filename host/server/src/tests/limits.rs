//! Clients that misbehave, and the limits.

use std::io::{ErrorKind, Write};

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
    running.until("the ceiling is reached", || {
        running.server.state.budget.free_bytes() == limits.bytes_in_all - limits.bytes_per_connection
    });
    // Replies in the socket's buffer count as written, so some more reads may begin.
    let reads = || running.disk.reads.load(Ordering::SeqCst);
    running.until("what holds bytes has begun", || reads() >= 64);
    assert!(reads() < 70, "{}", reads());
    assert_eq!(running.server.state.budget.free_bytes(), limits.bytes_in_all - limits.bytes_per_connection);
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

#[test]
fn who_sits_on_bytes_that_others_need_is_disconnected() {
    let limits =
        ServerLimits { bytes_in_all: 64 << 20, stall_timeout: Duration::from_millis(50), ..ServerLimits::default() };
    let running = Running::limited(limits.clone());
    // One client does not read its replies, the other does not send its payload.
    let mut lazy = running.client(false);
    flood(&mut lazy, &request(READ, 0, 1, PLAIN, 6 << 20));
    let mut half = running.client(false);
    half.request(WRITE, 0, 1, 0, 4 << 20);
    running.until("all is taken", || running.server.state.budget.free_bytes() == 0);
    assert_eq!(running.client(true).read(PLAIN, 1 << 20).len(), 1 << 20);
    // One of them is disconnected. Which one depends on timing.
    running.until("one is disconnected", || running.open_connections() < 3);
    drop((lazy, half));
    running.until_all_is_given_back();
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
fn clients_beyond_the_limit_wait_to_be_accepted() {
    let running = Running::limited(ServerLimits { connections: 1, ..ServerLimits::default() });
    let first = running.client(false);
    let mut second = running.connect();
    assert_eq!(running.server.state.connection_permits.available_permits(), 0);
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
