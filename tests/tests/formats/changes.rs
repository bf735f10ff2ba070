//! Random changes of several clients at once, up to a number or until the server is killed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Rng, Server};

/// The size of the disk in bytes. It is no multiple of a cluster.
pub const SIZE: usize = (4 << 20) + 512;
/// Clients share the disk in blocks of so many bytes, so most clusters have bytes of several.
const BLOCK: usize = 3000;
const CLIENTS: u64 = 4;

/// What a client did.
pub struct Done {
    /// The bytes that it wrote, and where. All were acknowledged.
    writes: Vec<(usize, Vec<u8>)>,
    /// What it may or may not have done.
    pub unknown: Option<Range<usize>>,
}

/// Sends a request. False if the server is gone.
fn ask(client: &mut Client, kind: u16, offset: usize, length: usize, data: &[u8]) -> bool {
    let sent = client.submit(kind, 0, offset as u64, length as u32, data);
    let Ok(reply) = sent.and_then(|_| client.receive()) else { return false };
    assert_eq!(reply.result, Ok(Vec::new()), "request {kind} of {length} bytes at {offset}");
    true
}

/// Makes up to `count` random changes in the blocks of client `number`. It ends with the server.
fn changes(mut client: Client, number: u64, seed: u64, count: u64, acknowledged: &AtomicU64) -> Done {
    let mut rng = Rng::new(seed ^ number << 32);
    let mut done = Done { writes: Vec::new(), unknown: None };
    for _ in 0..count {
        let block = rng.below((SIZE / BLOCK) as u64 / CLIENTS) * CLIENTS + number;
        let start = rng.below(BLOCK as u64 - 1);
        let length = 1 + rng.below(BLOCK as u64 - start);
        let (offset, length) = (block as usize * BLOCK + start as usize, length as usize);
        let (is_answered, bytes) = match rng.below(10) {
            0 => (ask(&mut client, cmd::FLUSH, 0, 0, &[]), Vec::new()),
            1 | 2 => (ask(&mut client, cmd::WRITE_ZEROES, offset, length, &[]), vec![0; length]),
            _ => {
                let bytes = vec![1 + rng.below(255) as u8; length];
                (ask(&mut client, cmd::WRITE, offset, length, &bytes), bytes)
            }
        };
        if !is_answered {
            done.unknown = Some(offset..offset + bytes.len());
            break;
        }
        done.writes.push((offset, bytes));
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    done
}

/// Makes on `disk` what was acknowledged.
pub fn apply(done: &[Done], disk: &mut [u8]) {
    for (offset, bytes) in done.iter().flat_map(|done| &done.writes) {
        disk[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Lets clients make up to `count` changes each. `meanwhile` runs beside them and gets how many
/// were acknowledged.
fn run(clients: Vec<Client>, seed: u64, count: u64, meanwhile: impl FnOnce(&AtomicU64)) -> Vec<Done> {
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let begin = |(number, client)| {
            let acknowledged = &acknowledged;
            scope.spawn(move || changes(client, number, seed, count, acknowledged))
        };
        let clients: Vec<_> = (0..).zip(clients).map(begin).collect();
        meanwhile(&acknowledged);
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

fn clients(server: &Server) -> Vec<Client> {
    (0..CLIENTS).map(|_| server.client()).collect()
}

/// Lets all clients make `count` changes each.
pub fn by_clients(server: &Server, seed: u64, count: u64) -> Vec<Done> {
    run(clients(server), seed, count, |_| {})
}

/// Lets all clients make changes, and kills the server after `until` of them.
pub fn until_killed(server: Server, seed: u64, until: u64) -> Vec<Done> {
    run(clients(&server), seed, u64::MAX, |acknowledged| {
        server.wait_until("the changes before the kill", |_| acknowledged.load(Ordering::SeqCst) >= until);
        server.kill();
    })
}

/// Checks that the disk has all that was acknowledged. `expected` is what it had before.
///
/// # Panics
/// If it does not. The message has the first offset.
pub fn assert_kept(done: &[Done], expected: &mut [u8], mut after: Vec<u8>, what: &str) {
    apply(done, expected);
    for range in done.iter().filter_map(|done| done.unknown.clone()) {
        after[range.clone()].copy_from_slice(&expected[range]);
    }
    let differs = after.iter().zip(&*expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first offset that differs");
}
