//! The files that the operator named in a filter's parameters. A filter reaches no other file.
//!
//! Files are opened when the filter is configured, while the working directory is still the user's.
//! So a missing file is reported in one line before the server listens. Files that may appear and
//! vanish while the server runs (`path-now`, `watch`) are opened or checked at each use. Their
//! paths are made absolute, because the server changes its directory when it goes into the
//! background. A guest names a parameter and its occurrence, and never learns a path.
//!
//! What is kept (`path-readwrite`) is in [`storage`](super::storage). Of a shell command this file
//! only knows its place among the filter's commands.
//!
//! The functions block the calling thread for as long as the file's I/O takes. Anything that is not
//! a regular file (a pipe of `<(command)`, `/dev/stdin`) is read whole when it is opened: it could
//! not be read twice, and is often gone after a fork.
//!
//! Secrets ([`ParamKind::Secret`]) are read here as well, at the same time. A guest gets nothing of
//! them: other functions of the host take the parameter's name.
//!
//! The operator chooses the paths and they may lead anywhere, so cap-std opens them with ambient
//! authority. A directory handle could not confine them.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{File, FileExt};
use rbdkit_plugin_api::passwords::{self, Secret};
use rbdkit_plugin_api::schema::{ParamKind, ParamValue};
use rbdkit_plugin_api::{ConfigError, Errno};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, Mode, OFlags};

use rbdkit_plugin_api::text::plain;

use super::control_socket::ControlSocket;
use super::opening;
use super::storage::{OpenError, Storage};

/// The most bytes that one `read` answers.
pub const MAX_READ: u32 = 1 << 20;
/// The largest pipe, in bytes. Pipes carry lists of ranges and the like.
const MAX_PIPE: u64 = 16 << 20;

/// The files of one filter, by parameter and occurrence.
#[derive(Debug, Default)]
pub struct ParamFiles {
    all: Vec<(String, Vec<ParamFile>)>,
    /// The shell commands that parameters name.
    commands: Vec<OsString>,
}

#[derive(Debug)]
enum ParamFile {
    /// `path-read`, a regular file.
    Read(File),
    /// `path-read`, the contents of a pipe.
    Contents(Vec<u8>),
    /// `path-append`.
    Append(Arc<File>),
    /// `path-write`.
    Write(Arc<File>),
    /// `path-readwrite`.
    Storage(Arc<Storage>),
    /// `script`, or `string-or-script` with a command: its place among the commands.
    Script(usize),
    /// `string-or-script` with a text.
    NoScript,
    /// `path-now`: opened at each use.
    OpenedAnew(PathBuf, Seen),
    /// `watch` or `bool-or-watch`: a path whose existence counts.
    Watch(PathBuf, Seen),
    /// `bool-or-watch`: a truth value.
    Truth(bool),
    /// `secret`.
    Secret(Secret),
    /// `descriptor`: a pipe or a socket that the operator passed.
    Descriptor(OwnedFd),
    /// `process`: a descriptor of the process.
    Process(OwnedFd),
    /// `control`.
    Control(Arc<ControlSocket>),
    /// A parameter of a kind that names no file.
    Other,
}

/// What is at a watched place, to find out whether it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing, the other end is closed, or the process has ended.
    Nothing,
    /// The other end is open, or the process runs.
    Something,
    /// This file: device, inode and, for `path-now`, size and time of the last change.
    File(u64, u64, u64, (i64, i64)),
}

impl Seen {
    /// What `files.holds` answers.
    pub(crate) fn holds(self) -> bool {
        self != Seen::Nothing
    }

    /// The file at a path.
    fn at(path: &Path) -> Seen {
        std::fs::metadata(path).map_or(Seen::Nothing, |file| Seen::File(file.dev(), file.ino(), 0, (0, 0)))
    }

    /// The regular file at a path, and its contents.
    fn contents_at(path: &Path) -> Seen {
        let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
        file.map_or(Seen::Nothing, |file| {
            Seen::File(file.dev(), file.ino(), file.len(), (file.mtime(), file.mtime_nsec()))
        })
    }

    /// Whether nothing has happened to a descriptor that is waited for.
    fn unless_told(fd: &OwnedFd, events: PollFlags) -> Seen {
        let mut fds = [PollFd::new(fd, events)];
        let told = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        if told { Seen::Nothing } else { Seen::Something }
    }
}

