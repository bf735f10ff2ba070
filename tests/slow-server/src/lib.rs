//! An HTTP/1.1 server for the tests. It serves a disk image as slowly and with as many faults as a
//! test wants.
//!
//! It serves one disk under every path, with ranges and persistent connections. It waits
//! [`Rules::delay`] before each answer, sends at most [`Rules::bandwidth`], and counts what it was
//! asked for. The rules can be changed while it runs, and a [`Fault`] spoils one answer. Each
//! connection has a thread, so that requests wait side by side as at a real server.
//!
//! Paths: `/redirect/N` redirects to the disk in N steps, `/loop` redirects without end,
//! `/elsewhere?URL` redirects to URL. Every other path is the disk. The query
//! `?habit=NAME,NAME` gives a request the habits of [`HABITS`].
#![forbid(unsafe_code)]

mod connection;
mod content;
mod habits;
mod tls;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

pub use content::Content;
pub use habits::{HABITS, Habit};
pub use tls::Identity;

/// What spoils one answer to a GET, unless it asks only for the first byte, as clients do to find
/// the disk. [`Fault::Status`] spoils a PUT as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This many bytes of the body, then a reset of the connection.
    Reset(u64),
    /// This many bytes of the body, then an orderly close.
    Cut(u64),
    /// Another status, with a short page.
    Status(u16),
    /// Half of the body, then nothing until the server is dropped or paused.
    Stall,
    /// Bytes of another place, with the `Content-Range` of that place.
    WrongRange,
    /// Status 200 and the disk from its beginning, as from a server without ranges.
    NoRange,
    /// A body that is shorter than the requested range, with the `Content-Range` of the whole
    /// range.
    Short,
    /// A chunked body that never ends.
    Endless,
    /// Header lines without end.
    HugeHeader,
    /// Bytes that are not HTTP.
    Garbage,
}

/// Faults that come by chance. Each number is how often in 1000 answers.
#[derive(Clone, Debug, Default)]
pub struct Chances {
    /// The seed of the sequence.
    pub seed: u64,
    /// [`Fault::Reset`] at a random place.
    pub reset: u64,
    /// Three answers with status 503 in a row.
    pub burst: u64,
    /// [`Fault::WrongRange`].
    pub wrong_range: u64,
    /// [`Fault::Short`].
    pub short: u64,
}

/// How the server behaves. The rules may be changed while it runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long to wait before each answer.
    pub delay: Duration,
    /// The most bytes a second on each connection.
    pub bandwidth: Option<u64>,
    /// The disk's size in bytes.
    pub size: u64,
    /// The disk's `ETag`, with its quotes.
    pub etag: Option<String>,
    /// Whether HEAD is answered. Otherwise it gets status 405.
    pub head: bool,
    /// Whether ranges work. Otherwise GET gets the whole disk with status 200.
    pub ranges: bool,
    /// Whether `Accept-Ranges` is sent.
    pub accept_ranges: bool,
    /// A header line, for example `Cookie: a=1`. Requests without it get status 401.
    pub require: Option<String>,
    /// The value of `Set-Cookie` in every answer.
    pub set_cookie: Option<String>,
    /// The habits of all answers: names of [`HABITS`].
    pub habits: Vec<String>,
    /// The faults of the next requests, in order.
    pub faults: VecDeque<Fault>,
    /// Faults by chance, which begin when [`Rules::faults`] is empty.
    pub chances: Option<Chances>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            delay: Duration::ZERO,
            bandwidth: None,
            size: 0,
            etag: Some("\"1\"".into()),
            head: true,
            ranges: true,
            accept_ranges: true,
            require: None,
            set_cookie: None,
            habits: Vec::new(),
            faults: VecDeque::new(),
            chances: None,
        }
    }
}

/// What was asked for since the start or the last [`SlowServer::reset_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of all kinds.
    pub requests: u64,
    /// Requests that were GET or PUT.
    pub transfers: u64,
    /// Bytes of bodies that were sent.
    pub bytes: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// The most requests that were being answered at the same time.
    pub at_once: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    transfers: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    now: AtomicU64,
    at_once: AtomicU64,
}

