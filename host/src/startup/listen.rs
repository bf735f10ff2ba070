//! The sockets that clients connect to, by nbdkit's rules.
//!
//! A Unix socket that exists already is an error and is not removed. TCP listens on every address
//! that is free; addresses in use are an error only if none is free.

use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::own_file::OwnFile;
use rbdkit_plugin_api::text::plain;
use rbdkit_server::{Listener, VsockAddress};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tempfile::TempDir;

use super::identity::Identity;
use super::process;
use crate::cli::{Families, Listen};

/// How a client finds the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachable {
    /// At this Unix socket.
    Unix(PathBuf),
    /// At this TCP port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// At this AF_VSOCK port.
    Vsock {
        /// The port.
        port: u32,
    },
    /// The sockets are inherited: only the caller knows their addresses.
    Unknown,
}

impl std::fmt::Display for Reachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reachable::Unix(socket) => write!(f, "{}", socket.display()),
            Reachable::Tcp { host, port } => write!(f, "{host}, port {port}"),
            Reachable::Vsock { port } => write!(f, "vsock port {port}"),
            Reachable::Unknown => f.write_str("what the caller passed on"),
        }
    }
}

/// The sockets of a server, and the files that were created for them.
#[derive(Debug)]
pub struct Sockets {
    /// The sockets to accept clients from.
    pub listeners: Vec<Listener>,
    /// For `--run` and `--print-uri`.
    pub reachable: Reachable,
    /// Removed when dropped, unless [`Sockets::keep`] was called.
    made: Option<Made>,
}

/// The file or directory that was created for a socket.
#[derive(Debug)]
enum Made {
    /// A socket. It is removed if the start fails. After a server that ran it stays, as in nbdkit.
    Socket(Arc<OwnFile>),
    /// A private directory with a socket in it. It is removed with the server.
    Directory(TempDir),
}

impl Sockets {
    /// The start has succeeded: from now on a named socket is not removed.
    pub fn keep(&mut self) {
        if let Some(Made::Socket(_)) = self.made {
            self.made = None;
        }
    }

    /// The private directory, if there is one.
    pub fn private(&self) -> Option<&Path> {
        match &self.made {
            Some(Made::Directory(directory)) => Some(directory.path()),
            _ => None,
        }
    }

    /// The named socket, while it is removed if the start fails.
    pub fn unfinished(&self) -> Option<&Arc<OwnFile>> {
        match &self.made {
            Some(Made::Socket(file)) => Some(file),
            _ => None,
        }
    }

    /// Gives the private directory, if there is one, to the user that the server changes to, so
    /// that the server can remove it.
    ///
    /// # Errors
    /// One line that names the directory.
    pub fn give_to(&self, identity: &Identity) -> Result<(), ConfigError> {
        let Some(path) = self.private() else {
            return Ok(());
        };
        identity
            .own_directory(path)
            .map_err(|error| ConfigError::new(format!("--unix -: {}: {}", path.display(), plain(&error))))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // The `TempDir` removes its directory.
        if let Some(Made::Socket(file)) = self.made.take() {
            file.remove();
        }
    }
}

/// Listens. [`Listen::Inherited`] gets the sockets that [`inherit`] found, [`Listen::Single`] none.
///
/// # Errors
/// One line that names the address.
pub fn listen(plan: &Listen, inherited: Vec<Listener>) -> Result<Sockets, ConfigError> {
    match plan {
        Listen::Unix(path) => unix(path),
        Listen::PrivateUnix => private_unix(),
        Listen::Vsock(port) => vsock(*port),
        Listen::Tcp { address, port, families } => tcp(address.as_deref(), port, *families),
        Listen::Single | Listen::Inherited(_) => {
            Ok(Sockets { listeners: inherited, reachable: Reachable::Unknown, made: None })
        }
    }
}

/// The longest path of a Unix socket, in bytes: 108 in the kernel's structure, less the zero at the
/// end.
const LONGEST_PATH: usize = 107;

fn unix(path: &Path) -> Result<Sockets, ConfigError> {
    let failed = |error: &dyn std::fmt::Display| ConfigError::new(format!("--unix: {}: {error}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| failed(&error))?;
    let length = absolute.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(failed(&format_args!("the path is too long: {length} bytes, at most {LONGEST_PATH} are possible")));
    }
    let listener = UnixListener::bind(&absolute).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => failed(&"exists already (remove it if no server listens on it)"),
        _ => failed(&plain(&error)),
    })?;
    let made = OwnFile::at(&absolute).map_err(|error| failed(&plain(&error)))?;
    Ok(Sockets {
        listeners: vec![Listener::Unix(listener)],
        reachable: Reachable::Unix(absolute),
        made: Some(Made::Socket(Arc::new(made))),
    })
}

