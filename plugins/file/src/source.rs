//! Where files come from: one path, one directory, or an inherited descriptor of either.
//!
//! In a directory the client names the file. The file is opened with openat2 and RESOLVE_BENEATH,
//! so the kernel refuses any name or symbolic link that leads out of the directory. Whether such a
//! link is followed is decided in [`links`](crate::links).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rbdkit_launcher::{Open, OpenFor, Opener};
use rbdkit_plugin_api::{ConfigError, DiskId, Errno, Error, ExportEntry, Result, inherited};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno as Raw;

use crate::config::Place;
use crate::error::{DescriptorError, failed};
use crate::links::{Link, check_directory, open_for_server};
use crate::served::{OPENING, is_served};

pub(crate) enum Source {
    File(PathBuf),
    /// Opened by the parent process.
    Fd(OwnedFd, FdAccess),
    Dir(Directory),
}

/// A directory whose files are the exports.
pub(crate) struct Directory {
    fd: OwnedFd,
    /// Opens what lies outside of the directory.
    opener: Opener,
}

impl Directory {
    fn new(fd: OwnedFd) -> Directory {
        Directory { fd, opener: Opener::new(OPEN.0, OPEN.1) }
    }
}

/// How the opener's helper finds its function.
pub(crate) const OPEN: (&str, Open) = ("file", open_for_server);

/// How an inherited descriptor is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FdAccess {
    ReadOnly,
    ReadWrite,
}

/// A file that was opened for a client.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Stat,
    pub(crate) writable: bool,
    /// Which of the source's disks it is.
    pub(crate) id: DiskId,
}

impl Source {
    /// Checks that the file, directory or descriptor of the command line exists and can be served.
    ///
    /// # Errors
    /// One line that names the parameter.
    pub(crate) fn new(place: &Place) -> Result<Source, ConfigError> {
        match place {
            Place::File(path) => {
                let wrong = |what: &str| ConfigError::new(format!("file={}: {what}", path.display()));
                let stat = rustix::fs::stat(path).map_err(|error| wrong(&error.to_string()))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile | FileType::BlockDevice => Ok(Source::File(path.clone())),
                    FileType::Directory => Err(wrong("is a directory; dir= serves the files in it")),
                    _ => Err(wrong("is neither a regular file nor a block device")),
                }
            }
            Place::Dir(path) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
                    Ok(dir) => Ok(Source::Dir(Directory::new(dir))),
                    Err(Raw::NOTDIR) => Err(ConfigError::new(format!(
                        "dir={}: is not a directory; file= serves a file",
                        path.display()
                    ))),
                    Err(error) => Err(ConfigError::new(format!("dir={}: {error}", path.display()))),
                }
            }
            Place::Fd(number) => inherited_file(*number)
                .map(|(fd, access)| Source::Fd(fd, access))
                .map_err(|error| ConfigError::new(format!("fd={number}: {error}"))),
            Place::DirFd(number) => inherited_directory(*number)
                .map(|dir| Source::Dir(Directory::new(dir)))
                .map_err(|error| ConfigError::new(format!("dirfd={number}: {error}"))),
        }
    }

    /// The exports. A single file is the default export alone, and clients may ask for it under any
    /// name.
    pub(crate) fn list(&self) -> Result<Option<Vec<ExportEntry>>> {
        let Source::Dir(dir) = self else {
            return Ok(None);
        };
        let reading = |error| failed("reading the directory", error);
        let mut names = Vec::new();
        let mut not_listed = 0;
        for entry in Dir::read_from(&dir.fd).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let Ok(name) = entry.file_name().to_str() else {
                not_listed += 1;
                continue;
            };
            if dir.stat(name).is_ok_and(|stat| is_served(&stat)) {
                names.push(name.to_string());
            }
        }
        if not_listed > 0 {
            tracing::warn!("file: names in the directory that are not UTF-8, and so not listed: {not_listed}");
        }
        names.sort();
        Ok(Some(names.into_iter().map(|name| ExportEntry { name, description: None }).collect()))
    }

    /// Opens the export that a client asks for: for reading and writing if that is wanted and
    /// possible, otherwise for reading.
    ///
    /// # Errors
    /// ENOENT if there is no such export; or the error of the system call.
    pub(crate) fn open(&self, exportname: &str, readonly: bool) -> Result<Opened> {
        match self {
            Source::File(path) => {
                let shown = path.display().to_string();
                open_checked(&shown, readonly, |flags| rustix::fs::openat(CWD, path, flags, Mode::empty()))
            }
            Source::Fd(fd, access) => {
                let opening = |error| failed("duplicating the descriptor", error);
                let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(opening)?;
                let stat = rustix::fs::fstat(&fd).map_err(opening)?;
                let writable = *access == FdAccess::ReadWrite && !readonly;
                Ok(Opened { fd, stat, writable, id: DiskId::DEFAULT })
            }
            Source::Dir(dir) => {
                if exportname.is_empty() {
                    return Err(Error::new(
                        Errno::Enoent,
                        "file: there is no default export, a client has to name a file of the directory",
                    ));
                }
                if exportname.contains(['/', '\0']) {
                    return Err(Error::new(Errno::Einval, "file: an export name cannot contain '/'"));
                }
                let opened = dir.open(exportname, readonly)?;
                Ok(Opened { id: file_id(&opened.fd, &opened.stat), ..opened })
            }
        }
    }

    /// Prepares for confinement: files outside of the directory are then opened by a helper.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub(crate) fn before_confinement(&self) -> std::io::Result<()> {
        match self {
            // No helper where no link out of the directory would be followed.
            Source::Dir(dir) if check_directory(dir.fd.as_fd()).is_ok() => dir.opener.move_out(dir.fd.as_fd()),
            _ => Ok(()),
        }
    }
}