impl Counters {
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn count_transfer(&self) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Shared {
    pub(crate) rules: Mutex<Rules>,
    pub(crate) content: Content,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) counters: Counters,
    /// The heads of the last requests.
    pub(crate) heads: Mutex<VecDeque<Vec<u8>>>,
    /// The last token of the habit `redirect-token`.
    pub(crate) token: Mutex<u64>,
    /// The state of the random generator for [`Chances`].
    pub(crate) chance: Mutex<u64>,
    /// Whether connections have to end.
    pub(crate) away: Mutex<bool>,
    pub(crate) changed: Condvar,
    /// The sockets of all connections. Only the connection itself keeps its socket open, so the
    /// socket closes when the connection ends.
    streams: Mutex<Vec<Weak<TcpStream>>>,
    over: AtomicBool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server that runs until it is dropped.
pub struct SlowServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Mutex<Option<(JoinHandle<()>, TcpListener)>>,
}

impl SlowServer {
    /// Serves `content` on a free port of the loopback interface.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(content: Content, rules: Rules, tls: Option<&Identity>) -> io::Result<SlowServer> {
        SlowServer::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), content, rules, tls)
    }

    /// Serves `content` on this address.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start_at(
        address: SocketAddr,
        content: Content,
        mut rules: Rules,
        tls: Option<&Identity>,
    ) -> io::Result<SlowServer> {
        if rules.size == 0 {
            rules.size = content.size();
        }
        let chance = rules.chances.as_ref().map_or(0, |chances| chances.seed);
        let shared = Arc::new(Shared {
            rules: Mutex::new(rules),
            content,
            tls: tls.map(Identity::config),
            counters: Counters::default(),
            heads: Mutex::default(),
            token: Mutex::new(0),
            chance: Mutex::new(chance),
            away: Mutex::new(false),
            changed: Condvar::new(),
            streams: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let server = SlowServer { shared, address, listener: Mutex::new(None) };
        server.accept_from(listener)?;
        Ok(server)
    }

    fn accept_from(&self, listener: TcpListener) -> io::Result<()> {
        let ours = listener.try_clone()?;
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if shared.over.load(Ordering::Acquire) || *lock(&shared.away) {
                    return;
                }
                shared.counters.connections.fetch_add(1, Ordering::Relaxed);
                let stream = Arc::new(stream);
                let mut streams = lock(&shared.streams);
                streams.retain(|stream| stream.strong_count() > 0);
                streams.push(Arc::downgrade(&stream));
                drop(streams);
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || connection::serve(&shared, &stream));
            }
        });
        *lock(&self.listener) = Some((thread, ours));
        Ok(())
    }

    /// `http://127.0.0.1:PORT` or `https://localhost:PORT`, to be followed by a path.
    pub fn url(&self) -> String {
        match self.shared.tls {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://{}", self.address),
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the rules from the next request on.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut lock(&self.shared.rules));
    }

    /// Adds faults for the next answers.
    pub fn spoil(&self, faults: impl IntoIterator<Item = Fault>) {
        self.change(|rules| rules.faults.extend(faults));
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        Counts {
            requests: counters.requests.load(Ordering::Relaxed),
            transfers: counters.transfers.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            connections: counters.connections.load(Ordering::Relaxed),
            at_once: counters.at_once.load(Ordering::Relaxed),
        }
    }

    /// Sets all counts to zero.
    pub fn reset_counts(&self) {
        let counters = &self.shared.counters;
        for counter in
            [&counters.requests, &counters.transfers, &counters.bytes, &counters.connections, &counters.at_once]
        {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// The heads of the last requests, oldest first. Bytes that are not UTF-8 are replaced.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.shared.heads).iter().map(|head| String::from_utf8_lossy(head).into_owned()).collect()
    }

    /// The heads of the last requests, oldest first.
    pub fn raw_heads(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.heads).iter().cloned().collect()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.streams).iter().filter(|stream| stream.strong_count() > 0).count()
    }

    /// Stops serving: resets the connections and refuses new ones.
    pub fn pause(&self) {
        *lock(&self.shared.away) = true;
        self.shared.changed.notify_all();
        if let Some((thread, listener)) = lock(&self.listener).take() {
            // This wakes the thread in `accept`.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            let _ = thread.join();
        }
        for stream in lock(&self.shared.streams).drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Serves again, at the same address.
    ///
    /// # Errors
    /// If another program took the port meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        *lock(&self.shared.away) = false;
        self.accept_from(TcpListener::bind(self.address)?)
    }

    /// Waits until `condition` holds for the counts.
    ///
    /// # Panics
    /// If it does not hold within a minute.
    pub fn wait_until(&self, what: &str, condition: impl Fn(Counts) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !condition(self.counts()) {
            assert!(std::time::Instant::now() < deadline, "it never came to this: {what}: {:?}", self.counts());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for SlowServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.pause();
    }
}
