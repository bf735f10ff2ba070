//! Sessions of both ends with each other, in memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};

use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use super::*;

mod hostile;
mod with_rustls;

/// Two directions between two ends. Each call moves `step` bytes at most.
#[derive(Default)]
struct Wire {
    there: VecDeque<u8>,
    back: VecDeque<u8>,
    step: usize,
    /// No more than this many bytes wait in a direction.
    room: usize,
}

/// One end's view.
struct Side<'a> {
    from: &'a mut VecDeque<u8>,
    to: &'a mut VecDeque<u8>,
    step: usize,
    room: usize,
}

impl Wire {
    fn new(step: usize, room: usize) -> Wire {
        Wire { step, room, ..Wire::default() }
    }

    fn client(&mut self) -> Side<'_> {
        Side { from: &mut self.back, to: &mut self.there, step: self.step, room: self.room }
    }

    fn server(&mut self) -> Side<'_> {
        Side { from: &mut self.there, to: &mut self.back, step: self.step, room: self.room }
    }
}

impl Read for Side<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = to.len().min(self.step);
        match self.from.read(&mut to[..count])? {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Side<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.step).min(self.room - self.to.len().min(self.room));
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.to.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

/// A certificate for this name and key, signed by `by`, or by itself as an authority.
fn certificate(name: &str, key: &PKey<Private>, by: Option<(&X509, &PKey<Private>)>) -> X509 {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&Asn1Integer::from_bn(&BigNum::from_u32(7).unwrap()).unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(by.map_or(&subject, |(authority, _)| authority.subject_name())).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    match by {
        None => builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap(),
        Some((authority, _)) => {
            let names = SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(Some(authority), None));
            builder.append_extension(names.unwrap()).unwrap();
        }
    }
    builder.sign(by.map_or(key, |(_, key)| key), MessageDigest::sha256()).unwrap();
    builder.build()
}

/// The settings of a server and of a client, with certificates that both ends check.
fn with_certificates(priority: &str) -> (ServerTls, ClientTls) {
    let (ca_key, own_key) = (key(), key());
    let ca = certificate("CA", &ca_key, None);
    let own = certificate("localhost", &own_key, Some((&ca, &ca_key)));
    let read = |name: &str| match name {
        "ca-cert.pem" => Ok(ca.to_pem().unwrap()),
        "server-cert.pem" | "client-cert.pem" => Ok(own.to_pem().unwrap()),
        "server-key.pem" | "client-key.pem" => Ok(own_key.private_key_to_pem_pkcs8().unwrap()),
        _ => Err(ErrorKind::NotFound.into()),
    };
    let files = CertificateFiles::read(Role::Server, read).unwrap();
    let priority = Priority::parse(priority).unwrap();
    let server = ServerTls::with_certificates(&files, ClientCertificates::Required, priority, None).unwrap();
    let files = CertificateFiles::read(Role::Client, read).unwrap();
    let client = ClientTls::with_certificates(Some(&files), &ServerIdentity::Name("localhost".into()), None).unwrap();
    (server, client)
}

fn with_keys(priority: &str) -> (ServerTls, ClientTls) {
    let keys = || KeyFile::parse(b"alice:00112233445566778899aabbccddeeff").unwrap();
    let server = ServerTls::with_keys(keys(), Priority::parse(priority).unwrap(), None).unwrap();
    (server, ClientTls::with_keys(&keys(), "alice", None).unwrap())
}

/// Both ends after the handshake.
fn agree(server: &ServerTls, client: &ClientTls, wire: &mut Wire) -> io::Result<(Session, Session)> {
    let (mut server, mut client) = (server.accept()?, client.connect()?);
    for _ in 0..100_000 {
        let client_is = client.handshake(&mut wire.client())?;
        let server_is = server.handshake(&mut wire.server())?;
        if (client_is, server_is) == (Handshake::Done, Handshake::Done) {
            return Ok((server, client));
        }
    }
    panic!("no end");
}

