//! Fuzzing of handshakes and requests with mutated conversations. [`loader`] fuzzes the loading of
//! filters, [`upstream`] the nbd plugin with its server's replies, [`luks`] the reading of headers
//! of encrypted disks, [`manifest`] what a registry sends, [`record`] the reading of records.
//!
//! The test suite runs a number of rounds; `RBDKIT_FUZZ_SECONDS=600` runs for that long. Two
//! targets take the same conversations. The parsers alone must not panic, must not wait for more
//! than a message can have, and must give the same result whether the input arrives whole or byte
//! by byte. The program must close every such connection, keep nothing of it, and go on serving.
//! `RBDKIT_SEED` repeats a run, and every failure names its input.
#![forbid(unsafe_code)]

#[path = "../tests/untrusted/guest.rs"]
#[expect(dead_code, reason = "the builder of hostile components, of which fuzzing needs few functions")]
mod guest;
mod loader;
mod luks;
mod manifest;
mod record;
mod tls;
mod upstream;

use std::time::{Duration, Instant};

use rbdkit_nbd::{
    Command, Export, FILTER_SIZE, Handshake, HandshakeAction, HandshakeConfig, MAX_OPTION, RequestHeader,
    RequestPayload, Session, TlsPolicy, Violation,
};
use rbdkit_plugin_api::{Capabilities, ExportEntry};
use rbdkit_tests::raw::{Stream, contexts, extended_request, go, request};
use rbdkit_tests::{Rng, Server, seed};

/// How long to go on: a number of rounds, or the time in the environment.
struct Budget {
    rounds: u64,
    until: Option<Instant>,
}

impl Budget {
    fn new(rounds: u64) -> Budget {
        let seconds = std::env::var("RBDKIT_FUZZ_SECONDS").ok();
        let seconds = seconds.map(|text| text.parse().expect("RBDKIT_FUZZ_SECONDS is a number"));
        Budget { rounds, until: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)) }
    }

    fn goes_on(&self, round: u64) -> bool {
        self.until.map_or(round < self.rounds, |until| Instant::now() < until)
    }
}

/// One option as a client sends it.
fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// A conversation without errors, as messages.
fn sensible(rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut messages = vec![vec![0, 0, 0, rng.below(4) as u8]];
    for _ in 0..rng.below(5) {
        messages.push(match rng.below(7) {
            0 => option(3, &[]),
            1 => option(8, &[]),
            2 => option(9, &contexts("", &["base:"])),
            3 => option(10, &contexts("", &["base:allocation"])),
            4 => option(6, &go("", &[0, 1, 2, 3])),
            5 => option(5, &[]),
            _ => option(rng.next_u64() as u32, &[1; 9]),
        });
    }
    let extended = rng.chance(50);
    if extended {
        messages.push(option(11, &[]));
        messages.push(option(10, &contexts("", &["base:allocation"])));
    }
    messages.push(if extended || rng.chance(80) { option(7, &go("", &[3])) } else { option(1, &[]) });
    for cookie in 0..rng.below(8) {
        if extended {
            messages.push(sensible_extended(rng, cookie));
            continue;
        }
        let (kind, flags) = (rng.below(9) as u16, if rng.chance(80) { 0 } else { rng.next_u64() as u16 & 31 });
        let (offset, length) = (rng.below(1 << 20), rng.below(1 << 14) as u32);
        let mut message = request(flags, kind, cookie, offset, length);
        if kind == 1 {
            message.extend(rng.bytes(length as usize));
        }
        messages.push(message);
    }
    messages
}

/// A request with an extended header and its payload.
fn sensible_extended(rng: &mut Rng, cookie: u64) -> Vec<u8> {
    let (kind, flags) = (rng.below(9) as u16, if rng.chance(80) { 0 } else { rng.next_u64() as u16 & 31 });
    let (offset, length) = (rng.below(1 << 20), rng.below(1 << 14));
    let payload = match kind {
        1 => rng.bytes(length as usize),
        7 if rng.chance(50) => [&length.to_be_bytes()[..], &[0, 0, 0, rng.below(3) as u8]].concat(),
        _ if rng.chance(10) => vec![0x21; rng.below(600) as usize],
        _ => return extended_request(flags, kind, cookie, offset, length),
    };
    [extended_request(flags | 32, kind, cookie, offset, payload.len() as u64), payload].concat()
}

/// Values at the limits of what is checked.
const EDGES: [u64; 12] = [
    0,
    1,
    255,
    4096,
    4097,
    MAX_OPTION as u64 + 1,
    (64 << 20) + 1,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 511,
    u64::MAX,
];

/// Puts one of [`EDGES`] in the place of a number of 16, 32 or 64 bits.
fn put_edge(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let value = EDGES[rng.below(EDGES.len() as u64) as usize].to_be_bytes();
    let width = [2, 4, 8][rng.below(3) as usize];
    let end = (at + width).min(bytes.len());
    bytes.splice(at..end, value[8 - width..].iter().copied());
}

fn mutate(rng: &mut Rng, mut messages: Vec<Vec<u8>>) -> Vec<u8> {
    // The order of the messages.
    if rng.chance(20) {
        let (a, b) = (rng.below(messages.len() as u64) as usize, rng.below(messages.len() as u64) as usize);
        messages.swap(a, b);
    }
    if rng.chance(20) {
        let copied = messages[rng.below(messages.len() as u64) as usize].clone();
        messages.insert(rng.below(messages.len() as u64 + 1) as usize, copied);
    }
    let mut bytes = messages.concat();
    for _ in 0..rng.below(6) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            2 => {
                let count = rng.below(9) as usize;
                let inserted = rng.bytes(count);
                bytes.splice(at..at, inserted);
            }
            3 => {
                let end = (at + rng.below(30) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => bytes.truncate(at.max(4)),
            _ => put_edge(rng, &mut bytes, at),
        }
    }
    bytes
}