fn private_unix() -> Result<Sockets, ConfigError> {
    let failed = |error: io::Error| ConfigError::new(format!("--unix -: no private directory: {}", plain(&error)));
    let directory = private_directory(Path::new("/tmp")).map_err(failed)?;
    let socket = directory.path().join("socket");
    let mut sockets = Sockets {
        listeners: Vec::new(),
        reachable: Reachable::Unix(socket.clone()),
        made: Some(Made::Directory(directory)),
    };
    sockets.listeners.push(Listener::Unix(UnixListener::bind(socket).map_err(failed)?));
    Ok(sockets)
}

/// Creates a directory that only this user may enter.
fn private_directory(parent: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("rbdkit").permissions(Permissions::from_mode(0o700)).tempdir_in(parent)
}

fn tcp(address: Option<&str>, port: &str, families: Families) -> Result<Sockets, ConfigError> {
    let number = port_number(port)?;
    let addresses = resolve(address, number, families)?;
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut chosen = number;
    let mut taken = None;
    for mut address in addresses {
        // Port 0 means any free port. The first address gets one, and the others take the same.
        address.set_port(chosen);
        match listen_at(address) {
            Ok(listener) => {
                chosen = listener.local_addr().map_or(chosen, |address| address.port());
                listeners.push(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = Some(address),
            // A machine without IPv6 still has IPv4.
            Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {}
            Err(error)
                if error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error())
                    && address.ip().is_unspecified() => {}
            Err(error) => return Err(ConfigError::new(format!("cannot listen on {address}: {}", plain(&error)))),
        }
    }
    if listeners.is_empty() {
        return Err(ConfigError::new(match taken {
            Some(address) => {
                format!("cannot listen on {address}: the address is in use already (-p takes another port)")
            }
            None => format!("cannot listen on port {port}: no address of that kind"),
        }));
    }
    let reachable = Reachable::Tcp { host: host(address), port: chosen };
    Ok(Sockets { listeners: listeners.into_iter().map(Listener::Tcp).collect(), reachable, made: None })
}

/// The host name for a client on this machine: `localhost`, unless the server listens only on an
/// address that is not local.
fn host(address: Option<&str>) -> String {
    let ip = address.and_then(|address| address.parse::<IpAddr>().ok());
    match (address, ip) {
        (Some(address), Some(ip)) if !ip.is_unspecified() && !ip.is_loopback() => address.to_string(),
        (Some(name), None) => name.to_string(),
        _ => "localhost".to_string(),
    }
}

fn port_number(port: &str) -> Result<u16, ConfigError> {
    if let Ok(number) = port.parse() {
        return Ok(number);
    }
    // `name  port/protocol  aliases  # comment`
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    let number = services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (name, port_and_protocol) = (words.next()?, words.next()?);
        let number = port_and_protocol.strip_suffix("/tcp")?.parse().ok()?;
        (name == port || words.any(|alias| alias == port)).then_some(number)
    });
    number.ok_or_else(|| ConfigError::new(format!("--port: '{port}' is neither a port nor the name of a TCP service")))
}

fn resolve(address: Option<&str>, port: u16, families: Families) -> Result<Vec<SocketAddr>, ConfigError> {
    let all: Vec<SocketAddr> = match address {
        None => vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()],
        Some(name) => {
            let wrong = |error: &dyn std::fmt::Display| ConfigError::new(format!("--ipaddr: '{name}': {error}"));
            (name, port).to_socket_addrs().map_err(|error| wrong(&error))?.collect()
        }
    };
    let wanted = |address: &SocketAddr| match families {
        Families::Both => true,
        Families::Ipv4 => address.is_ipv4(),
        Families::Ipv6 => address.is_ipv6(),
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // IPv4 has its own socket.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    // The kernel reduces the length of the queue to what it allows.
    rustix::net::listen(&socket, i32::MAX)?;
    Ok(TcpListener::from(socket))
}

/// Listens on AF_VSOCK for all virtual machines. Port 2^32 - 1 is any that is free.
fn vsock(port: u32) -> Result<Sockets, ConfigError> {
    let failed = |error: Errno| {
        ConfigError::new(match error {
            Errno::AFNOSUPPORT => "--vsock: this kernel has no AF_VSOCK (modprobe vsock)".to_string(),
            Errno::ADDRINUSE => {
                format!("--vsock: cannot listen on port {port}: it is in use already (-p takes another port)")
            }
            error => format!("--vsock: cannot listen on port {port}: {}", plain(&io::Error::from(error))),
        })
    };
    let listen = || {
        let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &VsockAddress::any(port))?;
        rustix::net::listen(&socket, i32::MAX)?;
        let bound = rustix::net::getsockname(&socket)?;
        Ok((socket, VsockAddress::of(&bound).map_or(port, |address| address.port)))
    };
    let (socket, port) = listen().map_err(failed)?;
    Ok(Sockets { listeners: vec![Listener::Vsock(socket)], reachable: Reachable::Vsock { port }, made: None })
}

/// The first descriptor of socket activation.
const FIRST: i32 = 3;