/// Sends bytes through a wire that holds little, in slices of many lengths.
fn send(from: &mut Session, to: &mut Session, wire: &mut Wire, bytes: &[u8], most: usize) {
    let (mut sent, mut received) = (0, Vec::<u8>::new());
    for _ in 0..10_000_000 {
        if sent < bytes.len() {
            let (head, rest) = bytes[sent..].split_at((bytes.len() - sent).min(28));
            let slices = [IoSlice::new(head), IoSlice::new(rest)];
            sent += from.write(&mut wire.client(), &slices, most).unwrap().unwrap_or(0);
        }
        let (mut first, mut second) = ([0; 3000], [0; 70]);
        match to.read(&mut wire.server(), &mut first, &mut second) {
            Ok(read) => {
                received.extend(&first[..read.count.min(first.len())]);
                received.extend(&second[..read.count.saturating_sub(first.len())]);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if received.len() >= bytes.len() {
            assert!(received == bytes);
            return;
        }
    }
    panic!("{} of {} bytes came", received.len(), bytes.len());
}

#[test]
fn both_ends_agree_and_understand_each_other_whatever_the_wire_does() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    for priority in ["NORMAL:-VERS-TLS1.3", "NORMAL:-VERS-TLS1.2"] {
        for (server, client) in [with_certificates(priority), with_keys(priority)] {
            for (step, room) in [(usize::MAX, usize::MAX), (1000, 1500), (7, 100_000)] {
                let mut wire = Wire::new(step, room);
                let (mut server, mut client) = agree(&server, &client, &mut wire).unwrap();
                assert!(
                    server.algorithms().contains(if priority.ends_with('3') { "1.2" } else { "1.3" })
                        || server.algorithms().contains(if priority.ends_with('3') { "1_2" } else { "1_3" })
                );
                let most = if step == 1000 { 5000 } else { 64 << 10 };
                send(&mut client, &mut server, &mut wire, &bytes, most);
                assert!(!client.has_unsent());
                client.close(&mut wire.client());
                let end = server.read(&mut wire.server(), &mut [0; 10], &mut []).map(|read| read.count);
                assert!(step != usize::MAX || end.unwrap() == 0, "the end of the client's bytes");
            }
        }
    }
}

#[test]
fn the_names_of_a_client_are_known_with_certificates_only() {
    let (server, client) = with_certificates("NORMAL");
    let (session, _) = agree(&server, &client, &mut Wire::new(usize::MAX, usize::MAX)).unwrap();
    let names = PeerNames { subject: Some("CN=localhost".into()), issuer: Some("CN=CA".into()) };
    assert_eq!(session.peer_names(), names);
    let (server, client) = with_keys("NORMAL");
    let (session, _) = agree(&server, &client, &mut Wire::new(usize::MAX, usize::MAX)).unwrap();
    assert_eq!(session.peer_names(), PeerNames::default());
}

#[test]
fn ends_that_have_nothing_in_common_do_not_agree() {
    let fails = |server: &ServerTls, client: &ClientTls| {
        assert!(agree(server, client, &mut Wire::new(usize::MAX, usize::MAX)).is_err());
    };
    let (certificates, keys) = (with_certificates("NORMAL"), with_keys("NORMAL"));
    fails(&certificates.0, &keys.1);
    fails(&keys.0, &certificates.1);
    // Another authority.
    fails(&with_certificates("NORMAL").0, &certificates.1);
}

#[test]
fn a_byte_that_somebody_changed_ends_the_session() {
    for (server, client) in [with_certificates("NORMAL"), with_keys("NORMAL")] {
        let mut wire = Wire::new(usize::MAX, usize::MAX);
        let (mut server, mut client) = agree(&server, &client, &mut wire).unwrap();
        client.write(&mut wire.client(), &[IoSlice::new(b"a request")], 100).unwrap();
        *wire.there.back_mut().unwrap() ^= 1;
        let error = server.read(&mut wire.server(), &mut [0; 100], &mut []).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
