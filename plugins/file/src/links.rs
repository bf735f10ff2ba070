//! Symbolic links that lead out of the directory of `dir=`.
//!
//! A link in the directory names a file anywhere else, and clients choose the link. So whoever can
//! put a link there decides what clients get, with the rights of the server. Such a link is
//! followed only if nobody else can have put it there: link and directory belong to the server's
//! user or to root, and nobody else may write to the directory. Everything is checked through
//! descriptors, and the link is read from the descriptor that was checked, so exchanging the link
//! has no effect.
//!
//! A confined server may not open such a file, because it did not know it when it started. A helper
//! process opens it, by the same rule ([`rbdkit_launcher::Opener`]). The server itself cannot make
//! links in the directory once it is confined.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rbdkit_launcher::OpenFor;
use rbdkit_plugin_api::{Errno, Error};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno as Raw;

use crate::error::failed;
use crate::served::{OPENING, is_served};

/// Whether group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A symbolic link that may be followed out of the directory.
pub(crate) struct Link {
    target: OsString,
}

/// Why a symbolic link is not followed out of the directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    System(#[from] Raw),
    #[error("is not a symbolic link")]
    NotALink,
    #[error(
        "leads out of the directory, and is not followed because others than the server's user may write to the \
         directory (chmod go-w)"
    )]
    OpenDirectory,
    #[error(
        "leads out of the directory, and is not followed because the directory belongs to user {0}, not to the \
         server's user or root"
    )]
    ForeignDirectory(u32),
    #[error(
        "leads out of the directory, and is not followed because it belongs to user {0}, not to the server's user or \
         root"
    )]
    ForeignLink(u32),
}

impl LinkError {
    /// The error for a client that asks for this export.
    pub(crate) fn of_export(self, name: &str) -> Error {
        match self {
            LinkError::System(error) => failed(&format!("file: open {name}"), error),
            other => Error::new(Errno::Enoent, format!("file: {name} {other}")),
        }
    }
}

/// Whether links that lead out of this directory are followed.
///
/// # Errors
/// They are not, because somebody else could have made them.
pub(crate) fn check_directory(directory: BorrowedFd<'_>) -> Result<(), LinkError> {
    let stat = fstat(directory)?;
    match stat.st_mode & WRITABLE_BY_OTHERS {
        _ if !is_trusted(&stat) => Err(LinkError::ForeignDirectory(stat.st_uid)),
        0 => Ok(()),
        _ => Err(LinkError::OpenDirectory),
    }
}

/// Whether the owner is the server's user or root.
fn is_trusted(stat: &Stat) -> bool {
    stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw()
}

impl Link {
    /// The link of this name, if it may be followed.
    ///
    /// # Errors
    /// There is no such link, or it may not be followed.
    pub(crate) fn new(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Link, LinkError> {
        if name.as_encoded_bytes().contains(&b'/') {
            return Err(LinkError::NotALink);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = openat(directory, name, flags, Mode::empty())?;
        let stat = fstat(&link)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(LinkError::NotALink);
        }
        check_directory(directory)?;
        if !is_trusted(&stat) {
            return Err(LinkError::ForeignLink(stat.st_uid));
        }
        let target = readlinkat(&link, "", Vec::new())?;
        Ok(Link { target: OsString::from_vec(target.into_bytes()) })
    }

    /// Opens what it leads to. The links of /proc are not followed, because they lead to the
    /// descriptors of a process.
    pub(crate) fn open(&self, directory: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(directory, self.target.as_os_str(), flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
    }
}

/// Opens a file for the server: what a link in the directory leads to. The server has checked the
/// same before, to tell the client why it refuses.
pub(crate) fn open_for_server(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    purpose: OpenFor,
) -> rustix::io::Result<OwnedFd> {
    let link = Link::new(directory, name).map_err(|error| match error {
        LinkError::System(error) => error,
        _ => Raw::XDEV,
    })?;
    if !is_served(&fstat(link.open(directory, OFlags::PATH | OFlags::CLOEXEC)?)?) {
        return Err(Raw::NXIO);
    }
    let access = match purpose {
        OpenFor::Reading => OFlags::RDONLY,
        OpenFor::Writing => OFlags::RDWR,
    };
    let file = link.open(directory, access | OPENING)?;
    match is_served(&fstat(file.as_fd())?) {
        true => Ok(file),
        false => Err(Raw::NXIO),
    }
}
