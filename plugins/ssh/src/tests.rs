use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Errno, Flags, Handle, Param, Result as ApiResult, Span};
use rbdkit_stream::{ConnectionError, Input, Socket};

use crate::config::{Config, Settings};
use crate::handle::SshHandle;
use crate::launch::arguments;
use crate::open::{Access, greet, open_file};
use crate::session::Session;
use crate::wire::{Packet, kind, status};

mod passwords;
mod stopping;

pub(crate) fn configure(params: &[&str]) -> Result<Settings, String> {
    let mut config = Config::default();
    for param in params {
        let (key, value) = param.split_once('=').unwrap_or(("path", param));
        config.set(Param { key, value: OsStr::new(value) }).map_err(|error| error.to_string())?;
    }
    config.settings().map_err(|error| error.to_string())
}

pub(crate) fn settings(params: &[&str]) -> Settings {
    configure(params).unwrap()
}

#[test]
fn parameters_that_make_no_sense_are_refused_in_one_line() {
    for (params, wrong) in [
        (&["/disk"][..], "the host (host=HOST) has to be given"),
        (&["host=far"], "the file on the host ([path=]PATH) has to be given"),
        (&["host="], "is not a name"),
        (&["host=-oProxyCommand=evil"], "is not a name"),
        (&["user=-x"], "is not a name"),
        (&["path="], "is not the name of a file"),
        (&["port=0"], "is not a port"),
        (&["port=65536"], "is not a port"),
        (&["port=no-such-service"], "is neither a port nor a service"),
        (&["timeout=0"], "is not a number of seconds"),
        (&["timeout=soon"], "is not a number of seconds"),
        (&["create-mode=999"], "is not a file mode"),
        (&["create-mode=+644"], "is not a file mode"),
        (&["create-mode=1777"], "is not a file mode"),
        (&["host=far", "/disk", "create=true"], "(create-size=SIZE) has to be given"),
        (&["known-hosts=a\"b"], "has a character that ssh does not take"),
        (&["identity="], "is not the name of a file"),
        (&["host=far", "/disk", "identity=/no/such/key"], "identity=/no/such/key: No such file"),
        (&["host=me:hush@far"], "host: has a user and a password"),
        (&["password=+/no/such/file"], "password: the file after '+' cannot be read: No such file"),
        (&["password=-0"], "has to be greater than 2"),
        (&["password=-999"], "the descriptor after '-' cannot be read: No such file"),
        (&["password=a\nb"], "has a character that cannot be typed"),
        (&["no=1"], "unknown parameter 'no'"),
    ] {
        let error = configure(params).unwrap_err();
        assert!(error.contains(wrong) && !error.contains('\n'), "{params:?}: {error}");
    }
}

#[test]
fn a_password_is_not_shown() {
    for password in ["se\ncret", "+secret", "-9999999999999999999", "-7777"] {
        let error = configure(&[&format!("password={password}")]).unwrap_err();
        assert!(!error.contains(password.trim_start_matches("se\n").trim_start_matches(['+', '-'])), "{error}");
    }
    let settings_with_one = settings(&["host=far", "/disk", "password=secret"]);
    assert!(!format!("{settings_with_one:?}").contains("secret"), "{settings_with_one:?}");
    let arguments = arguments(&settings(&["host=far", "/disk", "password=secret"]));
    assert!(!arguments.concat().contains("secret"), "{arguments:?}");
}

