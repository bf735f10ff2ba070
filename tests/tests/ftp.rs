//! The curl plugin with protocols that are not of the web: an FTP server of the tests' own, and
//! files.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbdkit_tests::raw::error;
use rbdkit_tests::{Launch, Rng, Server, TempDir, tool};

/// How a server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It cannot begin in the middle of a file.
    NoRest,
    /// It does not tell the size.
    NoSize,
    /// It ends 100 bytes early.
    Short,
    /// Its greeting looks like a redirect of a web server.
    LooksLikeTheWeb,
    /// The file is not there.
    NoFile,
}

/// An FTP server with one file, whose user is "me" with the password "secret".
struct Ftp {
    port: u16,
    logins: Arc<AtomicUsize>,
}

impl Ftp {
    fn start(file: Vec<u8>, fault: Fault) -> Ftp {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (file, logins) = (Arc::new(file), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&logins);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (file, counter) = (Arc::clone(&file), Arc::clone(&counter));
                std::thread::spawn(move || serve(client, &file, fault, &counter));
            }
        });
        Ftp { port, logins }
    }

    fn url(&self) -> String {
        format!("ftp://127.0.0.1:{}/dir/disk.img", self.port)
    }

    /// A server of ours for this one.
    fn served(&self) -> Server {
        Launch::new(["curl", &self.url(), "protocols=ftp", "user=me", "password=secret"]).start()
    }
}

/// Serves one client until it leaves.
fn serve(client: TcpStream, file: &[u8], fault: Fault, logins: &AtomicUsize) -> Option<()> {
    let mut out = client.try_clone().ok()?;
    let mut say = |text: &str| out.write_all(format!("{text}\r\n").as_bytes()).ok();
    match fault {
        Fault::LooksLikeTheWeb => say("220-\r\nHTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n220 welcome")?,
        _ => say("220 welcome")?,
    }
    let (mut data, mut rest) = (None, 0usize);
    let mut user = String::new();
    for line in BufReader::new(client).lines() {
        let line = line.ok()?;
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        match command.to_ascii_uppercase().as_str() {
            "USER" => {
                user = argument.to_string();
                say("331 password")?;
            }
            "PASS" if user == "me" && argument == "secret" => {
                logins.fetch_add(1, Ordering::Relaxed);
                say("230 hello")?;
            }
            "PASS" => say("530 wrong")?,
            "PWD" => say("257 \"/\"")?,
            "CWD" | "TYPE" => say("200 ok")?,
            "EPSV" => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
                say(&format!("229 here (|||{}|)", listener.local_addr().ok()?.port()))?;
                data = Some(listener);
            }
            "SIZE" | "RETR" if fault == Fault::NoFile => say("550 no such file")?,
            "SIZE" if fault != Fault::NoSize => say(&format!("213 {}", file.len()))?,
            "REST" if fault != Fault::NoRest => {
                rest = argument.parse().ok()?;
                say("350 go on")?;
            }
            "RETR" => {
                say("150 here it comes")?;
                let (mut connection, _) = data.take()?.accept().ok()?;
                let end = if fault == Fault::Short { file.len() - 100 } else { file.len() };
                let sent = connection.write_all(&file[rest.min(end)..end]);
                drop(connection);
                rest = 0;
                say(if sent.is_ok() { "226 done" } else { "426 you left" })?;
            }
            "QUIT" => {
                say("221 bye")?;
                return Some(());
            }
            _ => say("502 what?")?,
        }
    }
    Some(())
}

fn content() -> Vec<u8> {
    Rng::new(7).bytes((3 << 20) + 77)
}

#[test]
fn a_file_of_an_ftp_server_is_served_read_only() {
    let dir = TempDir::new();
    let (file, copy) = (content(), dir.join("copy"));
    for fault in [Fault::None, Fault::LooksLikeTheWeb] {
        let ftp = Ftp::start(file.clone(), fault);
        let server = ftp.served();
        let uri = server.uri();
        let info = tool("nbdinfo", [&uri]).ok();
        assert!(info.contains("is_read_only: true") && info.contains("can_multi_conn: true"), "{info}");
        tool("nbdcopy", ["--requests=4", "--connections=2", &uri, copy.to_str().expect("UTF-8")]).ok();
        assert!(std::fs::read(&copy).ok().as_ref() == Some(&file), "{fault:?}");
        let mut client = server.client();
        let last = file.len() as u64 - 10;
        assert_eq!(client.read(last, 10), Ok(file[last as usize..].to_vec()));
        assert_eq!(client.read(12345, 1), Ok(file[12345..12346].to_vec()));
        assert!(ftp.logins.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn an_ftp_server_that_cannot_do_it_gives_an_error_and_no_wrong_data() {
    for fault in [Fault::NoSize, Fault::NoFile] {
        let server = Ftp::start(content(), fault).served();
        tool("nbdinfo", [&server.uri()]).fails();
        server.wait_for_log("curl: asking for the size: ");
    }
    let file = content();
    for fault in [Fault::NoRest, Fault::Short] {
        let server = Ftp::start(file.clone(), fault).served();
        let mut client = server.client();
        assert_eq!(client.read(0, 512), Ok(file[..512].to_vec()), "{fault:?}");
        assert_eq!(client.read(file.len() as u64 - 512, 512), Err(error::EIO), "{fault:?}");
    }
    // A wrong password is not asked for again.
    let ftp = Ftp::start(content(), Fault::None);
    let server = Launch::new(["curl", &ftp.url(), "protocols=ftp", "user=me", "password=wrong"]).start();
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("curl: asking for the size: ");
    assert_eq!(ftp.logins.load(Ordering::Relaxed), 0);
}

#[test]
fn other_protocols_than_those_of_the_web_have_to_be_allowed() {
    let dir = TempDir::new();
    let file = dir.file("a disk", &content());
    let url = format!("file://{}/a%20disk", dir.path().display());
    let refused = Launch::new(["curl", &url]).try_start().err().expect("a refusal");
    assert!(refused.stderr.contains("file is served only with protocols=file"), "{}", refused.stderr);
    let server = Server::start(["-v", "curl", &url, "protocols=file,http"]);
    let copy = dir.join("copy");
    tool("nbdcopy", [&server.uri(), copy.to_str().expect("UTF-8")]).ok();
    assert!(std::fs::read(&copy).ok() == std::fs::read(&file).ok());
    // At its end the server says how long the requests took.
    let log = server.stop().stderr;
    let times = |what: &str| log.lines().find(|line| line.contains("curl: ") && line.contains(what));
    assert!(times("times of ").is_some_and(|line| !line.contains(" 0 requests")), "{log}");
    assert!(times("data transfer").is_some_and(|line| line.ends_with(" s")), "{log}");
}
