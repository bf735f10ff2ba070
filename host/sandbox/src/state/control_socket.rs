//! A Unix socket for commands to a filter, at a path that the operator named.
//!
//! The socket is made when the filter is configured. It has the mode 0600 from the moment when it
//! exists, and the host checks who connects as well. It is removed when the server ends, if it is
//! still the one that was made.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rbdkit_plugin_api::lock;
use rbdkit_plugin_api::own_file::{OwnFile, directory_of, look};
use rbdkit_plugin_api::text::plain;
use rustix::fs::{FileType, Mode, fchmod, fstat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use rustix::process::geteuid;

/// The longest path of a Unix socket, in bytes: 108 in the kernel's structure, less the zero at the
/// end.
const LONGEST_PATH: usize = 107;

/// How many clients the kernel lets wait until the host accepts them.
const BACKLOG: i32 = 16;

/// See the module.
#[derive(Debug)]
pub struct ControlSocket {
    /// None once it is served.
    listener: Mutex<Option<UnixListener>>,
    file: OwnFile,
    directory: PathBuf,
    /// The user who made it. The server may have changed to another one since.
    maker: u32,
}

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error("the path is too long: {0} bytes, at most {LONGEST_PATH} are possible")]
    TooLong(usize),
    #[error("exists already, and is not a socket")]
    NotASocket,
    #[error("another server, or another filter of this one, listens on it")]
    InUse,
    #[error("the socket cannot be made: {}", plain(.0))]
    Io(#[from] io::Error),
}

impl ControlSocket {
    /// Makes the socket, in place of one that nobody serves.
    pub(super) fn make(path: &Path) -> Result<ControlSocket, MakeError> {
        let path = std::path::absolute(path)?;
        let length = path.as_os_str().len();
        if length > LONGEST_PATH {
            return Err(MakeError::TooLong(length));
        }
        let address = SocketAddrUnix::new(&path).map_err(io::Error::from)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)?;
        // Linux gives the file the mode that the socket has when it is bound.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
        match bind(&socket, &address) {
            Err(rustix::io::Errno::ADDRINUSE) => {
                remove_unserved(&path, &address)?;
                bind(&socket, &address).map_err(io::Error::from)?;
            }
            bound => bound.map_err(io::Error::from)?,
        }
        let file = OwnFile::at(&path)?;
        let made = ControlSocket {
            listener: Mutex::default(),
            file,
            directory: path.parent().unwrap_or(Path::new("/")).to_path_buf(),
            maker: geteuid().as_raw(),
        };
        listen(&socket, BACKLOG).map_err(io::Error::from)?;
        *lock(&made.listener) = Some(UnixListener::from(socket));
        Ok(made)
    }

    /// The directory that it is in.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the listening socket, to accept its clients.
    pub(crate) fn listener(&self) -> Option<UnixListener> {
        lock(&self.listener).take()
    }

    /// Whether a client of this user may send commands.
    pub(crate) fn admits(&self, uid: u32) -> bool {
        [0, self.maker, geteuid().as_raw()].contains(&uid)
    }

    /// Removes the file, if it is still the one that was made.
    pub(crate) fn remove(&self) {
        self.file.remove();
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes a socket that nobody serves.
fn remove_unserved(path: &Path, address: &SocketAddrUnix) -> Result<(), MakeError> {
    let (directory, name) = directory_of(path)?;
    let found: OwnedFd = match look(&directory, &name) {
        Ok(found) => found,
        // It is gone by now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(fstat(&found).map_err(io::Error::from)?.st_mode) != FileType::Socket {
        return Err(MakeError::NotASocket);
    }
    let unserved = OwnFile::new(directory, name, found);
    // A server that has stopped to accept would let a socket that blocks wait for ever.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
    match connect(&client, address) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            unserved.remove();
            Ok(())
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        // EAGAIN: so many clients wait that the kernel takes no more.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(MakeError::InUse),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_for_its_user_alone_and_is_removed_only_if_it_is_still_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let made = ControlSocket::make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(made.admits(geteuid().as_raw()) && made.admits(0) && !made.admits(54_321));
        let _client = UnixStream::connect(&path).unwrap();
        drop(made);
        assert!(!path.exists());
        let made = ControlSocket::make(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        drop(made);
        assert!(path.exists());
    }

    #[test]
    fn only_a_socket_that_nobody_serves_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let served = ControlSocket::make(&path).unwrap();
        let refused = |path: &Path| ControlSocket::make(path).unwrap_err().to_string();
        assert_eq!(refused(&path), "another server, or another filter of this one, listens on it");
        // So many clients that the kernel takes no more: it is served, and looking does not wait.
        let full = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            connect(&client, &SocketAddrUnix::new(&path).unwrap()).map(|()| client)
        };
        let clients: Vec<_> = std::iter::from_fn(|| full().ok()).take(1000).collect();
        assert!(clients.len() < 1000);
        assert_eq!(refused(&path), "another server, or another filter of this one, listens on it");
        drop((clients, served));
        std::fs::write(&path, "").unwrap();
        assert_eq!(refused(&path), "exists already, and is not a socket");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("nothing"), &link).unwrap();
        assert_eq!(refused(&link), "exists already, and is not a socket");
        let missing = directory.path().join("no/control");
        assert_eq!(refused(&missing), "the socket cannot be made: No such file or directory");
        let long = PathBuf::from("/".to_string() + &"x".repeat(107));
        assert_eq!(refused(&long), "the path is too long: 108 bytes, at most 107 are possible");
    }
}