#[test]
fn parameters_become_options_of_ssh() {
    let key = std::env::temp_dir();
    let identity = format!("identity={}", key.display());
    let params = ["host=far", "/disk", "user=me", "port=ssh", "config=", "compression=1", "timeout=7", &identity];
    let line = arguments(&settings(&[&params[..], &["known-hosts=/a b%%"]].concat())).join(" ");
    for option in [
        "-o StrictHostKeyChecking=yes",
        "-o UserKnownHostsFile=\"/a b%%\"",
        "-o BatchMode=yes",
        "-o ConnectTimeout=7",
        "-o Compression=yes",
        &format!("-o IdentityFile=\"{}\" -o IdentityFile=~/.ssh/id_ed25519", key.display()),
        "-F none -l me -p 22 -s -- far sftp",
    ] {
        assert!(line.contains(option), "{option} is not in {line}");
    }
    let line = arguments(&settings(&["host=far", "/disk", "verify-remote-host=no"])).join(" ");
    assert!(line.contains("StrictHostKeyChecking=no") && line.contains("UserKnownHostsFile=/dev/null"), "{line}");
    assert!(line.ends_with("-s -- far sftp"), "{line}");
}

#[test]
fn files_are_created_for_their_owner_alone_unless_said() {
    let create =
        |mode: &[&str]| settings(&[&["host=far", "/disk", "create=1", "create-size=1M"], mode].concat()).create;
    assert_eq!(create(&[]).map(|create| (create.size, create.mode)), Some((1 << 20, 0o600)));
    assert_eq!(create(&["create-mode=0644"]).map(|create| create.mode), Some(0o644));
}

/// The server's side of a session, and the requests it has read.
struct Server(UnixStream);

struct Request {
    kind: u8,
    id: u32,
    body: Vec<u8>,
}

impl Request {
    fn of(packet: Vec<u8>) -> Request {
        let id = u32::from_be_bytes(packet[1..5].try_into().unwrap());
        Request { kind: packet[0], id, body: packet[5..].to_vec() }
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    /// Offset and length of a READ or WRITE of the handle "h".
    fn range(&self) -> (u64, u32) {
        (u64::from_be_bytes(self.body[5..13].try_into().unwrap()), self.number(13))
    }
}

impl Server {
    /// The client may have closed the connection already.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn packet(&mut self, packet: Packet) {
        self.send(&packet.finish(0));
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("the client's bytes");
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut packet).expect("the client's bytes");
        packet
    }

    /// None once the client has closed the connection.
    fn try_request(&mut self) -> Option<Request> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut packet).ok()?;
        Some(Request::of(packet))
    }

    fn request(&mut self) -> Request {
        Request::of(self.receive())
    }

    fn status(&mut self, id: u32, code: u32, message: &[u8]) {
        self.packet(Packet::request(kind::STATUS, id).u32(code).string(message).string(b""));
    }

    fn data(&mut self, id: u32, bytes: &[u8]) {
        self.packet(Packet::request(kind::DATA, id).string(bytes));
    }

    /// A file of 1 MiB, requests up to 8 KiB.
    fn opening(&mut self) {
        assert_eq!(self.receive()[0], kind::INIT);
        let extensions = Packet::new(kind::VERSION).u32(3).string(b"fsync@openssh.com").string(b"1");
        self.packet(extensions);
        let limits = self.request();
        assert_eq!(limits.kind, kind::EXTENDED);
        let piece = 8192;
        self.packet(Packet::request(kind::EXTENDED_REPLY, limits.id).u64(1 << 18).u64(piece).u64(piece).u64(0));
        let open = self.request();
        assert_eq!((open.kind, &open.body[4..9]), (kind::OPEN, &b"/disk"[..]));
        self.packet(Packet::request(kind::HANDLE, open.id).string(b"h"));
        let stat = self.request();
        self.packet(Packet::request(kind::ATTRS, stat.id).u32(1).u64(1 << 20));
    }

    /// Of a server without extensions, up to the open file.
    fn beginning(&mut self, handle: &[u8]) {
        self.packet(Packet::new(kind::VERSION).u32(3));
        self.receive();
        let limits = self.request();
        self.status(limits.id, status::OP_UNSUPPORTED, b"");
        let open = self.request();
        self.packet(Packet::request(kind::HANDLE, open.id).string(handle));
    }

    /// Says no more, and waits until the client has gone.
    fn wait_for_end(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut self.0, &mut std::io::sink());
    }
}