impl ParamFiles {
    /// Opens the files that parameters name. `params` are the parameters that were given, in the
    /// order of the command line: the parameter's own name (not an alias), its kind and its value.
    ///
    /// # Errors
    /// One line `key=value: ...` for a file that cannot be opened, and `key: ...` for a secret that
    /// cannot be read.
    pub fn open<'a>(
        params: impl IntoIterator<Item = (&'a str, ParamKind, &'a ParamValue)>,
    ) -> Result<ParamFiles, ConfigError> {
        let mut files = ParamFiles::default();
        for (name, kind, value) in params {
            let named = match (kind, &value.path) {
                (ParamKind::Script | ParamKind::StringOrScript, Some(command)) => {
                    files.commands.push(command.clone());
                    ParamFile::Script(files.commands.len() - 1)
                }
                (ParamKind::StringOrScript, None) => ParamFile::NoScript,
                _ => open_one(name, kind, value)?,
            };
            match files.all.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.push(named),
                None => files.all.push((name.to_string(), vec![named])),
            }
        }
        Ok(files)
    }

    fn get(&self, param: &str, nth: u32) -> Result<&ParamFile, Errno> {
        let (_, all) = self.all.iter().find(|(name, _)| name == param).ok_or(Errno::Enoent)?;
        all.get(nth as usize).ok_or(Errno::Enoent)
    }

    /// Whether a parameter was given so often.
    ///
    /// # Errors
    /// ENOENT if it was not.
    pub fn check_given(&self, param: &str, nth: u32) -> Result<(), Errno> {
        self.get(param, nth).map(|_| ())
    }

    /// A secret, for the host's own use.
    ///
    /// # Errors
    /// ENOENT if the parameter was not given, EINVAL if it is of another kind.
    pub fn secret(&self, param: &str, nth: u32) -> Result<&Secret, Errno> {
        match self.get(param, nth)? {
            ParamFile::Secret(secret) => Ok(secret),
            _ => Err(Errno::Einval),
        }
    }

    /// The current size in bytes of a file to be read.
    ///
    /// # Errors
    /// ENOENT if the parameter was not given, or no file is there now. EINVAL if the parameter is
    /// of another kind. Errors of the file system.
    pub fn size(&self, param: &str, nth: u32) -> Result<u64, Errno> {
        match self.get(param, nth)? {
            ParamFile::Read(file) => Ok(file.metadata().map_err(errno)?.len()),
            ParamFile::Contents(bytes) => Ok(bytes.len() as u64),
            ParamFile::OpenedAnew(path, _) => Ok(open_now(path)?.metadata().map_err(errno)?.len()),
            _ => Err(Errno::Einval),
        }
    }

    /// At most `length` bytes, and at most [`MAX_READ`], from `offset` of a file to be read. Fewer
    /// only at its end.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`].
    pub fn read(&self, param: &str, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        let length = length.min(MAX_READ) as usize;
        match self.get(param, nth)? {
            ParamFile::Read(file) => read_at(file, offset, length),
            ParamFile::Contents(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
                Ok(rest[..length.min(rest.len())].to_vec())
            }
            ParamFile::OpenedAnew(path, _) => read_at(&open_now(path)?, offset, length),
            _ => Err(Errno::Einval),
        }
    }

    /// The directories of the files that are opened at each use. A file that replaces one of them
    /// appears in the same directory.
    pub fn opened_anew(&self) -> Vec<PathBuf> {
        let now = self.all.iter().flat_map(|(_, all)| all).filter_map(|named| match named {
            ParamFile::OpenedAnew(path, _) => Some(path),
            _ => None,
        });
        directories(now)
    }

    /// Appends all of `data` in one write. Never waits for the reader of a pipe.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`]. ENOSPC if not all of it could be written.
    pub fn append(&self, param: &str, nth: u32, data: &[u8]) -> Result<(), Errno> {
        let file = self.appended(param, nth)?;
        if data.is_empty() {
            return Ok(());
        }
        // Not `write_all`: another process could append a line before the rest of a short write.
        let mut file: &File = file;
        match file.write(data) {
            Ok(written) if written == data.len() => Ok(()),
            Ok(_) => Err(Errno::Enospc),
            // A pipe that is full.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Errno::Enospc),
            Err(error) => Err(errno(error)),
        }
    }

    /// Empties a file that may be emptied. A pipe or a terminal stays as it is.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`].
    pub fn truncate(&self, param: &str, nth: u32) -> Result<(), Errno> {
        let ParamFile::Write(file) = self.get(param, nth)? else { return Err(Errno::Einval) };
        match file.metadata().map_err(errno)?.is_file() {
            true => file.set_len(0).map_err(errno),
            false => Ok(()),
        }
    }

    /// A file to be appended to, for a flush.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`].
    pub fn appended(&self, param: &str, nth: u32) -> Result<&Arc<File>, Errno> {
        match self.get(param, nth)? {
            ParamFile::Append(file) | ParamFile::Write(file) => Ok(file),
            _ => Err(Errno::Einval),
        }
    }

    /// A file that is kept.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`].
    pub fn storage(&self, param: &str, nth: u32) -> Result<&Arc<Storage>, Errno> {
        match self.get(param, nth)? {
            ParamFile::Storage(storage) => Ok(storage),
            _ => Err(Errno::Einval),
        }
    }

    /// Lets all files that are kept have at least `size` bytes.
    pub fn raise_storage_limit(&self, size: u64) {
        for named in self.all.iter().flat_map(|(_, all)| all) {
            if let ParamFile::Storage(storage) = named {
                storage.raise_limit(size);
            }
        }
    }

    /// The control sockets: the parameter, its occurrence, and the socket.
    pub(crate) fn controls(&self) -> impl Iterator<Item = (&str, u32, &Arc<ControlSocket>)> {
        self.all.iter().flat_map(|(name, all)| {
            all.iter().zip(0..).filter_map(|(file, nth)| match file {
                ParamFile::Control(socket) => Some((name.as_str(), nth, socket)),
                _ => None,
            })
        })
    }

    /// All shell commands that parameters name.
    pub fn commands(&self) -> &[OsString] {
        &self.commands
    }

    /// The place of a shell command among [`ParamFiles::commands`].
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`]. ENOENT for a text where a command could be.
    pub fn command(&self, param: &str, nth: u32) -> Result<usize, Errno> {
        match self.get(param, nth)? {
            ParamFile::Script(place) => Ok(*place),
            ParamFile::NoScript => Err(Errno::Enoent),
            _ => Err(Errno::Einval),
        }
    }

    /// Whether a watched path exists, a file is at a path, a descriptor's other end is open, or a
    /// process runs, now. For a truth value, the value.
    ///
    /// # Errors
    /// Those of [`ParamFiles::size`].
    pub fn holds(&self, param: &str, nth: u32) -> Result<bool, Errno> {
        match self.get(param, nth)? {
            ParamFile::Watch(path, _) => Ok(rustix::fs::access(path, Access::EXISTS).is_ok()),
            ParamFile::Truth(truth) => Ok(*truth),
            file => file.seen().map(Seen::holds).ok_or(Errno::Einval),
        }
    }

    /// What can be watched: the parameter, its occurrence, and what was seen at the start.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (&str, u32, Seen)> {
        self.all.iter().flat_map(|(name, all)| {
            all.iter().zip(0..).filter_map(|(file, nth)| Some((name.as_str(), nth, file.first_seen()?)))
        })
    }

    /// The paths among them.
    pub(crate) fn watched_paths(&self) -> Vec<PathBuf> {
        let all = self.all.iter().flat_map(|(_, all)| all);
        all.filter_map(|file| match file {
            ParamFile::Watch(path, _) | ParamFile::OpenedAnew(path, _) => Some(path.clone()),
            _ => None,
        })
        .collect()
    }

    /// The descriptors among them, and whether each one is that of a process.
    pub(crate) fn watched_descriptors(&self) -> impl Iterator<Item = (&OwnedFd, bool)> {
        self.all.iter().flat_map(|(_, all)| all).filter_map(|file| match file {
            ParamFile::Descriptor(fd) => Some((fd, false)),
            ParamFile::Process(fd) => Some((fd, true)),
            _ => None,
        })
    }

    /// What is there now.
    pub(crate) fn seen(&self, param: &str, nth: u32) -> Seen {
        self.get(param, nth).ok().and_then(ParamFile::seen).unwrap_or(Seen::Nothing)
    }
}

impl ParamFile {
    /// What is there now. None for a file that is not watched.
    fn seen(&self) -> Option<Seen> {
        match self {
            ParamFile::Watch(path, _) => Some(Seen::at(path)),
            ParamFile::OpenedAnew(path, _) => Some(Seen::contents_at(path)),
            // HUP and ERR are always reported.
            ParamFile::Descriptor(fd) => Some(Seen::unless_told(fd, PollFlags::RDHUP)),
            ParamFile::Process(fd) => Some(Seen::unless_told(fd, PollFlags::IN)),
            _ => None,
        }
    }

    fn first_seen(&self) -> Option<Seen> {
        match self {
            ParamFile::Watch(_, first) | ParamFile::OpenedAnew(_, first) => Some(*first),
            ParamFile::Descriptor(_) | ParamFile::Process(_) => Some(Seen::Something),
            _ => None,
        }
    }
}

/// The directories in which files appear, go and are replaced.
pub(crate) fn directories<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    // A symbolic link may lead to another directory.
    let both = paths.into_iter().flat_map(|path| [Some(path.clone()), std::fs::canonicalize(path).ok()]);
    both.flatten().filter_map(|path| path.parent().map(Path::to_path_buf)).collect()
}

fn errno(e: std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::Eio, Errno::from_raw)
}

fn read_at(file: &File, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let mut got = 0;
    while got < length {
        let Some(at) = offset.checked_add(got as u64).filter(|at| i64::try_from(*at).is_ok()) else { break };
        match file.read_at(&mut bytes[got..], at) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(errno(e)),
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// Opens the regular file that is at a path now. Never waits, even if a pipe is there.
fn open_now(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
    let file = File::from_std(file.into());
    match file.metadata().map_err(errno)?.is_file() {
        true => Ok(file),
        false => Err(Errno::Einval),
    }
}

fn open_one(name: &str, kind: ParamKind, value: &ParamValue) -> Result<ParamFile, ConfigError> {
    let Some(path) = &value.path else {
        return Ok(match kind {
            ParamKind::BoolOrWatch => ParamFile::Truth(value.text == "true"),
            _ => ParamFile::Other,
        });
    };
    let refused = |why: &str| ConfigError::new(format!("{name}={}: {why}", path.to_string_lossy()));
    let wrong = |what: &str, e: std::io::Error| refused(&format!("{what}: {}", plain(&e)));
    match kind {
        ParamKind::PathRead => open_read(path).map_err(|e| wrong("cannot be read", e)),
        ParamKind::PathAppend => {
            opening::to_append(path).map(ParamFile::Append).map_err(|e| wrong("cannot be opened for appending", e))
        }
        ParamKind::PathWrite => {
            opening::to_append(path).map(ParamFile::Write).map_err(|e| wrong("cannot be opened for writing", e))
        }
        ParamKind::PathReadWrite => {
            Storage::open(Path::new(path)).map(|file| ParamFile::Storage(Arc::new(file))).map_err(|error| match error {
                OpenError::Io(error) => wrong("cannot be opened for reading and writing", error),
                OpenError::NotRegular => refused("is not a regular file"),
                OpenError::InUse => refused("another server, or another filter of this one, has it open"),
            })
        }
        ParamKind::PathNow => {
            let path = std::path::absolute(path).map_err(|e| wrong("cannot be read", e))?;
            let seen = Seen::contents_at(&path);
            Ok(ParamFile::OpenedAnew(path, seen))
        }
        ParamKind::Secret => passwords::read(name, path)
            .map(ParamFile::Secret)
            .map_err(|error| ConfigError::new(format!("{name}: {error}"))),
        ParamKind::Watch | ParamKind::BoolOrWatch => {
            let path = std::path::absolute(path).map_err(|e| wrong("cannot be watched", e))?;
            let seen = Seen::at(&path);
            Ok(ParamFile::Watch(path, seen))
        }
        ParamKind::Descriptor => {
            opening::passed_on(path).map(ParamFile::Descriptor).map_err(|e| wrong("cannot be watched", e))
        }
        ParamKind::Control => ControlSocket::make(Path::new(path))
            .map(|socket| ParamFile::Control(Arc::new(socket)))
            .map_err(|error| refused(&error.to_string())),
        ParamKind::Process => opening::process(path).map(ParamFile::Process).map_err(|e| wrong("cannot be watched", e)),
        _ => Ok(ParamFile::Other),
    }
}

fn open_read(path: &OsStr) -> std::io::Result<ParamFile> {
    let file = File::open_ambient(Path::new(path), ambient_authority())?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    if kind.is_file() {
        return Ok(ParamFile::Read(file));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PIPE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PIPE {
        return Err(rustix::io::Errno::FBIG.into());
    }
    Ok(ParamFile::Contents(bytes))
}

#[cfg(test)]
mod tests;
