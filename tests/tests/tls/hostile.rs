//! What attackers and broken clients do around TLS: they downgrade, inject, stall and lie.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_tests::raw::Stream;
use rbdkit_tests::{Launch, Server, TempDir, tool, wait};
use rbdkit_tls::{CertificateFiles, ClientTls, Handshake, Role, ServerIdentity, Session};

use crate::pki::{Keys, Pki};

const STARTTLS: u32 = 5;
const LIST: u32 = 3;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const ACK: u32 = 1;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQUIRED: u32 = 0x8000_0005;

fn server(arguments: &[&str]) -> Server {
    Launch::new(["--tls=require", "-v"]).args(arguments).args(["memory", "1M"]).start()
}

/// A client that has the server's agreement to begin TLS.
fn agreed(socket: &Path) -> Stream {
    let mut stream = Stream::connect(socket);
    stream.greet(3).unwrap();
    stream.option(STARTTLS, &[]).unwrap();
    assert_eq!(stream.option_reply(STARTTLS).unwrap(), (ACK, vec![]));
    stream
}

fn session(pki: &Pki) -> Session {
    let files = CertificateFiles::of_directory(Role::Client, pki.path()).unwrap();
    let client = ClientTls::with_certificates(Some(&files), &ServerIdentity::AnyName, None).unwrap();
    client.connect().unwrap()
}

/// A socket that sends `left` bytes and then no more.
struct Limited<'a> {
    socket: &'a UnixStream,
    left: usize,
    sent: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        (&mut self.socket).read(to)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = (&mut self.socket).write(&bytes[..count])?;
        (self.left, self.sent) = (self.left - count, self.sent + count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Goes on with the handshake until it is over, or until `most` bytes are sent. The result is how
/// many were sent, and whether it is over.
fn handshake(stream: &Stream, session: &mut Session, most: usize) -> (usize, bool) {
    let mut wire = Limited { socket: &stream.0, left: most, sent: 0 };
    // Reads wait for the server, which always has something to say in a handshake.
    let mut step = session.handshake(&mut wire).unwrap();
    while step == Handshake::WantsRead {
        step = session.handshake(&mut wire).unwrap();
    }
    (wire.sent, step == Handshake::Done)
}

#[test]
fn a_client_that_stalls_in_any_message_of_the_handshake_keeps_nobody_waiting() {
    let pki = Pki::shared();
    let server = server(&["--tls-verify-peer", "--timeout=3s", &pki.option()]);
    let mut whole = session(pki);
    let (length, done) = handshake(&agreed(server.socket()), &mut whole, usize::MAX);
    assert!(done);
    let before = server.resident();
    // Nothing at all, a part of a record's header, of the first message, and of each later one.
    let places = [0, 3, 5, 60, 240, length - 400, length - 200, length - 40, length - 1];
    let mut stalled = Vec::new();
    for place in places.iter().copied().cycle().take(8 * places.len()) {
        let (stream, mut session) = (agreed(server.socket()), session(pki));
        let (sent, done) = handshake(&stream, &mut session, place);
        assert_eq!((sent, done), (place, false));
        stalled.push(stream);
    }
    // Others are served meanwhile.
    assert_eq!(tool("nbdinfo", ["--size", &pki.uri(server.socket())]).ok().trim(), "1048576");
    let each = server.resident().saturating_sub(before) / stalled.len() as u64;
    assert!(each < 128 << 10, "{each} bytes for each client");
    for stream in &mut stalled {
        // The server has said what it had to say, and then closes the connection.
        stream.drain();
    }
    server.wait_for_log("TLS: the client takes too long");
}

#[test]
fn what_comes_before_tls_is_not_used_within_it() {
    let pki = Pki::shared();
    let server = Launch::new(["--tls=on", "-v", &pki.option(), "memory", "1M"]).start();
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).unwrap();
    stream.option(STRUCTURED_REPLY, &[]).unwrap();
    assert_eq!(stream.option_reply(STRUCTURED_REPLY).unwrap().0, ACK);
    stream.option(STARTTLS, &[]).unwrap();
    assert_eq!(stream.option_reply(STARTTLS).unwrap().0, ACK);
    let mut session = session(pki);
    assert!(handshake(&stream, &mut session, usize::MAX).1);
    let mut wire = Limited { socket: &stream.0, left: usize::MAX, sent: 0 };
    let mut ask = |session: &mut Session, option: u32, data: &[u8]| {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        session.write(&mut wire, &[io::IoSlice::new(&message)], message.len()).unwrap();
        let mut reply = [0; 20];
        let mut count = 0;
        while count < reply.len() {
            count += session.read(&mut wire, &mut reply[count..], &mut []).unwrap().count;
        }
        let length = u32::from_be_bytes(reply[16..].try_into().unwrap()) as usize;
        let (mut text, mut count) = (vec![0; length], 0);
        while count < length {
            count += session.read(&mut wire, &mut text[count..], &mut []).unwrap().count;
        }
        u32::from_be_bytes(reply[12..16].try_into().unwrap())
    };
    // Structured replies have to be agreed upon again, and TLS is there already.
    let context = [&0_u32.to_be_bytes()[..], &0_u32.to_be_bytes()].concat();
    assert_eq!(ask(&mut session, 9, &context), ERR_INVALID);
    assert_eq!(ask(&mut session, STARTTLS, &[]), ERR_INVALID);
    assert_eq!(ask(&mut session, STRUCTURED_REPLY, &[]), ACK);
}

