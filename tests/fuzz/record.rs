//! Fuzzing of what reads a record: mutated entries, most of them with checksums that are right.
//!
//! The reader must not panic and must give entries or an error of one line. An entry that it takes
//! is written again as the same bytes. The author's tool must end by itself with status 0 or 1,
//! whether it shows the record or runs it.

use std::borrow::Cow;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{Capabilities, Errno, Extent, Flags, Peer};
use rbdkit_record::format::{
    Answer, Call, ClientFacts, ENTRY_HEADER, End, Entry, Finish, Frame, Gate, GivenParameter, Kind, ListedExport,
    Outcome, Payload, Reason, Session, Start,
};
use rbdkit_record::{ReadError, Reader};
use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{Rng, TempDir, seed};

use crate::Budget;

/// The size of the export of a sensible record.
const SIZE: u64 = 1 << 20;

fn payload(rng: &mut Rng, length: u32) -> Payload<'static> {
    match rng.below(3) {
        0 => Payload::Zeroes,
        1 => Payload::Digest([rng.below(256) as u8; 16]),
        _ => Payload::Bytes(Cow::Owned(rng.bytes(length as usize))),
    }
}

fn call(rng: &mut Rng) -> Call<'static> {
    let offset = rng.below(SIZE - 8192);
    let length = rng.below(8192) as u32 + 1;
    let long = u64::from(length);
    let flags = Flags { fua: rng.chance(20), may_trim: rng.chance(50), ..Flags::NONE };
    match rng.below(10) {
        0..=3 => Call::Pread { offset, length },
        4 | 5 => Call::Pwrite { offset, length, flags, payload: payload(rng, length) },
        6 => Call::Trim { offset, length: long, flags },
        7 => Call::Zero { offset, length: long, flags },
        8 => Call::Extents { offset, length: long, flags: Flags::NONE },
        _ => Call::Flush,
    }
}

fn outcome(rng: &mut Rng, call: &Call<'_>) -> Outcome<'static> {
    match rng.below(10) {
        0 => return Outcome::Failed(Errno::Eio),
        1 => return Outcome::Dropped,
        _ => {}
    }
    Outcome::Answered(match (call, call.range()) {
        (Call::Pread { length, .. }, _) => Answer::Data(payload(rng, *length)),
        (Call::Extents { .. }, Some((offset, length))) => {
            Answer::Extents(vec![Extent { offset, length, hole: rng.chance(50), zero: rng.chance(50) }])
        }
        (Call::Open { .. }, _) => {
            Answer::Opened { size: SIZE, can: Capabilities { extents: true, ..Capabilities::READ_WRITE_FLUSH } }
        }
        (Call::Disk, _) => Answer::Disk(Some("a disk".into())),
        (Call::BlockSizes, _) => Answer::BlockSizes(None),
        (Call::ListExports { .. }, _) => {
            let listed = |at: u64| ListedExport {
                name: format!("export {at}").into(),
                description: rng.chance(50).then(|| "text".into()),
            };
            Answer::Exports((0..3).map(listed).collect())
        }
        (Call::DefaultExport { .. }, _) => Answer::DefaultExport("".into()),
        (Call::Description, _) => Answer::Description(Some("text".into())),
        _ => Answer::Done,
    })
}

/// Parameters, which `nofilter` does not have.
fn parameters(rng: &mut Rng) -> Vec<GivenParameter> {
    let mut given = |at: u64| {
        let value = rng.chance(50).then(|| "4096".to_string());
        GivenParameter { key: format!("key{at}"), kind: "size".into(), value }
    };
    (0..2).map(&mut given).collect()
}

/// A call before something is open.
fn call_before_open(rng: &mut Rng) -> Call<'static> {
    let (client, readonly) = (rng.below(3), rng.chance(20));
    match rng.below(3) {
        0 => Call::ListExports { client, readonly },
        1 => Call::DefaultExport { client, readonly },
        _ => {
            let peer = match rng.below(5) {
                0 => Peer::Unknown,
                1 => Peer::Unix,
                2 => Peer::Vsock { cid: rng.below(9) as u32, port: rng.below(9) as u32 },
                3 => Peer::Ip(([127, 0, 0, 1], rng.below(65536) as u16).into()),
                _ => Peer::Ip((std::net::Ipv6Addr::LOCALHOST, rng.below(65536) as u16).into()),
            };
            let credentials = rng.chance(50).then_some((1, 2, 3));
            let security_context = rng.chance(50).then(|| "context".into());
            let facts = ClientFacts { peer, credentials, security_context, tls: rng.chance(50) };
            Call::Preconnect { client, readonly, facts }
        }
    }
}