/// How long a test waits for the other side before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await });
    result.expect("the client's requests are answered before the deadline")
}

type Opening = Result<(Arc<Session>, Arc<SshHandle>), String>;

async fn open_session(script: impl FnOnce(&mut Server) + Send + 'static) -> (Opening, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(DEADLINE)).unwrap();
    theirs.set_write_timeout(Some(DEADLINE)).unwrap();
    let thread = std::thread::spawn(move || script(&mut Server(theirs)));
    let opened = async {
        let socket = Arc::new(Socket::new(ours.into()).unwrap());
        let mut input = Input::new(Arc::clone(&socket));
        let fsync = greet(&socket, &mut input).await.map_err(|broken: ConnectionError| broken.to_string())?;
        let session = Session::start(socket, input, None, "far".to_owned(), fsync);
        let opened = open_file(&session, &settings(&["host=far", "/disk"]), Access::ReadWrite).await;
        opened.map(|opened| (session, Arc::new(SshHandle::new(opened)))).map_err(|error| error.to_string())
    };
    (opened.await, thread)
}

async fn open(script: impl FnOnce(&mut Server) + Send + 'static) -> (Result<Arc<SshHandle>, String>, JoinHandle<()>) {
    let (opened, thread) = open_session(script).await;
    (opened.map(|(_session, handle)| handle), thread)
}

async fn handle(script: impl FnOnce(&mut Server) + Send + 'static) -> (Arc<SshHandle>, JoinHandle<()>) {
    let (opened, thread) = open(|server| {
        server.opening();
        script(server);
    })
    .await;
    (opened.unwrap(), thread)
}

async fn pread(handle: &SshHandle, offset: u64, length: u32) -> ApiResult<Vec<u8>> {
    let (mut buffer, result) = handle.pread(Buffer::new(length + 8), Span::new(4, length), offset).await;
    assert_eq!(buffer.len(), length + 8, "the request's own buffer");
    result.map(|()| buffer.bytes(Span::new(4, length)).to_vec())
}

#[test]
fn the_pieces_of_all_requests_are_in_flight_together() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            // Three reads of four pieces each, none of which is answered before all are asked for;
            // then the last ones first.
            let mut requests: Vec<Request> = (0..12).map(|_| server.request()).collect();
            requests.reverse();
            for request in requests {
                let (offset, length) = request.range();
                assert!(length <= 8192 && request.kind == kind::READ);
                server.data(request.id, &vec![(offset >> 12) as u8; length as usize]);
            }
            server.wait_for_end();
        })
        .await;
        let reads = [0, 40_960, 81_920].map(|offset| {
            let handle = Arc::clone(&handle);
            tokio::spawn(async move { pread(&handle, offset, 30_000).await })
        });
        for (nth, read) in reads.into_iter().enumerate() {
            let bytes = read.await.unwrap().unwrap();
            let expected = |at: usize| (nth * 10 + at / 8192 * 2) as u8;
            assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at)), "read {nth}");
        }
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn the_rest_of_a_short_answer_is_asked_for_again() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            let mut asked = Vec::new();
            for length in [5, 3000, 5187] {
                let request = server.request();
                asked.push(request.range());
                server.data(request.id, &vec![7; length]);
            }
            assert_eq!(asked, [(100, 8192), (105, 8187), (3105, 5187)]);
            server.wait_for_end();
        })
        .await;
        assert_eq!(pread(&handle, 100, 8192).await.unwrap(), vec![7; 8192]);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_long_write_is_cut_and_one_failure_is_the_whole_writes() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            let requests = [server.request(), server.request(), server.request()];
            let ranges = requests.each_ref().map(Request::range);
            assert_eq!(ranges, [(512, 8192), (8704, 8192), (16896, 3616)]);
            assert!(
                requests
                    .iter()
                    .all(|request| request.kind == kind::WRITE && request.body[17..].iter().all(|&b| b == 9))
            );
            server.status(requests[2].id, status::OK, b"");
            server.status(requests[0].id, 4, b"Fail\nure");
            server.status(requests[1].id, status::OK, b"");
            let flush = server.request();
            assert_eq!(flush.kind, kind::EXTENDED);
            server.status(flush.id, status::OK, b"");
            server.wait_for_end();
        })
        .await;
        let buffer = Buffer::from_vec(vec![9; 20_000]);
        let span = buffer.span();
        let error = handle.pwrite(buffer, span, 512, Flags::NONE).await.1.unwrap_err();
        assert_eq!(error.to_string(), "ssh: far: cannot write: the server says \"Fail?ure\" (EIO)");
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn the_end_of_the_file_and_refusals_fail_their_request_alone() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            for code in [status::EOF, status::PERMISSION_DENIED, status::OK] {
                let request = server.request();
                server.status(request.id, code, b"");
            }
            let request = server.request();
            server.data(request.id, &[1; 10]);
            server.wait_for_end();
        })
        .await;
        let eof = pread(&handle, 0, 10).await.unwrap_err();
        assert!(eof.to_string().contains("it is shorter than it was") && eof.errno() == Errno::Eio, "{eof}");
        assert_eq!(pread(&handle, 0, 10).await.unwrap_err().errno(), Errno::Eperm);
        assert_eq!(pread(&handle, 0, 10).await.unwrap_err().errno(), Errno::Eio);
        assert_eq!(pread(&handle, 0, 10).await.unwrap(), [1; 10]);
        handle.close().await;
        thread.join().unwrap();
    });
}

