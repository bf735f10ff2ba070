//! A registry that says whatever a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// What the registry does after a request.
pub enum Reply {
    /// Sends this and closes the connection.
    Whole(Vec<u8>),
    /// Sends this, and then bytes without end.
    Endless(Vec<u8>),
    /// Sends this, and then a byte now and then, without end.
    Drip(Vec<u8>),
}

/// An answer with a status, further header lines (each with its end) and a body.
pub fn reply(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    Reply::Whole([head.as_bytes(), body].concat())
}

pub fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The component of the fake registry. Pulling does not look into it.
pub const COMPONENT: &[u8] = b"a component";

/// The manifest of [`COMPONENT`].
pub fn manifest() -> String {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": digest(COMPONENT), "size": COMPONENT.len()}],
    })
    .to_string()
}

/// A good answer to a request for a manifest.
pub fn with_manifest(text: &str) -> Reply {
    reply("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), text.as_bytes())
}

pub struct Fake {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// A registry that answers each request for a path with this. It has no TLS.
    pub fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&heads), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Fake { address, heads }
    }

    /// One that has the component and answers requests for its manifest (`true`) or its bytes with
    /// what `lie` gives instead.
    pub fn lying(lie: impl Fn(bool) -> Option<Reply> + Send + Sync + 'static) -> Fake {
        Fake::start(move |path| {
            let of_manifest = path.contains("/manifests/");
            lie(of_manifest).unwrap_or_else(|| match of_manifest {
                true => with_manifest(&manifest()),
                false => reply("200 OK", "", COMPONENT),
            })
        })
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn reference(&self) -> String {
        format!("oci://{}/x:1", self.address)
    }

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut stream: TcpStream, heads: &Mutex<Vec<String>>, answer: &dyn Fn(&str) -> Reply) {
    let mut first = [0];
    // 0x16 is how TLS begins. The connection is closed then.
    if !matches!(stream.peek(&mut first), Ok(1)) || first[0] == 0x16 {
        return;
    }
    let mut reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    match answer(&path) {
        Reply::Whole(bytes) => {
            let _ = stream.write_all(&bytes);
        }
        Reply::Endless(bytes) => {
            let _ = stream.write_all(&bytes);
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }
        Reply::Drip(bytes) => {
            let _ = stream.write_all(&bytes);
            while stream.write_all(b"x").is_ok() {
                thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // Closing with unread bytes would reset the connection.
    let _ = reader.read_to_end(&mut Vec::new());
}
