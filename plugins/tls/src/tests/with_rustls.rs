//! Sessions with an end that is rustls alone, so that faults of ours cannot cancel out.

use rustls::Connection;

use super::*;

/// One end of each kind, after the handshake.
struct Pair {
    ours: Session,
    theirs: Connection,
    wire: Wire,
}

impl Pair {
    fn new(priority: &str, wire: Wire) -> Pair {
        let (server, client) = with_certificates(priority);
        Pair::agree(server.accept().unwrap(), client.rustls().into(), wire)
    }

    /// Ours is the client.
    fn turned_around(priority: &str, wire: Wire) -> Pair {
        let (server, client) = with_certificates(priority);
        Pair::agree(client.connect().unwrap(), server.rustls().into(), wire)
    }

    fn agree(ours: Session, theirs: Connection, wire: Wire) -> Pair {
        let mut pair = Pair { ours, theirs, wire };
        pair.theirs.set_buffer_limit(None);
        for _ in 0..100_000 {
            let done = pair.ours.handshake(&mut pair.wire.server()).unwrap() == Handshake::Done;
            pair.turn();
            if done && !pair.theirs.is_handshaking() {
                return pair;
            }
        }
        panic!("no end");
    }

    /// Their end sends what it has to send and reads what has come.
    fn turn(&mut self) {
        let mut side = self.wire.client();
        while self.theirs.wants_write() && self.theirs.write_tls(&mut side).is_ok() {}
        while self.theirs.wants_read() && self.theirs.read_tls(&mut side).is_ok_and(|count| count > 0) {
            self.theirs.process_new_packets().unwrap();
        }
    }

    /// What has come for their end.
    fn received(&mut self, to: &mut Vec<u8>) {
        let mut some = [0; 8192];
        while let Ok(count @ 1..) = self.theirs.reader().read(&mut some) {
            to.extend_from_slice(&some[..count]);
        }
    }

    /// What has come for our end.
    fn read(&mut self, to: &mut Vec<u8>) -> io::Result<usize> {
        let (mut first, mut second) = ([0; 3000], [0; 70]);
        let count = self.ours.read(&mut self.wire.server(), &mut first, &mut second)?.count;
        to.extend_from_slice(&first[..count.min(first.len())]);
        to.extend_from_slice(&second[..count.saturating_sub(first.len())]);
        Ok(count)
    }

    /// Sends slices in place through the wire, and checks that the same bytes come.
    fn send(&mut self, lengths: &[usize], most: usize) {
        let bytes: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|at| (at * 7 / 3) as u8).collect();
        let (mut own, mut done, mut received) = (bytes.clone(), 0, Vec::new());
        for _ in 0..10_000_000 {
            if done < own.len() {
                let mut slices = cut(&mut own, lengths, done);
                let sent = self.ours.write_in_place(&mut self.wire.server(), &mut slices, most).unwrap();
                done += sent.unwrap_or(0);
            }
            self.turn();
            self.received(&mut received);
            if received.len() >= bytes.len() {
                assert!(received == bytes, "other bytes came");
                return;
            }
        }
        panic!("{} of {} bytes came", received.len(), bytes.len());
    }
}

/// Slices of these lengths, without the first `done` bytes.
fn cut<'a>(mut bytes: &'a mut [u8], lengths: &[usize], mut done: usize) -> Vec<&'a mut [u8]> {
    let mut slices = Vec::new();
    for length in lengths {
        let (slice, rest) = std::mem::take(&mut bytes).split_at_mut(*length);
        bytes = rest;
        let skipped = done.min(*length);
        done -= skipped;
        if skipped < *length || *length == 0 && done == 0 {
            slices.push(&mut slice[skipped..]);
        }
    }
    slices
}

const ROOMY: usize = usize::MAX;

/// Every cipher of both versions.
fn priorities() -> Vec<String> {
    let mut all = Vec::new();
    for version in ["TLS1.2", "TLS1.3"] {
        for cipher in ["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"] {
            all.push(format!("NORMAL:-VERS-ALL:+VERS-{version}:-CIPHER-ALL:+{cipher}"));
        }
    }
    all
}

