//! Connects to the other server, as the settings say.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rbdkit_launcher::{Launcher, Order, Program, Started};
use rbdkit_plugin_api::{Errno, inherited, name_lookup_hint, run_blocking, temporary};
use rbdkit_stream::{ConnectionError, Socket};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::config::Target;
use crate::handshake::OpenError;

/// TCP keepalive: the first probe after 60 s of silence, then one every 10 s; after 6 without an
/// answer the connection is lost.
const KEEPALIVE: (u64, u64, u32) = (60, 10, 6);

/// A connected socket, and the server if this plugin started it.
pub(crate) struct Connected {
    pub(crate) socket: Arc<Socket>,
    pub(crate) program: Option<Program>,
}

/// The words that [`start`] takes, for a target that is a program: the program and its arguments.
pub(crate) fn words(target: &Target) -> Option<Vec<OsString>> {
    let Target::Command { program, arguments } = target else { return None };
    Some(std::iter::once(program).chain(arguments).cloned().collect())
}

/// Connects. `launcher` is that of the target.
pub(crate) async fn connect(target: &Target, launcher: Option<&Arc<Launcher>>) -> Result<Connected, OpenError> {
    let (fd, program) = match target {
        Target::Unix(path) => (unix(path).await?, None),
        Target::Tcp { host, port } => (tcp(host, *port).await?, None),
        Target::Descriptor(number) => (descriptor(*number)?, None),
        Target::Command { .. } => {
            let no = |error| OpenError::Refused(Errno::Eio, format!("it cannot be started: {error}"));
            let launcher = Arc::clone(launcher.ok_or_else(|| no(io::ErrorKind::NotFound.into()))?);
            let launched = run_blocking(move || Ok(launcher.launch("nbd: the server", &Order::default())));
            let launched = launched.await.map_err(|error| no(io::Error::other(error.to_string())))?;
            let (mut ends, program) = launched.map_err(no)?;
            (ends.pop().ok_or_else(|| no(io::ErrorKind::UnexpectedEof.into()))?, Some(program))
        }
    };
    Ok(Connected { socket: Arc::new(Socket::new(fd)?), program })
}

fn cannot_connect(error: io::Error) -> OpenError {
    ConnectionError::new(format!("cannot connect: {error}")).into()
}

/// The error if the host has no address.
fn not_found(error: io::Error) -> OpenError {
    match name_lookup_hint() {
        Some(hint) => ConnectionError::new(format!("cannot connect: {error} ({hint})")).into(),
        None => cannot_connect(error),
    }
}

async fn unix(path: &PathBuf) -> Result<OwnedFd, OpenError> {
    let stream = UnixStream::connect(path).await.and_then(UnixStream::into_std).map_err(cannot_connect)?;
    Ok(stream.into())
}

async fn tcp(host: &str, port: u16) -> Result<OwnedFd, OpenError> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(not_found)?.collect();
    let stream = TcpStream::connect(&*addresses).await.map_err(cannot_connect)?;
    stream.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    // Detects a host that has vanished. Without keepalive a request to it would wait for hours.
    let keepalive = || -> rustix::io::Result<()> {
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(idle))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(interval))?;
        sockopt::set_tcp_keepcnt(&stream, count)?;
        sockopt::set_tcp_user_timeout(&stream, (idle as u32 + interval as u32 * count) * 1000)
    };
    keepalive().map_err(io::Error::from)?;
    Ok(stream.into_std()?.into())
}

fn descriptor(number: i32) -> Result<OwnedFd, OpenError> {
    let no = |error: rustix::io::Errno| {
        OpenError::Refused(Errno::Eio, format!("it is not a connected socket that was inherited: {error}"))
    };
    let fd = inherited::duplicate(number).map_err(no)?;
    sockopt::socket_type(&fd).map_err(no)?;
    // After the connection was used once it has ended, and this finds out at once.
    match rustix::net::recv(&fd, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Err(OpenError::Refused(Errno::Eio, "the connection has ended, and there is only one".to_owned())),
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(fd),
        Err(error) => Err(no(error)),
    }
}

/// Hands a program its listening socket as systemd does: as descriptor 3, with two environment
/// variables. One of them is the process id of the program, which only the new process knows; so a
/// shell sets it and then executes the program.
const HAND_OVER: &str = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@""#;

/// Starts a server, whose program and arguments are `words`. The end is a socket that is connected
/// to it.
pub(crate) fn start(words: &[OsString], _order: &Order) -> io::Result<Started> {
    // Nobody needs the socket's name once both ends are open, so the directory goes at the end of
    // this function.
    let private = Permissions::from_mode(0o700);
    let mut directory = tempfile::Builder::new();
    directory.prefix("rbdkit-nbd-").permissions(private);
    let directory = directory.tempdir_in(temporary::directory()?)?;
    let address = SocketAddrUnix::new(directory.path().join("socket"))?;
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let listening = socket()?;
    rustix::net::bind(&listening, &address)?;
    rustix::net::listen(&listening, 1)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", HAND_OVER, "sh"]).args(words);
    // Dropping the command closes our copy of the listening socket, so that the socket closes when
    // the program ends.
    command.stdin(Stdio::from(listening));
    // Control-C must reach only rbdkit: requests in flight still need the server.
    command.process_group(0);
    let connected = socket()?;
    // The socket listens already, so this does not wait for the program.
    rustix::net::connect(&connected, &address)?;
    let child = command.spawn()?;
    Ok(Started { child, ends: vec![connected], keep: None })
}
