//! Records that an end with the right keys sends although it must not.

use super::*;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

struct Ends {
    server: Session,
    client: Session,
    wire: Wire,
}

const TLS12: &str = "NORMAL:-VERS-TLS1.3";
const TLS13: &str = "NORMAL:-VERS-TLS1.2";

impl Ends {
    fn new(priority: &str) -> Ends {
        let (server, client) = with_certificates(priority);
        let mut wire = Wire::new(usize::MAX, usize::MAX);
        let (server, client) = agree(&server, &client, &mut wire).unwrap();
        Ends { server, client, wire }
    }

    /// The client sends records one after the other.
    fn say(&mut self, records: &[(u8, &[u8])]) {
        for (kind, bytes) in records {
            self.client.put_record(*kind, bytes);
            // It sends what it has to say before its data.
            let _ = self.client.write(&mut self.wire.client(), &[], 0).unwrap();
        }
    }

    fn heard(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 40_000];
        let count = self.server.read(&mut self.wire.server(), &mut bytes, &mut [])?.count;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// What the client learns.
    fn answer(&mut self) -> io::Result<usize> {
        Ok(self.client.read(&mut self.wire.client(), &mut [0; 100], &mut [])?.count)
    }
}

/// The server refuses these records and says so with an alert.
#[track_caller]
fn refused(priority: &str, records: &[(u8, &[u8])], alert: u8) {
    let mut ends = Ends::new(priority);
    ends.say(records);
    let error = ends.heard().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let told = ends.answer().unwrap_err().to_string();
    assert!(told.ends_with(&format!("(alert {alert})")), "{told}: {error}");
    // It stays refused.
    ends.wire.there.extend([DATA; 30]);
    assert_eq!(ends.heard().unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn messages_that_do_not_belong_into_a_session_end_it() {
    for priority in [TLS12, TLS13] {
        refused(priority, &[(HANDSHAKE, &[])], 10);
        refused(priority, &[(HANDSHAKE, &[20, 0, 0, 1, 0])], 10);
        refused(priority, &[(ALERT, &[1])], 50);
        refused(priority, &[(ALERT, &[1, 0, 0])], 50);
        refused(priority, &[(20, &[1])], 10);
        refused(priority, &[(99, &[1])], 10);
        let empty: [(u8, &[u8]); 33] = [(DATA, &[]); 33];
        refused(priority, &empty, 10);
    }
    refused(TLS13, &[(HANDSHAKE, &[24, 0, 0, 1, 2])], 47);
    refused(TLS13, &[(HANDSHAKE, &[24, 0, 0, 2, 0, 0])], 50);
    // The key changes behind the message, so nothing may follow it in its record.
    refused(TLS13, &[(HANDSHAKE, &[24, 0, 0, 1, 0, 24])], 10);
    refused(TLS13, &[(HANDSHAKE, &[24, 0, 0, 1]), (DATA, b"between")], 10);
    // A ticket for a server, and a new handshake.
    refused(TLS13, &[(HANDSHAKE, &[4, 0, 0, 1, 0])], 10);
    refused(TLS13, &[(HANDSHAKE, &[1, 0, 0, 1, 0])], 10);
    // Only zeroes, so no kind.
    refused(TLS13, &[(0, &[])], 10);
}

#[test]
fn what_is_harmless_is_passed_over() {
    for priority in [TLS12, TLS13] {
        let mut ends = Ends::new(priority);
        for _ in 0..2 {
            ends.say(&[(DATA, &b""[..]); 31]);
            ends.say(&[(ALERT, &[1, 90]), (DATA, b"data")]);
            assert_eq!(ends.heard().unwrap(), b"data");
        }
        ends.say(&[(ALERT, &[1, 0]), (DATA, b"behind the end")]);
        assert_eq!(ends.heard().unwrap(), b"");
        assert_eq!(ends.heard().unwrap(), b"");
    }
}

#[test]
fn an_alert_of_the_other_end_is_named() {
    let mut ends = Ends::new(TLS13);
    ends.say(&[(ALERT, &[2, 80])]);
    let error = ends.heard().unwrap_err().to_string();
    assert_eq!(error, "the other end ended the session: internal error (alert 80)");
}

#[test]
fn renegotiation_is_refused_and_asked_for_twice_it_ends_the_session() {
    let mut ends = Ends::new(TLS12);
    let hello = [&[1, 0, 0, 50][..], &[3; 50]].concat();
    ends.say(&[(HANDSHAKE, &hello[..20]), (HANDSHAKE, &hello[20..]), (DATA, b"still here")]);
    assert_eq!(ends.heard().unwrap(), b"still here");
    // The client passes the warning over.
    let answer = ends.wire.back.iter().copied().collect::<Vec<u8>>();
    assert_eq!((answer[0], answer.len()), (ALERT, 5 + 8 + 2 + 16), "one warning");
    assert_eq!(ends.answer().unwrap_err().kind(), ErrorKind::WouldBlock);
    ends.say(&[(HANDSHAKE, &hello)]);
    assert_eq!(ends.heard().unwrap_err().kind(), ErrorKind::InvalidData);
    assert!(ends.answer().unwrap_err().to_string().ends_with("(alert 10)"));
}

/// A handshake that begins with these records.
fn begun(records: &[&[u8]]) -> io::Result<Handshake> {
    let (server, _) = with_certificates("NORMAL");
    let mut server = server.accept()?;
    let mut wire = Wire::new(usize::MAX, usize::MAX);
    let mut step = Ok(Handshake::WantsRead);
    for record in records {
        wire.there.extend(*record);
        step = Ok(server.handshake(&mut wire.server())?);
    }
    step
}

#[test]
fn a_message_of_the_handshake_in_many_records_is_understood_or_refused() {
    let (server, client) = with_certificates("NORMAL");
    let mut wire = Wire::new(usize::MAX, usize::MAX);
    let mut client = client.connect().unwrap();
    client.handshake(&mut wire.client()).unwrap();
    let first: Vec<u8> = wire.there.drain(..).collect();
    let message = &first[5..];
    let mut server = server.accept().unwrap();
    for piece in message.chunks(100) {
        wire.there.extend([HANDSHAKE, 3, 1, 0, piece.len() as u8]);
        wire.there.extend(piece);
        server.handshake(&mut wire.server()).unwrap();
    }
    while client.handshake(&mut wire.client()).unwrap() != Handshake::Done {
        server.handshake(&mut wire.server()).unwrap();
    }
    assert_eq!(server.handshake(&mut wire.server()).unwrap(), Handshake::Done);
    // A message that claims too much, in the first record and in a later one; one that never ends.
    let long = [&[HANDSHAKE, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16380]].concat();
    assert!(begun(&[&long]).is_err());
    assert!(begun(&[&[HANDSHAKE, 3, 1, 0, 2, 1, 0xff], &[HANDSHAKE, 3, 1, 0, 2, 0xff, 0xff]]).is_err());
    let start = [&[HANDSHAKE, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 16380]].concat();
    let more = [&[HANDSHAKE, 3, 1, 0x40, 0][..], &[0; 16384]].concat();
    assert!(begun(&[&start, &more, &more, &more, &more]).is_err());
    // Other records within a message.
    assert!(begun(&[&start, &[ALERT, 3, 1, 0, 2, 2, 80]]).is_err());
    assert!(begun(&[&start, &[DATA, 3, 1, 0, 2, 2, 80]]).is_err());
    assert!(begun(&[&start, &[0xff; 40]]).is_err());
    // A change of ciphers, and a record of no length.
    assert!(begun(&[&[20, 3, 3, 0, 1, 1], &[0; 5]]).is_err());
}

#[test]
fn any_first_bytes_are_answered_without_a_panic() {
    let (server, client) = with_certificates("NORMAL");
    let mut wire = Wire::new(usize::MAX, usize::MAX);
    client.connect().unwrap().handshake(&mut wire.client()).unwrap();
    let first: Vec<u8> = wire.there.drain(..).collect();
    let mut runner = proptest::test_runner::TestRunner::default();
    let changes = proptest::collection::vec((0..first.len(), proptest::num::u8::ANY), 0..6);
    let cuts = (0..first.len() - 5, 1..300_usize);
    let any = (changes, cuts, proptest::bool::ANY);
    let outcome = runner.run(&any, |(changes, (cut, each), in_pieces)| {
        let mut bytes = first.clone();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        if in_pieces {
            let pieces = bytes[5..].chunks(each).map(|piece| {
                let length = (piece.len() as u16).to_be_bytes();
                [&[HANDSHAKE, 3, 1][..], &length, piece].concat()
            });
            bytes = pieces.flatten().collect();
        }
        bytes.truncate(bytes.len().max(cut) - cut);
        let mut session = server.accept().unwrap();
        let mut wire = Wire::new(each, usize::MAX);
        wire.there.extend(bytes);
        // It cannot end: the client does not go on.
        let step = session.handshake(&mut wire.server());
        proptest::prop_assert!(!matches!(step, Ok(Handshake::Done)));
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn heads_that_no_record_has_end_the_session() {
    for (priority, head, alert) in [
        (TLS13, [22, 3, 3, 0, 20], 10),
        (TLS13, [20, 3, 3, 0, 1], 10),
        (TLS13, [23, 3, 3, 0x41, 1], 22),
        (TLS13, [23, 3, 3, 0, 16], 20),
        (TLS13, [23, 3, 3, 0, 0], 20),
        (TLS12, [20, 3, 3, 0, 1], 10),
        (TLS12, [b'G', b'E', b'T', 0, 1], 10),
        (TLS12, [23, 3, 1, 0, 30], 70),
        (TLS12, [23, 3, 3, 0x48, 1], 22),
        (TLS12, [23, 3, 3, 0, 24], 20),
        (TLS12, [23, 3, 3, 0, 23], 20),
    ] {
        let mut ends = Ends::new(priority);
        ends.wire.there.extend(head);
        ends.wire.there.extend([0; 30]);
        assert_eq!(ends.heard().unwrap_err().kind(), ErrorKind::InvalidData, "{head:?}");
        let told = ends.answer().unwrap_err().to_string();
        assert!(told.ends_with(&format!("(alert {alert})")), "{head:?}: {told}");
    }
}

#[test]
fn a_record_that_comes_twice_or_out_of_order_ends_the_session() {
    for priority in [TLS12, TLS13] {
        for order in [[0, 0], [1, 0]] {
            let mut ends = Ends::new(priority);
            let records = [b"one", b"two"].map(|bytes| {
                ends.say(&[(DATA, bytes)]);
                ends.wire.there.drain(..).collect::<Vec<u8>>()
            });
            ends.wire.there.extend(order.iter().flat_map(|which: &usize| &records[*which]).copied());
            let heard = (ends.heard(), ends.heard());
            assert!(heard.0.is_err() || heard.1.is_err(), "{order:?}");
        }
    }
}

#[test]
fn a_session_that_waits_keeps_only_a_started_record() {
    let mut ends = Ends::new(TLS13);
    let bytes = vec![5; 60_000];
    ends.client.write(&mut ends.wire.client(), &[IoSlice::new(&bytes)], 60_000).unwrap();
    let last = ends.wire.there.pop_back().unwrap();
    let mut heard = Vec::new();
    while let Ok(more) = ends.heard() {
        heard.extend(more);
    }
    assert_eq!(heard.len(), 3 * (16 << 10));
    assert!(ends.server.held() <= (16 << 10) + 300, "{}", ends.server.held());
    ends.wire.there.push_back(last);
    heard.extend(ends.heard().unwrap());
    assert!(heard == bytes && ends.heard().is_err() && ends.server.held() <= 4096, "{}", ends.server.held());
}