/// The bodies of the entries of a record without errors.
fn sensible(rng: &mut Rng) -> Vec<Vec<u8>> {
    let session = Session {
        program: "0.1.0".into(),
        layer: "nofilter".into(),
        is_filter: true,
        has_payloads: rng.chance(50),
        began: rng.next_u64(),
        parameters: parameters(rng),
    };
    let mut entries = vec![Entry::Session(session)];
    let mut under_way: Vec<(u64, Call<'static>)> = Vec::new();
    let mut number = 0;
    let mut begin = |entries: &mut Vec<Entry<'static>>, gate, handle, call: Call<'static>| {
        number += 1;
        entries.push(Entry::Start(Start { number, time: number * 1000, gate, handle, call }));
        number
    };
    let gates = [(Gate::Above, 1), (Gate::Below, 2)];
    let end = |number: u64, kind: Kind, outcome| Entry::End(End { number, time: number * 1001, kind, outcome });
    for (gate, handle) in gates {
        let open = Call::Open { client: 1, readonly: false, name: "".into() };
        let number = begin(&mut entries, gate, handle, open.clone());
        let opened = Answer::Opened { size: SIZE, can: Capabilities::READ_WRITE_FLUSH };
        entries.push(end(number, Kind::Open, Outcome::Answered(opened)));
    }
    for _ in 0..rng.below(30) {
        if rng.chance(50) && !under_way.is_empty() {
            let (number, call) = under_way.swap_remove(rng.below(under_way.len() as u64) as usize);
            let outcome = outcome(rng, &call);
            entries.push(end(number, call.kind(), outcome));
            continue;
        }
        let (gate, mut handle) = gates[rng.below(2) as usize];
        let call = match rng.below(20) {
            3 | 4 => {
                handle = 0;
                call_before_open(rng)
            }
            0 => Call::BlockSizes,
            1 => Call::Description,
            2 => Call::Disk,
            _ => call(rng),
        };
        let number = begin(&mut entries, gate, handle, call.clone());
        under_way.push((number, call));
    }
    for (gate, handle) in gates {
        for call in [Call::Finalize, Call::Close] {
            let number = begin(&mut entries, gate, handle, call.clone());
            entries.push(end(number, call.kind(), Outcome::Answered(Answer::Done)));
        }
    }
    if rng.chance(80) {
        entries.push(Entry::Finish(Finish { time: 1 << 40, lost: rng.below(2), reason: Reason::Whole }));
    }
    entries.into_iter().map(|entry| Frame::new(entry).parts().concat()[ENTRY_HEADER..].to_vec()).collect()
}

/// An entry with this body, whose checksums are right.
fn entry(body: &[u8]) -> Vec<u8> {
    let mut header = (body.len() as u32).to_le_bytes().to_vec();
    header.extend(crc32c(body).to_le_bytes());
    header.extend(crc32c(&header).to_le_bytes());
    [&header, body].concat()
}

/// CRC-32C as its definition has it, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 })
    })
}

fn mutate(rng: &mut Rng, bodies: &mut Vec<Vec<u8>>) {
    let at = rng.below(bodies.len() as u64) as usize;
    match rng.below(12) {
        0 => drop(bodies.remove(at)),
        1 => bodies.insert(at, bodies[at].clone()),
        2 => {
            let with = rng.below(bodies.len() as u64) as usize;
            bodies.swap(at, with);
        }
        _ => {
            let body = &mut bodies[at];
            if body.is_empty() {
                return;
            }
            // Most of the fields are in the first bytes.
            let most = if rng.chance(70) { body.len().min(45) } else { body.len() };
            let place = rng.below(most as u64) as usize;
            match rng.below(5) {
                0 => body.truncate(place),
                1 => body.insert(place, rng.next_u64() as u8),
                2 => {
                    let edges = [0, 1, 255, u64::from(u32::MAX), 1 << 26, i64::MAX as u64, u64::MAX];
                    let value = edges[rng.below(edges.len() as u64) as usize].to_le_bytes();
                    let end = (place + 8).min(body.len());
                    body[place..end].copy_from_slice(&value[..end - place]);
                }
                3 => body[place] = rng.next_u64() as u8,
                _ => body[place] ^= 1 << rng.below(8),
            }
        }
    }
}

