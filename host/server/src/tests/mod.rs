//! The server with a plugin in memory, over real Unix sockets, seen by a client written by hand.

mod client;
mod limits;
mod plugin;
mod serving;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rbdkit_plugin_api::Pool;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::{Listener, Server, ServerLimits, ServerOptions, Stop};
use client::Client;
use plugin::{Disk, TestPlugin};
use rbdkit_chain::Chain;

/// A server that listens, and what is behind it. Dropping it ends it.
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

    fn connect(&self) -> Client {
        Client::over(UnixStream::connect(&self.path).unwrap())
    }

    fn client(&self, structured: bool) -> Client {
        let mut client = self.connect();
        client.go("", structured);
        client
    }

    /// Waits for something that happens on other threads. A test that waits in vain fails after some seconds.
    fn until(&self, what: &str, happened: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if happened() {
                return;
            }
            #[allow(clippy::disallowed_methods, reason = "between looks; what is waited for has no event")]
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("in vain: {what}; diary {:?}", self.disk.diary());
    }

    /// Everything that was in flight is given back, and all connections are closed.
    fn until_all_is_given_back(&self) {
        self.until("everything is given back", || {
            self.server.state.budget.free_bytes() == self.server.state.options.limits.bytes_in_all
                && self.open_connections() == 0
        });
    }

    /// Clients that have a thread of their own.
    fn threads(&self) -> usize {
        self.server.state.thread_permits.in_use()
    }

    fn open_connections(&self) -> usize {
        // The listener holds a place for the next client.
        self.server.state.options.limits.connections - self.server.state.connection_permits.available_permits() - 1
    }

    fn stopped(&mut self) {
        self.stop.stop();
        let (runtime, serving) = (self.runtime.as_ref().unwrap(), self.serving.take().unwrap());
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), serving).await.expect("the server ends").unwrap();
        });
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

/// For real clients: `RBDKIT_HAND=/tmp/socket cargo test -p rbdkit --lib server::tests::by_hand -- --ignored` serves until it is killed.
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
