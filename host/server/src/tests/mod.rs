//! Tests of the server with a plugin in memory, over real Unix sockets, with a client written by
//! hand.

mod client;
mod limits;
mod plugin;
mod serving;
mod stopping;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rbdkit_plugin_api::Pool;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::{Listener, Server, ServerLimits, ServerOptions, Stop};
use client::Client;
use plugin::{Disk, TestPlugin};
use rbdkit_chain::Chain;

/// A server that listens, and its plugin's disk. Dropping it stops the server.
struct Running {
    runtime: Option<Runtime>,
    server: Arc<Server>,
    disk: Arc<Disk>,
    stop: Stop,
    serving: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Running {
    fn start(disk: Arc<Disk>, options: ServerOptions) -> Running {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rbdkit-server-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let chain = Chain::new(Vec::new(), "test", Box::new(TestPlugin(Arc::clone(&disk))), Pool::new());
        let server = Arc::new(Server::new(chain, options));
        let stop = Stop::new();
        let serving = {
            let (server, stop) = (Arc::clone(&server), stop.clone());
            runtime.spawn(async move { server.serve(vec![Listener::Unix(listener)], stop).await })
        };
        Running { runtime: Some(runtime), server, disk, stop, serving: Some(serving), path }
    }

    fn with(options: ServerOptions) -> Running {
        Running::start(Disk::new(8 << 20), options)
    }

    fn plain() -> Running {
        Running::with(ServerOptions::default())
    }

    fn limited(limits: ServerLimits) -> Running {
        Running::with(ServerOptions { limits, ..ServerOptions::default() })
    }

    fn over(disk: Arc<Disk>, limits: ServerLimits) -> Running {
        Running::start(disk, ServerOptions { limits, ..ServerOptions::default() })
    }

    /// Awaits something that should end soon. After 60 s the test fails.
    fn block_on<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let limit = Duration::from_secs(60);
        self.runtime.as_ref().unwrap().block_on(async {
            tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
        })
    }

    fn connect(&self) -> Client {
        Client::over(UnixStream::connect(&self.path).unwrap())
    }

    fn client(&self, structured: bool) -> Client {
        let mut client = self.connect();
        client.go("", structured);
        client
    }

    /// Waits for something that happens on other threads. After 20 s the test fails.
    fn until(&self, what: &str, happened: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if happened() {
                return;
            }
            #[allow(clippy::disallowed_methods, reason = "between two checks; there is no event for it")]
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not within 20 s: {what}; diary {:?}", self.disk.diary());
    }

    /// Waits until nothing is in flight and all connections are closed.
    fn until_all_is_given_back(&self) {
        self.until("everything is given back", || self.taken_bytes() == 0 && self.open_connections() == 0);
    }

    /// The number of clients that have a thread.
    fn threads(&self) -> usize {
        self.server.state.thread_permits.in_use()
    }

    /// The bytes of the budget that are taken.
    fn taken_bytes(&self) -> u64 {
        self.server.state.budget.usage().used
    }

    fn open_connections(&self) -> usize {
        self.server.state.options.limits.connections - self.server.state.connection_permits.available_permits()
    }

    fn stopped(&mut self) {
        self.stop.stop();
        let serving = self.serving.take().unwrap();
        self.block_on("the server ends", serving).unwrap();
    }
}

/// Runs a function that may block on a thread of its own. After 60 s the test fails.
fn soon<T: Send + 'static>(what: &str, wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = mpsc::channel();
    std::thread::spawn(move || done.send(wait()));
    match end.recv_timeout(Duration::from_secs(60)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not within 60 s: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a panic on the thread that waits: {what}"),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.disk.gate.add_permits(1000);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// For trials with real clients by hand. It serves until it is killed: `RBDKIT_HAND=/tmp/socket
/// cargo test -p rbdkit-server tests::by_hand -- --ignored`.
#[test]
#[ignore = "serves for ever, for trying clients by hand"]
fn by_hand() {
    let path = std::env::var("RBDKIT_HAND").expect("RBDKIT_HAND names a socket");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).unwrap();
    let running = Running::start(Disk::new(256 << 20), ServerOptions::default());
    let runtime = running.runtime.as_ref().unwrap();
    runtime.block_on(running.server.serve(vec![Listener::Unix(listener)], running.stop.clone()));
}
