//! Servers of the tests: moto for S3, from PyPI. Each test starts its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rbdkit_tests::toolchains::from_pypi;
use rbdkit_tests::{Launch, TempDir, free_port, wait};

/// The server of S3. Its directory has everything it needs.
const MOTO: &str = "moto[s3,server]==5.2.5";

/// What moto wants to see before it gives away what others have put. It does not check signatures.
const SIGNED: &str = "Authorization: AWS4-HMAC-SHA256 Credential=a/20261128/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=0";

/// A server, which ends with the test.
pub(crate) struct Store {
    child: Child,
    pub(crate) port: u16,
    _dir: TempDir,
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Store {
    /// Starts a server of S3 and makes the bucket `bucket`.
    pub(crate) fn s3() -> Store {
        let store = Store::start(|port, _| {
            let mut command = Command::new(moto());
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        });
        assert_eq!(store.request("PUT", "/bucket", &[], b"").0, 200);
        store
    }

    /// The same with TLS. It returns the file of the authority too.
    pub(crate) fn s3_with_tls() -> (Store, PathBuf) {
        let mut authority = PathBuf::new();
        let store = Store::start(|port, dir| {
            let (key, certificate) = (dir.join("key.pem"), dir.join("cert.pem"));
            let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout"]).arg(&key);
            openssl.args(subject).args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"]).arg(&certificate);
            assert!(wait::output(&mut openssl).status.success());
            let mut command = Command::new(moto());
            command.args(["-H", "127.0.0.1", "-p", &port.to_string(), "-s", "-c"]).arg(&certificate);
            command.arg("-k").arg(&key);
            authority = certificate;
            command
        });
        (store, authority)
    }

    /// Starts a server that listens on a port that is free.
    pub(crate) fn start(command: impl FnOnce(u16, &TempDir) -> Command) -> Store {
        let (port, dir) = (free_port(), TempDir::new());
        let mut command = command(port, &dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(dir.path());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let store = Store { child, port, _dir: dir };
        wait::until("the store listens", || TcpStream::connect(("127.0.0.1", store.port)).is_ok());
        store
    }

    /// Sends a request without credentials.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the store");
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let text = String::from_utf8_lossy(&answer);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer with a head") + 4;
        (status.expect("a status"), answer[at..].to_vec())
    }

    pub(crate) fn put(&self, key: &str, body: &[u8]) {
        assert_eq!(self.request("PUT", &format!("/bucket/{key}"), &[SIGNED], body).0, 200);
    }

    /// An object; none if it is not there.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let (status, body) = self.request("GET", &format!("/bucket/{key}"), &[SIGNED], b"");
        (status == 200).then_some(body)
    }

    /// A server of ours over this store.
    pub(crate) fn rbdkit(&self, arguments: &[&str]) -> Launch {
        launch(self.port, arguments)
    }
}

/// A server of ours over the store at this port.
pub(crate) fn launch(port: u16, arguments: &[&str]) -> Launch {
    let launch = Launch::new(["object"]).args(arguments).arg(format!("endpoint-url=http://127.0.0.1:{port}"));
    launch.env("AWS_ACCESS_KEY_ID", "the-key").env("AWS_SECRET_ACCESS_KEY", "hush-hush")
}

fn moto() -> PathBuf {
    from_pypi(MOTO).join("moto_server")
}