#[test]
fn rustls_understands_what_is_encrypted_in_place_with_every_cipher() {
    const RECORD: usize = 16 << 10;
    let lengths = [
        16,
        256 << 10,
        20,
        0,
        4096,
        1,
        RECORD,
        20,
        RECORD + 1,
        1,
        RECORD - 1,
        0,
        0,
        2 * RECORD,
        2 * RECORD + 1,
        3 * RECORD + 7,
        16,
        5,
        65_536,
        70_000,
    ];
    let mut seen = std::collections::BTreeSet::new();
    for priority in priorities() {
        for (step, room) in [(ROOMY, ROOMY), (1000, 1500), (70_000, 100_000), (7, 100_000)] {
            let mut pair = Pair::new(&priority, Wire::new(step, room));
            seen.insert(pair.ours.algorithms());
            for most in [1, 5000, RECORD, 64 << 10, ROOMY] {
                if step == 7 && most != 64 << 10 {
                    continue;
                }
                pair.send(&lengths, most);
                assert!(!pair.ours.has_unsent());
            }
        }
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn what_rustls_sends_is_understood_with_every_cipher() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at * 5 / 3) as u8).collect();
    for priority in priorities() {
        for (step, room) in [(ROOMY, ROOMY), (1000, 1500), (70_000, 100_000)] {
            for mut pair in [Pair::new, Pair::turned_around].map(|new| new(&priority, Wire::new(step, room))) {
                pair.theirs.writer().write_all(&bytes).unwrap();
                let mut received = Vec::new();
                while received.len() < bytes.len() {
                    pair.turn();
                    match pair.read(&mut received) {
                        Ok(count) => assert!(count > 0, "an early end"),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
                assert!(received == bytes);
                pair.send(&[16, 100_000], 64 << 10);
                pair.theirs.send_close_notify();
                pair.turn();
                while step != ROOMY && pair.theirs.wants_write() {
                    pair.turn();
                }
                assert_eq!(pair.read(&mut received).unwrap(), 0, "the end");
            }
        }
    }
}

#[test]
fn rustls_learns_that_a_session_is_closed() {
    for priority in priorities() {
        let mut pair = Pair::new(&priority, Wire::new(ROOMY, ROOMY));
        pair.send(&[5], 100);
        pair.ours.close(&mut pair.wire.server());
        pair.turn();
        assert_eq!(pair.theirs.reader().read(&mut [0; 10]).unwrap(), 0);
    }
}

#[test]
fn both_ends_change_their_keys_when_the_other_end_asks() {
    for (step, room) in [(ROOMY, ROOMY), (1000, 1500)] {
        for new in [Pair::new, Pair::turned_around] {
            let mut pair = new("NORMAL:-VERS-TLS1.2", Wire::new(step, room));
            for round in 0..5_u8 {
                // rustls asks for our next key as well. Our answer comes before more data.
                pair.theirs.refresh_traffic_keys().unwrap();
                pair.theirs.writer().write_all(&[round; 50_000]).unwrap();
                let mut received = Vec::new();
                while received.len() < 50_000 {
                    pair.turn();
                    if let Err(error) = pair.read(&mut received) {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    }
                }
                assert_eq!(received, [round; 50_000]);
                pair.send(&[20, 100_000, 3], 64 << 10);
            }
        }
    }
}

#[test]
fn a_key_update_that_comes_while_a_reply_is_half_sent_is_answered_behind_it() {
    let mut pair = Pair::new("NORMAL:-VERS-TLS1.2", Wire::new(ROOMY, 20_000));
    let mut bytes = vec![9; 40_000];
    let mut write = |pair: &mut Pair| {
        let sent = pair.ours.write_in_place(&mut pair.wire.server(), &mut [&mut bytes[..]], 64 << 10);
        sent.unwrap()
    };
    assert_eq!(write(&mut pair), None);
    assert!(pair.ours.has_unsent());
    pair.theirs.refresh_traffic_keys().unwrap();
    let mut side = pair.wire.client();
    while pair.theirs.wants_write() {
        pair.theirs.write_tls(&mut side).unwrap();
    }
    assert_eq!(pair.read(&mut Vec::new()).unwrap_err().kind(), ErrorKind::WouldBlock);
    let mut received = Vec::new();
    let mut sent = None;
    for _ in 0..10 {
        pair.turn();
        pair.received(&mut received);
        sent = sent.or_else(|| write(&mut pair));
    }
    assert!(sent.is_some() && received == vec![9; sent.unwrap()], "{sent:?} {}", received.len());
    pair.send(&[10, 50_000], 64 << 10);
}

#[test]
fn a_key_that_has_encrypted_enough_is_replaced_with_tls_1_3_and_ends_the_session_with_tls_1_2() {
    let mut pair = Pair::new("NORMAL:-VERS-TLS1.2", Wire::new(ROOMY, ROOMY));
    pair.ours.set_limit(3);
    for _ in 0..3 {
        pair.send(&[20, 300_000, 16, 4096], 64 << 10);
    }
    let mut pair = Pair::new("NORMAL:-VERS-TLS1.3", Wire::new(ROOMY, ROOMY));
    // The end of the handshake was a record as well.
    pair.ours.set_limit(4);
    pair.send(&[10], 100);
    pair.send(&[10], 100);
    let error = pair.ours.write_in_place(&mut pair.wire.server(), &mut [&mut [1]], 100).unwrap_err();
    assert!(error.to_string().contains("may not encrypt more"), "{error}");
}