fn input(rng: &mut Rng) -> Vec<u8> {
    let mut bodies = sensible(rng);
    for _ in 0..rng.below(4) {
        if !bodies.is_empty() {
            mutate(rng, &mut bodies);
        }
    }
    let mut bytes = Frame::file_header().parts().concat();
    bodies.iter().for_each(|body| bytes.extend(entry(body)));
    if rng.chance(20) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.chance(50) {
            true => bytes.truncate(at),
            false => bytes[at] ^= 1 << rng.below(8),
        }
    }
    bytes
}

/// Reads all of it. Gives the number of entries.
fn read(input: &[u8]) -> Result<usize, ReadError> {
    let mut reader = Reader::new(input, input.len() as u64)?;
    let mut count = 1;
    while let Some(read) = reader.next()? {
        let again = Frame::new(read.entry.clone()).parts().concat();
        assert_eq!(again, input[read.at as usize..read.end as usize], "byte {}", read.at);
        count += 1;
    }
    Ok(count)
}

#[test]
fn fuzz_reading_a_record() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed ^ 0x5ec0);
    let budget = Budget::new(20_000);
    let (mut round, mut whole) = (0, 0);
    while budget.goes_on(round) {
        let input = input(&mut rng);
        let checked = std::panic::catch_unwind(|| match read(&input) {
            Ok(_) => true,
            Err(error) => {
                let line = error.to_string();
                assert!(line.len() < 300 && !line.chars().any(char::is_control), "{line:?}");
                false
            }
        });
        assert!(checked.is_ok(), "seed {seed} round {round}: {} bytes", input.len());
        whole += u64::from(checked.unwrap_or(false));
        round += 1;
    }
    assert!(whole > round / 10 && whole < round, "{whole} of {round} records were read to their end");
    println!("{round} records, {whole} of them read to the end");
}

#[test]
fn fuzz_replaying_a_record() {
    let seed = seed();
    let mut rng = Rng::new(seed ^ 0x4e91);
    let dir = TempDir::new();
    let tool = program().with_file_name("rbdkit-filter");
    let budget = Budget::new(40);
    let (mut round, mut succeeded) = (0, 0);
    while budget.goes_on(round) {
        let file = dir.file("fuzz.rec", &input(&mut rng));
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120"]).arg(&tool).arg("replay").arg(&file).stdin(Stdio::null());
        match rng.chance(30) {
            true => command.arg("--show"),
            false => command.arg(filter("nofilter")).arg("--patience=5"),
        };
        let output = command.output().expect("the tool is there");
        let said = String::from_utf8_lossy(&output.stderr);
        let why = format!("RBDKIT_SEED={seed} round {round}: {}\n{said}", output.status);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{why}");
        assert!(!said.contains("panicked"), "{why}");
        assert!(!said.bytes().any(|byte| byte.is_ascii_control() && byte != b'\n'), "{why}");
        let errors = said.lines().filter(|line| line.starts_with("rbdkit-filter: error: ")).count();
        assert_eq!(errors, usize::from(!output.status.success()), "{why}");
        succeeded += u64::from(output.status.success());
        round += 1;
    }
    println!("RBDKIT_SEED={seed}: {round} records given to the tool, {succeeded} of them accepted");
}

#[test]
fn a_record_whose_requests_would_not_fit_into_memory_is_refused() {
    let dir = TempDir::new();
    let mut rng = Rng::new(1);
    let mut bodies = sensible(&mut rng);
    // The session, and the two opens.
    bodies.truncate(5);
    let mut bytes = Frame::file_header().parts().concat();
    bodies.iter().for_each(|body| bytes.extend(entry(body)));
    for number in 1000..1017 {
        let call = Call::Pread { offset: 0, length: 64 << 20 };
        let start = Start { number, time: 0, gate: Gate::Above, handle: 1, call };
        bytes.extend(Frame::new(Entry::Start(start)).parts().concat());
    }
    let file = dir.file("large.rec", &bytes);
    let mut command = Command::new(program().with_file_name("rbdkit-filter"));
    let output = command.arg("replay").arg(&file).arg(filter("nofilter")).output().expect("the tool is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.ends_with(": reads and writes of more than 1 GiB are under way at once\n"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
