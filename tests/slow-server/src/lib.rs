//! An HTTP/1.1 server for the tests: a remote disk image, as slow and as broken as a test wants it.
//!
//! It serves one disk under every path, with ranges and connections that are kept, waits [`Rules::delay`] before each answer, sends no faster than
//! [`Rules::bandwidth`], and counts what it was asked for. Rules can be changed while it runs; a [`Fault`] spoils one answer. A thread serves each
//! connection, so that requests wait beside one another as they do at a real server.
//!
//! Paths: `/redirect/N` leads to the disk in N steps, `/loop` never does, `/elsewhere?URL` leads to URL; anything else is the disk.
#![forbid(unsafe_code)]

mod connection;
mod content;
mod tls;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

pub use content::Content;
pub use tls::Identity;

/// What spoils one answer to GET (or PUT, for a status).
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
    /// The right bytes of another place: `Content-Range` says so.
    WrongRange,
    /// 200 and the disk from its beginning, as a server that knows no ranges does.
    NoRange,
    /// A complete body that is shorter than what was asked for, with a `Content-Range` that promises all.
    Short,
    /// A chunked body that never ends.
    Endless,
    /// Header lines without end.
    HugeHeader,
    /// Bytes that are not HTTP.
    Garbage,
}

/// Faults that come by chance: each is a number of times in 1000.
#[derive(Clone, Debug, Default)]
pub struct Chances {
    /// The seed of the sequence.
    pub seed: u64,
    /// [`Fault::Reset`] at a random place.
    pub reset: u64,
    /// A burst of three 503.
    pub burst: u64,
    /// [`Fault::WrongRange`].
    pub wrong_range: u64,
    /// [`Fault::Short`].
    pub short: u64,
}

/// How the server behaves; may be changed while it runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Before each answer.
    pub delay: Duration,
    /// Bytes a second on each connection.
    pub bandwidth: Option<u64>,
    /// The disk's size in bytes.
    pub size: u64,
    /// The disk's `ETag`, with its quotes.
    pub etag: Option<String>,
    /// Whether HEAD is answered (405 otherwise).
    pub head: bool,
    /// Whether ranges work (200 with everything otherwise).
    pub ranges: bool,
    /// Whether `Accept-Ranges` is sent.
    pub accept_ranges: bool,
    /// 401 for requests without this header line, for example `Cookie: a=1`.
    pub require: Option<String>,
    /// `Set-Cookie` of every answer.
    pub set_cookie: Option<String>,
    /// For the next requests, in order.
    pub faults: VecDeque<Fault>,
    /// By chance, once [`Rules::faults`] is empty.
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
            faults: VecDeque::new(),
            chances: None,
        }
    }
}

/// What has been asked for since the start or the last [`SlowServer::reset_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of all kinds.
    pub requests: u64,
    /// GET and PUT.
    pub transfers: u64,
    /// Bytes of bodies that were sent.
    pub bytes: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// The most requests that were answered at the same time.
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

pub(crate) struct Shared {
    pub(crate) rules: Mutex<Rules>,
    pub(crate) content: Content,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) counters: Counters,
    /// The heads of the last requests.
    pub(crate) heads: Mutex<VecDeque<String>>,
    /// The state of the chances.
    pub(crate) chance: Mutex<u64>,
    /// Set when connections are to end.
    pub(crate) away: Mutex<bool>,
    pub(crate) changed: Condvar,
    /// Of each connection that is served; the connection itself has the only other hold of its socket, so that it closes when it ends.
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

    /// The same on an address of the caller's.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it behaves from the next request on.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut lock(&self.shared.rules));
    }

    /// Spoils the next answers.
    pub fn spoil(&self, faults: impl IntoIterator<Item = Fault>) {
        self.change(|rules| rules.faults.extend(faults));
    }

    /// What was asked for.
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

    /// Begins to count anew.
    pub fn reset_counts(&self) {
        let counters = &self.shared.counters;
        for counter in
            [&counters.requests, &counters.transfers, &counters.bytes, &counters.connections, &counters.at_once]
        {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// The heads of the last requests, oldest first.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.shared.heads).iter().cloned().collect()
    }

    /// Goes away: connections are reset and new ones refused.
    pub fn pause(&self) {
        *lock(&self.shared.away) = true;
        self.shared.changed.notify_all();
        if let Some((thread, listener)) = lock(&self.listener).take() {
            // Wakes the accept.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            let _ = thread.join();
        }
        for stream in lock(&self.shared.streams).drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Comes back, at the same address.
    ///
    /// # Errors
    /// If somebody else took the port meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        *lock(&self.shared.away) = false;
        self.accept_from(TcpListener::bind(self.address)?)
    }

    /// Waits until `condition` holds of the counts.
    ///
    /// # Panics
    /// If it does not within a minute.
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