/// A read of 10000 bytes in two pieces and a flush are in flight; then the server does something.
fn breaks(what: &str, script: impl FnOnce(&mut Server, [u32; 2], u32) + Send + 'static) {
    block_on(async {
        let (handle, thread) = handle(|server| {
            let requests = [server.request(), server.request(), server.request()];
            let flush = requests.iter().position(|request| request.kind == kind::EXTENDED).unwrap();
            let reads: Vec<u32> = requests.iter().filter(|r| r.kind == kind::READ).map(|r| r.id).collect();
            script(server, [reads[0], reads[1]], requests[flush].id);
            server.wait_for_end();
        })
        .await;
        let other = Arc::clone(&handle);
        let flush = tokio::spawn(async move { other.flush().await });
        let error = pread(&handle, 0, 10_000).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{what}");
        assert!(error.context().is_some_and(|text| text.starts_with("ssh: far: ")), "{what}: {error}");
        assert_eq!(flush.await.unwrap().unwrap_err().errno(), Errno::Eio, "{what}");
        assert_eq!(pread(&handle, 0, 1).await.unwrap_err().errno(), Errno::Eio, "{what}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn an_answer_that_makes_no_sense_ends_the_session_and_fails_what_is_in_flight() {
    breaks("the end", |_, _, _| {});
    breaks("the end after half of it", |server, [first, _], _| server.data(first, &[1; 8192]));
    breaks("junk", |server, _, _| server.send(&[0x55; 10_000]));
    breaks("endless junk", |server, _, _| while server.0.write_all(&[0; 4096]).is_ok() {});
    breaks("an empty packet", |server, _, _| server.send(&[0; 5]));
    breaks("a packet of 4 GiB", |server, _, _| server.send(&[0xff; 5]));
    breaks("half an id", |server, _, _| server.send(&[0, 0, 0, 3, kind::STATUS, 0, 0]));
    breaks("a foreign id", |server, _, _| server.status(0xdead, 0, b""));
    breaks("more than was asked for", |server, [first, _], _| server.data(first, &[1; 8193]));
    breaks("no data", |server, [first, _], _| server.data(first, &[]));
    breaks("data of another length than its packet", |server, [first, _], _| {
        server.packet(Packet::request(kind::DATA, first).u32(8192));
    });
    breaks("an answer twice", |server, [first, _], _| {
        server.data(first, &[1; 8192]);
        server.data(first, &[1; 8192]);
    });
    breaks("attributes for a read", |server, [first, _], _| {
        server.packet(Packet::request(kind::ATTRS, first).u32(0));
    });
    breaks("half a status", |server, [first, _], _| server.packet(Packet::request(kind::STATUS, first)));
    breaks("data for a flush", |server, _, flush| server.data(flush, &[1; 10]));
}

#[test]
fn a_server_that_sends_a_byte_at_a_time_is_given_up() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            let mut asked = 0;
            // The client closes the connection when it gives up.
            while let Some(request) = server.try_request() {
                server.data(request.id, &[1]);
                asked += 1;
            }
            assert!(asked <= 128, "{asked} requests for two pieces");
        })
        .await;
        let error = pread(&handle, 0, 10_000).await.unwrap_err();
        assert!(error.to_string().contains("only a few bytes for each read"), "{error}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn an_opening_that_makes_no_sense_is_refused() {
    let says = |wrong: &str, script: fn(&mut Server)| {
        let wrong = wrong.to_owned();
        block_on(async move {
            let (opened, thread) = open(move |server| {
                script(server);
                server.wait_for_end();
            })
            .await;
            let error = opened.map(|_| ()).unwrap_err();
            assert!(error.contains(&wrong) && !error.contains('\n'), "{error}");
            thread.join().unwrap();
        });
    };
    says("the server closed the connection", |_| {});
    // What a shell's start-up file prints on the other host.
    says("the server sent a packet of", |server| server.send(b"Welcome to the host!\n"));
    says("it does not begin with its version", |server| server.packet(Packet::new(kind::STATUS).u32(3)));
    says("speaks version 6 of SFTP", |server| server.packet(Packet::new(kind::VERSION).u32(6)));
    says("a malformed handle", |server| server.beginning(&[1; 257]));
    says("cannot open /disk: it is a directory", |server| {
        server.beginning(b"h");
        let stat = server.request();
        server.packet(Packet::request(kind::ATTRS, stat.id).u32(5).u64(1).u32(0o040_755));
    });
}

#[test]
fn the_size_of_a_block_device_is_found_by_reading() {
    const FOUND: u64 = 3 * (1 << 40) + 512;
    for (size, bad) in [(0, None), (512, None), (1 << 20, None), (FOUND, None), (FOUND, Some(1 << 40))] {
        block_on(async move {
            let (opened, thread) = open(move |server| {
                server.beginning(b"h");
                let stat = server.request();
                server.packet(Packet::request(kind::ATTRS, stat.id).u32(5).u64(0).u32(0o060_660));
                let mut asked = 0;
                loop {
                    let request = server.request();
                    if request.kind != kind::READ {
                        break server.status(request.id, status::OK, b"");
                    }
                    asked += 1;
                    let (offset, length) = request.range();
                    assert_eq!(length, 1);
                    match offset {
                        _ if Some(offset) == bad => server.status(request.id, 4, b"Failure"),
                        _ if offset < size => server.data(request.id, &[1]),
                        // As OpenSSH does: lseek fails beyond the end of a device.
                        _ if offset > size => server.status(request.id, 4, b"Failure"),
                        _ => server.status(request.id, status::EOF, b"End of file"),
                    }
                }
                assert!(asked <= 53 + 33 * 9, "{asked} questions");
                server.wait_for_end();
            })
            .await;
            match (opened, bad) {
                (Ok(handle), None) => {
                    assert_eq!(handle.get_size().await.unwrap(), size);
                    handle.close().await;
                }
                (Err(error), Some(_)) => assert!(error.contains("parts of it cannot be read"), "{error}"),
                (opened, _) => panic!("{size} {bad:?}: {:?}", opened.map(|_| ())),
            }
            // One that was refused says nothing more, which this server does not expect.
            assert!(thread.join().is_ok() || bad.is_some());
        });
    }
}