fn input(rng: &mut Rng) -> Vec<u8> {
    let messages = sensible(rng);
    if rng.chance(3) {
        let len = rng.below(300) as usize;
        return rng.bytes(len);
    }
    mutate(rng, messages)
}

/// What the parsers made of an input.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    requests: Vec<(RequestHeader, bool)>,
    violation: Option<Violation>,
    left: usize,
}

fn parse(input: &[u8], piece: usize) -> Outcome {
    let mut handshake = Handshake::new(HandshakeConfig { tls: TlsPolicy::On, ..HandshakeConfig::default() });
    let mut session = None;
    let mut outcome = Outcome { out: Vec::new(), requests: Vec::new(), violation: None, left: 0 };
    let (mut held, mut skip) = (Vec::new(), 0);
    for piece in input.chunks(piece) {
        held.extend_from_slice(piece);
        loop {
            let mut rest = &held[..];
            let step = match &session {
                None => negotiate(&mut handshake, &mut session, &mut rest, &mut outcome.out),
                Some(session) => take_request(session, &mut rest, &mut skip, &mut outcome.requests),
            };
            let used = held.len() - rest.len();
            held.drain(..used);
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(violation) => {
                    outcome.violation = Some(violation);
                    return outcome;
                }
            }
        }
        let most = if session.is_some() { RequestHeader::MAX_SIZE + FILTER_SIZE } else { 16 + MAX_OPTION as usize };
        assert!(held.len() < most, "{} bytes are held", held.len());
    }
    outcome.left = held.len();
    outcome
}

fn negotiate(
    handshake: &mut Handshake,
    session: &mut Option<Session>,
    rest: &mut &[u8],
    out: &mut Vec<u8>,
) -> Result<bool, Violation> {
    match handshake.advance(rest, out)? {
        None => {
            let wanted = handshake.wanted(rest);
            assert!((1..=16 + MAX_OPTION as usize).contains(&wanted), "{wanted} bytes are wanted");
            return Ok(false);
        }
        Some(HandshakeAction::List) => {
            handshake.list_export(&ExportEntry { name: "x".into(), description: None }, out);
            handshake.end_list(out);
        }
        Some(HandshakeAction::StartTls) => {
            handshake.accept_tls(out);
            handshake.begin_tls();
        }
        Some(HandshakeAction::Abort) => {}
        Some(HandshakeAction::Open(request)) => {
            let can = Capabilities { trim: true, ..Capabilities::READ_WRITE_FLUSH };
            let export = Export { size: 1 << 20, can, name: None, description: None, block_sizes: None };
            *session = handshake.accept(&request, &export, out);
        }
    }
    Ok(true)
}

fn take_request(
    session: &Session,
    rest: &mut &[u8],
    skip: &mut usize,
    requests: &mut Vec<(RequestHeader, bool)>,
) -> Result<bool, Violation> {
    let skipped = (*skip).min(rest.len());
    *rest = &rest[skipped..];
    *skip -= skipped;
    if *skip > 0 {
        return Ok(false);
    }
    let Some(header) = RequestHeader::parse(rest, session.reply_format)? else { return Ok(false) };
    let size = session.reply_format.header_size();
    let (header, checked) = if header.has_filter() {
        let Some(filter) = rest[size..].first_chunk::<FILTER_SIZE>() else { return Ok(false) };
        *rest = &rest[size + FILTER_SIZE..];
        session.filtered(&header, *filter)
    } else {
        *rest = &rest[size..];
        (header, session.check(&header))
    };
    if let RequestPayload::Data(length) | RequestPayload::Skip(length) = Session::payload(&header, &checked)? {
        *skip = length as usize;
    }
    if let Ok(command) = &checked
        && !matches!(command, Command::Flush | Command::Disconnect)
    {
        let end = header.offset.checked_add(header.length);
        assert!(header.length > 0 && end.is_some_and(|end| end <= session.size), "{header:?}");
    }
    requests.push((header, checked.is_ok()));
    Ok(true)
}

#[test]
fn fuzz_handshake_and_requests() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let budget = Budget::new(20_000);
    let mut round = 0;
    while budget.goes_on(round) {
        let input = input(&mut rng);
        let checked = std::panic::catch_unwind(|| {
            let whole = parse(&input, usize::MAX);
            assert_eq!(parse(&input, 1), whole);
            assert_eq!(parse(&input, 17), whole);
        });
        assert!(checked.is_ok(), "seed {seed} round {round}: {input:?}");
        round += 1;
    }
    println!("{round} conversations");
}

#[test]
fn fuzz_the_program() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed ^ 0x5eed);
    let server = Server::start(["memory", "1M"]);
    let budget = Budget::new(1000);
    let files = server.open_files();
    let mut bystander = server.client();
    let mut round = 0;
    while budget.goes_on(round) {
        let input = input(&mut rng);
        let mut stream = Stream::connect(server.socket());
        // The server may have closed already.
        let _ = stream.send(&input);
        let _ = stream.0.shutdown(std::net::Shutdown::Write);
        // Waits until the server has closed the connection.
        stream.drain();
        if round % 100 == 0 {
            assert!(bystander.read(0, 4096).is_ok(), "seed {seed} round {round}: {input:?}");
        }
        round += 1;
    }
    println!("{round} connections");
    drop(bystander);
    server.wait_until("all connections are closed", |server| server.open_files() == files);
    let resident = server.resident();
    assert!(resident < 256 << 20, "seed {seed}: {resident} bytes resident");
    let outcome = server.stop();
    assert!(!outcome.stderr.contains("panicked"), "seed {seed}: {}", outcome.stderr);
}
