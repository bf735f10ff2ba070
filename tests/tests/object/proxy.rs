//! A network between the plugin and a store that fails by seed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rbdkit_tests::Rng;

/// A request of HTTP.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The lines of the head after the first, without line ends.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The next request of a connection; none at its end.
    pub(crate) fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
        let mut line = || {
            let mut line = String::new();
            stream.read_line(&mut line).ok().filter(|count| *count > 0)?;
            Some(line.trim_end().to_owned())
        };
        let first = line()?;
        let mut headers = Vec::new();
        loop {
            match line()? {
                end if end.is_empty() => break,
                header => headers.push(header),
            }
        }
        let mut words = first.split(' ').map(str::to_owned);
        let mut request = Request { method: words.next()?, path: words.next()?, headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        request.body = vec![0; length];
        stream.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    /// The value of a header line.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.iter().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
        values.next()
    }

    /// Sends it to a server, and returns all that comes back.
    fn forward(&self, port: u16) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let kept = self.headers.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let headers: String = kept.map(|line| format!("{line}\r\n")).collect();
        let head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n", self.method, self.path);
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&self.body)).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(answer)
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Answered,
    /// The store is busy: 503 SlowDown.
    SlowDown,
    /// The credentials have expired: 400 ExpiredToken.
    Expired,
    /// The connection ends before the request reaches the store.
    Refused,
    /// The store carries it out, and the connection ends before the answer.
    AnswerLost,
    /// The connection ends within the answer.
    Cut,
    /// Nothing comes until the client gives up. Then the store carries it out.
    Late,
    /// Nothing comes until the client gives up.
    Silent,
}

/// Decides the fate of each request.
type Fates = Box<dyn FnMut(&Request) -> Fate + Send>;

/// The proxy, which ends with the test's process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    fates: Arc<Mutex<Fates>>,
    requests: Arc<AtomicU64>,
}

impl Proxy {
    /// Starts a proxy in front of the store at this port.
    pub(crate) fn start(store: u16, fates: impl FnMut(&Request) -> Fate + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let boxed: Fates = Box::new(fates);
        let proxy = Proxy { port, fates: Arc::new(Mutex::new(boxed)), requests: Arc::default() };
        let (fates, requests) = (Arc::clone(&proxy.fates), Arc::clone(&proxy.requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fates, requests) = (Arc::clone(&fates), Arc::clone(&requests));
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = Request::read(&mut stream) {
                        requests.fetch_add(1, Ordering::Relaxed);
                        let fate = fates.lock().expect("fates")(&request);
                        if serve(&request, fate, store, stream.get_mut()).is_none() {
                            return;
                        }
                    }
                });
            }
        });
        proxy
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// From now on requests have these fates.
    pub(crate) fn set(&self, fates: impl FnMut(&Request) -> Fate + Send + 'static) {
        *self.fates.lock().expect("fates") = Box::new(fates);
    }
}

/// Fates by seed: `percent` in a hundred are not answered as they should be.
pub(crate) fn by_seed(seed: u64, percent: u64) -> impl FnMut(&Request) -> Fate + Send {
    let mut rng = Rng::new(seed);
    let mut burst = 0;
    move |_| {
        if burst > 0 {
            burst -= 1;
            return Fate::SlowDown;
        }
        if !rng.chance(percent) {
            return Fate::Answered;
        }
        match rng.below(20) {
            0 => {
                burst = rng.below(20);
                Fate::SlowDown
            }
            1..5 => Fate::Refused,
            5..11 => Fate::AnswerLost,
            11..15 => Fate::Cut,
            15 => Fate::Expired,
            16 => Fate::Late,
            17 => Fate::Silent,
            _ => Fate::SlowDown,
        }
    }
}

/// Serves a request. None: the connection ends.
fn serve(request: &Request, fate: Fate, store: u16, client: &mut TcpStream) -> Option<()> {
    let error = |status: &str, code: &str| {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    // A HEAD has no body.
    let body = |text: String| match request.method.as_str() {
        "HEAD" => text.split_inclusive("\r\n\r\n").next().unwrap_or_default().to_owned(),
        _ => text,
    };
    match fate {
        Fate::Answered => {
            let answer = request.forward(store)?;
            client.write_all(&answer).ok()?;
            // The server said that it closes the connection, and the client has read that.
            None
        }
        Fate::SlowDown => client.write_all(body(error("503 Slow Down", "SlowDown")).as_bytes()).ok(),
        Fate::Expired => client.write_all(body(error("400 Bad Request", "ExpiredToken")).as_bytes()).ok(),
        Fate::Refused => None,
        Fate::AnswerLost => request.forward(store).and(None),
        Fate::Cut => {
            let answer = request.forward(store)?;
            client.write_all(&answer[..answer.len() * 2 / 3]).ok()?;
            None
        }
        Fate::Late => {
            wait_for_end(client);
            request.forward(store).and(None)
        }
        Fate::Silent => {
            wait_for_end(client);
            None
        }
    }
}

fn wait_for_end(client: &mut TcpStream) {
    let _ = client.read(&mut [0]);
}
