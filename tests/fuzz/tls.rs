//! Fuzzing of what TLS reads from the operator and from clients: files of keys, priority strings,
//! and the first bytes of a client.
//!
//! Nothing of it panics. What is wrong with a file or a string is one short line.

use std::io::{self, Read, Write};

use rbdkit_tests::{Rng, seed};
use rbdkit_tls::{Handshake, KeyFile, Priority, ServerTls};

use crate::Budget;

const KEY: &str = "00112233445566778899aabbccddeeff";

const PIECES: [&str; 16] =
    [":", "\n", "\r\n", "#", "+", "-", "!", "%", "NORMAL", "VERS-ALL", "AES-128-GCM", "GROUP-ALL", "\0", "ü", "0", KEY];

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let end = (at + 1 + rng.below(30) as usize).min(bytes.len());
    match rng.below(5) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        1 => drop(bytes.drain(at.min(end)..end)),
        2 => {
            let copied = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, copied);
        }
        _ => {
            let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
            bytes.splice(at..at, piece.bytes());
        }
    }
}

fn mutated(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    (0..rng.below(8)).for_each(|_| mutate(rng, &mut bytes));
    bytes
}

fn check_line(line: &str, why: &str) {
    assert!(!line.is_empty() && line.len() < 500 && !line.chars().any(char::is_control), "{why}: {line:?}");
    assert!(!line.contains(&KEY[..8]), "{why}: {line:?}");
}

/// A client that has said all that it says.
struct Said<'a>(&'a [u8]);

impl Read for Said<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The beginning of a client's first message in TLS 1.3, with a record around it.
fn client_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x13, 1, 0x13, 3, 1, 0]);
    let extensions: [&[u8]; 3] = [&[0, 43, 0, 3, 2, 3, 4], &[0, 10, 0, 4, 0, 2, 0, 29], &[0, 45, 0, 2, 1, 1]];
    let extensions = extensions.concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn fuzz_keys_and_priorities() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let file = format!("# users\nalice:{KEY}\r\nbob:{KEY}{KEY}\n");
    let budget = Budget::new(20_000);
    let mut round = 0;
    while budget.goes_on(round) {
        let why = format!("seed {seed} round {round}");
        match KeyFile::parse(&mutated(&mut rng, file.as_bytes())) {
            Ok(keys) => assert!(keys.users() > 0, "{why}"),
            Err(error) => check_line(&error.to_string(), &why),
        }
        let text = mutated(&mut rng, b"NORMAL:-VERS-ALL:+VERS-TLS1.3:%SERVER_PRECEDENCE:-GROUP-SECP256R1");
        if let Err(error) = Priority::parse(&String::from_utf8_lossy(&text)) {
            let line = error.to_string();
            assert!(!line.is_empty() && !line.chars().any(char::is_control), "{why}: {line:?}");
        }
        round += 1;
    }
}

#[test]
fn fuzz_the_first_bytes_of_a_client() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let keys = KeyFile::parse(format!("alice:{KEY}").as_bytes()).unwrap();
    let server = ServerTls::with_keys(keys, Priority::default(), None).unwrap();
    let budget = Budget::new(3000);
    let mut round = 0;
    while budget.goes_on(round) {
        let bytes = mutated(&mut rng, &client_hello());
        let mut session = server.accept().unwrap();
        let mut client = Said(&bytes);
        // Without a client that goes on, no handshake ends well.
        let ended = session.handshake(&mut client);
        assert!(!matches!(ended, Ok(Handshake::Done)), "seed {seed} round {round}: {bytes:?}");
        if let Err(error) = ended {
            check_line(&error.to_string(), &format!("seed {seed} round {round}"));
        }
        round += 1;
    }
}