/// Takes over the sockets of socket activation. Call it before anything opens a descriptor:
/// otherwise that descriptor could be mistaken for a socket that the parent process announced but
/// did not pass on.
///
/// # Errors
/// One line that names a descriptor that is missing or is not a listening socket.
pub fn inherit(plan: &Listen) -> Result<Vec<Listener>, ConfigError> {
    let Listen::Inherited(count) = *plan else {
        return Ok(Vec::new());
    };
    (FIRST..)
        .take(count as usize)
        .map(|fd| {
            let adopted = process::inherited(fd).map_err(Unusable::from).and_then(adopt);
            adopted.map_err(|why| ConfigError::new(format!("socket activation: descriptor {fd}: {why}")))
        })
        .collect()
}

/// Why an inherited descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{}", plain(.0))]
    System(#[from] io::Error),
    #[error("is not a socket")]
    NotASocket(#[source] Errno),
    #[error("is not a listening socket")]
    NotListening,
    #[error("is neither a TCP nor a Unix nor a vsock socket")]
    OtherFamily,
}

/// Checks that clients can be accepted from a socket.
fn adopt(socket: OwnedFd) -> Result<Listener, Unusable> {
    if !sockopt::socket_acceptconn(&socket).map_err(Unusable::NotASocket)? {
        return Err(Unusable::NotListening);
    }
    rustix::io::fcntl_setfd(socket.as_fd(), rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::UNIX) => Ok(Listener::Unix(UnixListener::from(socket))),
        Ok(AddressFamily::INET | AddressFamily::INET6) => Ok(Listener::Tcp(TcpListener::from(socket))),
        Ok(AddressFamily::VSOCK) => Ok(Listener::Vsock(socket)),
        _ => Err(Unusable::OtherFamily),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_goes_with_the_server_and_others_only_after_a_failed_start() {
        let mut private = private_unix().unwrap();
        let Reachable::Unix(socket) = private.reachable.clone() else { panic!() };
        private.keep();
        assert!(socket.exists());
        drop(private);
        assert!(!socket.parent().unwrap().exists());

        let directory = private_directory(&std::env::temp_dir()).unwrap();
        let path = directory.path().join("s");
        drop(unix(&path).unwrap());
        assert!(!path.exists());
        let mut kept = unix(&path).unwrap();
        kept.keep();
        drop(kept);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        let failed = unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "not the server's").unwrap();
        drop(failed);
        assert!(path.exists());
        let error = unix(&path).unwrap_err().to_string();
        assert_eq!(error, format!("--unix: {}: exists already (remove it if no server listens on it)", path.display()));
    }

    #[test]
    fn port_0_is_the_same_free_port_on_every_address() {
        let sockets = tcp(None, "0", Families::Both).unwrap();
        let Reachable::Tcp { port, .. } = sockets.reachable else { panic!() };
        assert_ne!(port, 0);
        for socket in &sockets.listeners {
            let Listener::Tcp(listener) = socket else { panic!() };
            assert_eq!(listener.local_addr().unwrap().port(), port);
        }
        let error = tcp(Some("127.0.0.1"), &port.to_string(), Families::Both).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("cannot listen on 127.0.0.1:{port}: the address is in use already (-p takes another port)")
        );
    }

    #[test]
    fn clients_on_this_machine_are_sent_to_localhost() {
        for (address, name) in [
            (None, "localhost"),
            (Some("127.0.0.1"), "localhost"),
            (Some("::1"), "localhost"),
            (Some("::"), "localhost"),
            (Some("192.0.2.1"), "192.0.2.1"),
            (Some("nbd.example.com"), "nbd.example.com"),
        ] {
            assert_eq!(host(address), name, "{address:?}");
        }
    }

    #[test]
    fn a_vsock_port_is_listened_on_once_and_any_port_is_a_known_one() {
        if rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None).err() == Some(Errno::AFNOSUPPORT) {
            let error = vsock(7).unwrap_err().to_string();
            return assert_eq!(error, "--vsock: this kernel has no AF_VSOCK (modprobe vsock)");
        }
        let mut sockets = vsock(u32::MAX).unwrap();
        let Reachable::Vsock { port } = sockets.reachable else { panic!("{:?}", sockets.reachable) };
        assert!(port > 1023 && port != u32::MAX, "{port}");
        let error = vsock(port).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("--vsock: cannot listen on port {port}: it is in use already (-p takes another port)")
        );
        // As a socket of socket activation.
        let Some(Listener::Vsock(socket)) = sockets.listeners.pop() else { panic!() };
        assert!(matches!(adopt(socket), Ok(Listener::Vsock(_))));
    }

    #[test]
    fn services_are_known_by_name() {
        assert_eq!(port_number("10809"), Ok(10809));
        let error = port_number("no-such-service").unwrap_err().to_string();
        assert_eq!(error, "--port: 'no-such-service' is neither a port nor the name of a TCP service");
    }
}
