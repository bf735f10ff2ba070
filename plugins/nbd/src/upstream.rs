//! Which connection a client gets: one of its own, or the one that all share.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Program};
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, DNS_PORT, Disk, DiskId, Errno, Error, ExportEntry, Flag, Handle,
    Network, Result, StopScope, lock, run_blocking,
};
use rbdkit_stream::{ConnectionError, Socket};
use rbdkit_tls::Session as TlsSession;
use rustix::net::RecvFlags;

use crate::config::{Settings, Target};
use crate::connect::{Connected, connect};
use crate::connection::Connection;
use crate::handle::NbdHandle;
use crate::handshake::{Negotiation, OpenError, Session};
use crate::tls::Tls;

/// How long connecting and negotiating may take. A server that works needs much less than 60 s, and
/// clients do not wait much longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long the program of `command=` may take to end if nothing was written through it. So it does
/// not hold the server when that stops.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The same if something was written: the program may have much to write back.
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(30);

/// An open export whose socket is not registered with a runtime.
struct Opened {
    fd: OwnedFd,
    /// The encryption, if there is one.
    tls: Option<TlsSession>,
    session: Session,
}

impl Opened {
    /// Whether the connection still stands. The server sends nothing before it gets a request, so
    /// readable means closed.
    fn is_alive(&self) -> bool {
        let peeked = rustix::net::recv(&self.fd, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

#[derive(Default)]
struct Shared {
    /// Made at the start, before the server's runtime exists.
    prepared: Option<Opened>,
    connection: Option<Arc<Connection>>,
    program: Option<Program>,
}

impl Shared {
    /// Ends the connection, then its program. Returns how to wait for the program's end.
    fn end(&mut self, server: String) -> Option<impl FnOnce() + Send + use<>> {
        let changed = self.connection.as_ref().is_some_and(|connection| connection.has_changed());
        // The connection first, because the program may wait for its end.
        self.prepared = None;
        self.connection = None;
        let program = self.program.take()?.allow(if changed { WRITE_BACK_TIMEOUT } else { END_TIMEOUT });
        // Nobody but the log can be told how it ended.
        Some(move || match program.end() {
            Ok(status) if is_ordinary(status) => {}
            Ok(status) => tracing::error!("nbd: {server}: it ended with {status}"),
            Err(error) => tracing::error!("nbd: {server}: it is not known how it ended: {error}"),
        })
    }
}

/// Whether a program that got SIGTERM ended as expected. A shell reports a program that SIGTERM
/// ended with status 128 and the signal's number.
fn is_ordinary(status: ExitStatus) -> bool {
    let term = rustix::process::Signal::TERM.as_raw();
    status.success() || status.signal() == Some(term) || status.code() == Some(128 + term)
}

/// See the module.
pub(crate) struct Upstream {
    settings: Settings,
    tls: Tls,
    /// Starts the program of a target that is one.
    launcher: Option<Arc<Launcher>>,
    /// The connections of clients, for the server's end.
    connections: Mutex<Vec<Weak<Connection>>>,
    /// The server stops: nobody waits for a connection any more.
    stops: Flag,
    /// Held while a connection is made, so that two clients that find the shared one broken make
    /// one new connection, not two.
    shared: tokio::sync::Mutex<Shared>,
}

impl Upstream {
    /// `launcher` starts the program of a target that is one.
    pub(crate) fn new(settings: Settings, tls: Tls, launcher: Option<Launcher>) -> Upstream {
        let launcher = launcher.map(Arc::new);
        Upstream {
            settings,
            tls,
            launcher,
            connections: Mutex::default(),
            stops: Flag::default(),
            shared: tokio::sync::Mutex::default(),
        }
    }

    /// What connecting to the server opens.
    pub(crate) fn access_rights(&self) -> AccessRights {
        match &self.settings.target {
            Target::Tcp { host, port } => {
                let rights = AccessRights { network: Network::Ports(vec![*port, DNS_PORT]), ..AccessRights::default() };
                match host.parse::<IpAddr>() {
                    Ok(_) => AccessRights { network: Network::Ports(vec![*port]), ..rights },
                    Err(_) => rights.with_name_lookup(),
                }
            }
            // A socket with a path needs no right, and the helper starts the programs.
            Target::Unix(_) | Target::Descriptor(_) | Target::Command { .. } => AccessRights::default(),
        }
    }

    /// Makes the shared connection. If that fails the server does not start.
    pub(crate) fn prepare(&self) -> Result<(), ConfigError> {
        if !self.settings.shared {
            return Ok(());
        }
        if let Some(launcher) = &self.launcher {
            // The helper starts even the first program: a confined server could not end a program
            // that it started itself.
            let failed = |error: io::Error| ConfigError::new(format!("nbd: cannot start a helper: {error}"));
            launcher.move_out().map_err(failed)?;
        }
        let failed = |error: io::Error| ConfigError::new(format!("nbd: cannot start a thread's runtime: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let (socket, session, program) = self
                .session(&self.settings.export)
                .await
                .map_err(|error| ConfigError::new(error.context().map_or_else(|| error.to_string(), str::to_owned)))?;
            // The negotiation is over, so nothing else holds the socket.
            let socket = Arc::into_inner(socket).ok_or_else(|| ConfigError::new("nbd: the socket is in use"))?;
            let mut shared = self.shared.lock().await;
            let (fd, tls) = socket.into_inner();
            shared.prepared = Some(Opened { fd, tls, session });
            shared.program = program;
            Ok(())
        })
    }

    /// Opens an export for a client.
    pub(crate) async fn open(&self, wanted: &str, client: Arc<Client>) -> Result<Arc<dyn Handle>> {
        let connection = match self.settings.shared {
            true => self.shared_connection().await?,
            false => {
                let export = if self.settings.dynamic { wanted } else { &self.settings.export };
                let (socket, session, _program) = self.session(export).await?;
                self.start(socket, session)
            }
        };
        let disk = if self.settings.dynamic && !self.settings.shared {
            Disk::ByName(DiskId::DEFAULT)
        } else {
            Disk::Is(DiskId::DEFAULT)
        };
        Ok(Arc::new(NbdHandle::new(connection, self.settings.shared, disk, client)))
    }

    fn start(&self, socket: Arc<Socket>, session: Session) -> Arc<Connection> {
        let connection = Connection::start(socket, session, self.settings.target.to_string());
        let mut connections = lock(&self.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(&connection));
        connection
    }

    /// The server stops. Operations of the kind that `scope` names end now, and so do later ones.
    pub(crate) fn stop(&self, scope: StopScope) {
        self.stops.set();
        lock(&self.connections).iter().filter_map(Weak::upgrade).for_each(|connection| connection.stop(scope));
    }

    async fn shared_connection(&self) -> Result<Arc<Connection>> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = shared.connection.as_ref().filter(|connection| !connection.is_broken()) {
            return Ok(Arc::clone(connection));
        }
        let (socket, session) = match shared.prepared.take().filter(Opened::is_alive) {
            Some(Opened { fd, tls, session }) => (Arc::new(Socket::with_session(fd, tls)?), session),
            None => {
                // The old program ends before another one opens the same image.
                if let Some(wait) = shared.end(self.settings.target.to_string()) {
                    run_blocking(move || {
                        wait();
                        Ok(())
                    })
                    .await?;
                }
                let (socket, session, program) = self.session(&self.settings.export).await?;
                shared.program = program;
                (socket, session)
            }
        };
        let connection = self.start(socket, session);
        shared.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Connects and opens an export. Tries again as often as `retry` says.
    async fn session(&self, export: &str) -> Result<(Arc<Socket>, Session, Option<Program>)> {
        self.with_retries(|| {
            Box::pin(async {
                let Connected { socket, program } = connect(&self.settings.target, self.launcher.as_ref()).await?;
                let session = Negotiation::open(Arc::clone(&socket), &self.tls, export).await?;
                Ok((socket, session, program))
            })
        })
        .await
    }

    async fn with_retries<'a, T>(&self, attempt: impl Fn() -> BoxFuture<'a, Result<T, OpenError>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.stops.wait() => Err(Error::new(Errno::Eshutdown, "nbd: the connection was given up")),
            result = self.attempts(attempt) => result,
        }
    }

    async fn attempts<'a, T>(&self, attempt: impl Fn() -> BoxFuture<'a, Result<T, OpenError>>) -> Result<T> {
        let mut left = self.settings.retry;
        loop {
            let late =
                || OpenError::from(ConnectionError::new(format!("no answer within {} s", OPEN_TIMEOUT.as_secs())));
            let failure = match tokio::time::timeout(OPEN_TIMEOUT, attempt()).await.unwrap_or_else(|_| Err(late())) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match failure {
                OpenError::Connection(broken) if left > 0 => {
                    tracing::debug!("nbd: {}: {broken}; trying again", self.settings.target);
                    left -= 1;
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                failure => return Err(self.error(failure)),
            }
        }
    }

    fn error(&self, failure: OpenError) -> Error {
        failure.into_error(&self.settings.target)
    }

    /// The exports for a list. None: the default export alone.
    pub(crate) async fn list(&self) -> Result<Option<Vec<ExportEntry>>> {
        if !self.settings.dynamic {
            return Ok(None);
        }
        self.with_retries(|| {
            Box::pin(async {
                let Connected { socket, .. } = connect(&self.settings.target, self.launcher.as_ref()).await?;
                Negotiation::list(socket, &self.tls).await
            })
        })
        .await
    }

    /// The export that the empty name means.
    pub(crate) async fn default_export(&self) -> String {
        if !self.settings.dynamic {
            return self.settings.export.clone();
        }
        let name = self.with_retries(|| {
            Box::pin(async {
                let Connected { socket, .. } = connect(&self.settings.target, self.launcher.as_ref()).await?;
                Negotiation::default_name(socket, &self.tls).await
            })
        });
        // An unreachable server is reported when a client opens the export.
        name.await.ok().flatten().unwrap_or_default()
    }

    /// Ends the shared connection and its program. All clients have disconnected.
    pub(crate) fn end(&self) {
        let Ok(mut shared) = self.shared.try_lock() else {
            return;
        };
        if let Some(wait) = shared.end(self.settings.target.to_string()) {
            wait();
        }
    }
}