#[test]
fn a_client_that_sends_more_behind_starttls_is_disconnected() {
    let pki = Pki::shared();
    let server = server(&[&pki.option()]);
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).unwrap();
    // Both in one packet, as an attacker on the way would add it.
    let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    stream.send(&[option(STARTTLS), option(LIST)].concat()).unwrap();
    assert_eq!(stream.drain(), 0, "no answer");
    server.wait_for_log("it sends more before TLS begins");
    assert_eq!(tool("nbdinfo", ["--size", &pki.uri(server.socket())]).ok().trim(), "1048576");
}

#[test]
fn nothing_is_answered_in_the_clear_when_tls_is_required() {
    let pki = Pki::shared();
    let server = server(&[&pki.option()]);
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).unwrap();
    for option in [LIST, 6, GO, STRUCTURED_REPLY, 9, 10, 11, 77] {
        stream.option(option, &[]).unwrap();
        assert_eq!(stream.option_reply(option).unwrap().0, ERR_TLS_REQUIRED, "{option}");
    }
    // This one has no error reply.
    stream.option(1, b"").unwrap();
    assert_eq!(stream.drain(), 0);
    // Plain options where TLS should begin.
    let mut stream = agreed(server.socket());
    stream.option(LIST, &[]).unwrap();
    // At most an alert comes back.
    assert!(stream.drain() < 64);
    server.wait_for_log("closed: TLS: ");
}

#[test]
fn records_that_are_wrong_end_the_connection() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    for option in [pki.option(), keys.option()] {
        let server = server(&[&option]);
        let oversized = [&[22, 3, 1, 0xff, 0xff][..], &[1; 1000]].concat();
        // A handshake message that claims 16 MiB less a byte.
        let long = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16380]].concat();
        // A handshake message of TLS 1.0, and one of SSL 2.
        let old = [22, 3, 1, 0, 4, 1, 0, 0, 0];
        let older = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10];
        // Data before the handshake, and a change of ciphers.
        let (data, change) = ([23, 3, 3, 0, 4, 1, 2, 3, 4], [20, 3, 3, 0, 1, 2]);
        for bytes in [&oversized[..], &long, &old, &older, &data, &change, b"GET / HTTP/1.1\r\n\r\n"] {
            let mut stream = agreed(server.socket());
            // The server may close before it has taken all of it.
            let _ = stream.send(bytes);
            let _ = stream.0.shutdown(Shutdown::Write);
            assert!(stream.drain() < 64, "{:?}", &bytes[..8.min(bytes.len())]);
        }
        // Within the session: a record that nobody encrypted.
        let mut stream = agreed(server.socket());
        if option == pki.option() {
            let mut session = session(pki);
            assert!(handshake(&stream, &mut session, usize::MAX).1);
            stream.send(&[&[23, 3, 3, 0, 40][..], &[0; 40]].concat()).unwrap();
            assert!(stream.drain() < 128);
        }
        drop(stream);
        wait::until("all are gone", || server.stderr().matches("closed: TLS: ").count() >= 7);
    }
}

/// A client of OpenSSL that asks for new keys within a session of TLS 1.2. It leaves when they are
/// refused. The result is what it says.
fn renegotiate(server: &Server, arguments: &[&str]) -> String {
    let dir = TempDir::new();
    let (socket, said) = (dir.join("proxy"), dir.join("said"));
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let output = File::create(&said).unwrap();
    // What it prints goes into a file, because it keeps it back in a pipe.
    let mut client = Command::new("timeout")
        .args(["-k", "5", "60", "openssl", "s_client", "-tls1_2", "-unix"])
        .arg(&socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let mut client_side = None;
    wait::until("the client connects", || {
        client_side = listener.accept().ok();
        client_side.is_some()
    });
    let (client_side, _) = client_side.unwrap();
    client_side.set_nonblocking(false).unwrap();
    // NBD's part, which the client does not know.
    let server_side = agreed(server.socket()).0;
    let pump = |mut from: UnixStream, mut to: UnixStream| {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    let pumps =
        [pump(client_side.try_clone().unwrap(), server_side.try_clone().unwrap()), pump(server_side, client_side)];
    let mut commands = client.stdin.take().unwrap();
    // It reads commands once the handshake is done.
    commands.write_all(b"R\n").unwrap();
    let status = client.wait().unwrap();
    drop(commands);
    pumps.into_iter().for_each(|pump| pump.join().unwrap());
    let said = std::fs::read_to_string(said).unwrap();
    assert!(!status.success(), "{said}");
    said
}

#[test]
fn a_client_that_asks_for_new_keys_with_tls_1_2_is_refused() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    let key = std::fs::read_to_string(keys.path()).unwrap();
    let key = key.trim().strip_prefix("alice:").unwrap();
    let (authorities, psk) = (pki.file("ca-cert.pem").display().to_string(), ["-psk_identity", "alice", "-psk", key]);
    for (option, arguments) in [(pki.option(), &["-CAfile", &*authorities][..]), (keys.option(), &psk)] {
        let server = server(&[&option]);
        let said = renegotiate(&server, arguments);
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
        wait::until("the client is gone", || server.stderr().contains("closed"));
    }
}
