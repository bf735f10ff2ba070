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