impl Directory {
    /// Opens a file of the directory, or a file that a link leads to.
    fn open(&self, name: &str, readonly: bool) -> Result<Opened> {
        if !leads_out(&open_in(&self.fd, name, OFlags::PATH | OFlags::CLOEXEC)) {
            return open_checked(name, readonly, |flags| open_in(&self.fd, name, flags));
        }
        let link = Link::new(self.fd.as_fd(), OsStr::new(name)).map_err(|error| error.of_export(name))?;
        open_checked(name, readonly, |flags| {
            if flags.contains(OFlags::PATH) {
                return link.open(self.fd.as_fd(), flags);
            }
            let purpose = if flags.contains(OFlags::RDWR) { OpenFor::Writing } else { OpenFor::Reading };
            self.opener.open(self.fd.as_fd(), OsStr::new(name), purpose)
        })
    }

    /// What [`Directory::open`] would open.
    fn stat(&self, name: &str) -> Result<Stat> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let mut opened = open_in(&self.fd, name, flags);
        if leads_out(&opened) {
            let link = Link::new(self.fd.as_fd(), OsStr::new(name)).map_err(|error| error.of_export(name))?;
            opened = link.open(self.fd.as_fd(), flags);
        }
        opened.and_then(rustix::fs::fstat).map_err(|error| failed("stat", error))
    }
}

/// Whether the kernel refused to leave the directory.
fn leads_out(opened: &rustix::io::Result<OwnedFd>) -> bool {
    matches!(opened, Err(Raw::XDEV | Raw::LOOP))
}

/// Opens a regular file or a block device. Opening other files can have side effects (a pipe waits
/// for its other end, a tape rewinds), so the type is checked first, through an O_PATH descriptor.
fn open_checked(name: &str, readonly: bool, open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> Result<Opened> {
    let opening = |error| match error {
        Raw::XDEV | Raw::LOOP => {
            Error::new(Errno::Enoent, format!("file: {name} leads in a loop of links, or to a link of /proc"))
        }
        error => failed(&format!("file: open {name}"), error),
    };
    let refused = || Error::new(Errno::Enoent, format!("file: {name} is neither a regular file nor a block device"));
    let checked = open(OFlags::PATH | OFlags::CLOEXEC).map_err(opening)?;
    if !is_served(&rustix::fs::fstat(&checked).map_err(opening)?) {
        return Err(refused());
    }

    let flags = OPENING;
    let for_writing = if readonly { None } else { Some(open(flags | OFlags::RDWR)) };
    let (fd, writable) = match for_writing {
        Some(Ok(fd)) => (fd, true),
        Some(Err(error)) => {
            tracing::debug!("file: {name}: cannot be opened for writing ({error}), serving it read-only");
            (open(flags | OFlags::RDONLY).map_err(opening)?, false)
        }
        None => (open(flags | OFlags::RDONLY).map_err(opening)?, false),
    };
    let stat = rustix::fs::fstat(&fd).map_err(opening)?;
    if !is_served(&stat) {
        return Err(refused());
    }
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(opening)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map_err(opening)?;
    Ok(Opened { fd, stat, writable, id: DiskId::DEFAULT })
}

/// The disk that a file of a directory is, whatever the name or the link that led to it. The time
/// of its creation tells it from a deleted file whose inode it got.
fn file_id(fd: &OwnedFd, stat: &Stat) -> DiskId {
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return DiskId::named(&format!("device {:x}", stat.st_rdev));
    }
    let created = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    let created = created.map(|stat| (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)).unwrap_or_default();
    DiskId::named(&format!("file {:x}:{:x} of {}.{}", stat.st_dev, stat.st_ino, created.0, created.1))
}

/// How often to repeat openat2 when a rename at the same time keeps the kernel from deciding
/// whether a link leads out of the directory.
const MAX_TRIES: u32 = 16;

/// Opens a name in a directory, never anything outside of it. The name has no slash.
fn open_in(dir: &OwnedFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_TRIES {
        match rustix::fs::openat2(dir, Path::new(name), flags, Mode::empty(), resolve) {
            Err(Raw::AGAIN) => {}
            // A kernel before 5.6, or a sandbox that does not know the call. A name of one
            // component that is not a followed link cannot lead out either ("..", a directory, is
            // refused later).
            Err(Raw::NOSYS | Raw::PERM) => {
                return rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
            }
            other => return other,
        }
    }
    Err(Raw::XDEV)
}

/// A file or block device that was inherited, and how it is open.
fn inherited_file(number: i32) -> Result<(OwnedFd, FdAccess), DescriptorError> {
    let (fd, stat) = duplicate(number)?;
    if !is_served(&stat) {
        return Err(DescriptorError::NotAFile);
    }
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    if flags.contains(OFlags::APPEND) {
        return Err(DescriptorError::Appends);
    }
    match flags & OFlags::RWMODE {
        OFlags::RDWR => Ok((fd, FdAccess::ReadWrite)),
        OFlags::WRONLY => Err(DescriptorError::WriteOnly),
        _ => Ok((fd, FdAccess::ReadOnly)),
    }
}

fn inherited_directory(number: i32) -> Result<OwnedFd, DescriptorError> {
    let (fd, stat) = duplicate(number)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(fd),
        _ => Err(DescriptorError::NotADirectory),
    }
}

fn duplicate(number: i32) -> Result<(OwnedFd, Stat), DescriptorError> {
    let fd = inherited::duplicate(number).map_err(|_| DescriptorError::NotInherited)?;
    let stat = rustix::fs::fstat(fd.as_fd())?;
    Ok((fd, stat))
}
