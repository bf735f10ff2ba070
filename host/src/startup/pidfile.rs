//! The pid file: written when clients can connect, and not removed at the end, as in nbdkit.
//!
//! The directory is opened once, and the file is checked and written relative to it. A file is
//! replaced only if it is empty or holds a process id. What a symbolic link leads to is written to
//! only if it is a pipe or a terminal (`/dev/stderr`), so no link makes the server overwrite a
//! file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::own_file::{OwnFile, directory_of, is_same, look};
use rbdkit_plugin_api::text::plain;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

/// A file that holds more bytes is not a pid file.
const MAX_PID_FILE: u64 = 64;

/// How often to try again when the file appears or goes at the same time.
const MAX_TRIES: u32 = 16;

/// The pid file of a server that is starting. It is removed when dropped, unless [`PidFile::keep`]
/// was called.
#[derive(Debug)]
pub struct PidFile(Option<Arc<OwnFile>>);

/// Why the pid file cannot be written.
#[derive(Debug, thiserror::Error)]
enum PidFileError {
    #[error("{}", plain(.0))]
    Io(#[from] io::Error),
    #[error("is a symbolic link to a file, which is not overwritten (give the name of the file itself)")]
    Link,
    #[error("exists and holds something else than a process id (remove it, or give another name)")]
    Foreign,
    #[error("is neither a file nor a pipe nor a terminal")]
    Kind,
    #[error("changes all the time")]
    Busy,
}

impl From<Errno> for PidFileError {
    fn from(error: Errno) -> PidFileError {
        PidFileError::Io(error.into())
    }
}

impl PidFile {
    /// Writes this process's id. A new file appears complete.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn write(path: &Path) -> Result<PidFile, ConfigError> {
        let text = format!("{}\n", std::process::id());
        let written = directory_of(path)
            .map_err(PidFileError::Io)
            .and_then(|(directory, name)| write(directory, &name, text.as_bytes()));
        written.map(|file| PidFile(file.map(Arc::new))).map_err(|error| failed(path, &error))
    }

    /// The file, if it is a new one.
    pub fn file(&self) -> Option<&Arc<OwnFile>> {
        self.0.as_ref()
    }

    /// The start has succeeded: the file stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            file.remove();
        }
    }
}

/// Makes the name absolute, because a server in the background changes its working directory.
///
/// # Errors
/// One line that names the file.
pub fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| failed(path, &PidFileError::Io(error)))
}

/// Returns the file if it is a new one.
fn write(directory: OwnedFd, name: &OsStr, text: &[u8]) -> Result<Option<OwnFile>, PidFileError> {
    for _ in 0..MAX_TRIES {
        let there = match look(&directory, name) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match create(&directory, name, text) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => return Ok(Some(OwnFile::new(directory, name.to_os_string(), made?))),
            },
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&there)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                check_content(&directory, name)?;
                return match replace(&directory, name, text) {
                    // The directory is not ours to change, but the file may be.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                        ) =>
                    {
                        overwrite(&directory, name, &there, text).map(|()| None)
                    }
                    made => Ok(Some(OwnFile::new(directory, name.to_os_string(), made?))),
                };
            }
            FileType::Symlink => return write_to_stream(&directory, name, text, PidFileError::Link).map(|()| None),
            _ => return write_to_stream(&directory, name, text, PidFileError::Kind).map(|()| None),
        }
    }
    Err(PidFileError::Busy)
}

/// Makes the file, which does not exist.
fn create(directory: &OwnedFd, name: &OsStr, text: &[u8]) -> io::Result<OwnedFd> {
    put(directory, text, |temporary| {
        match renameat_with(directory, temporary, directory, name, RenameFlags::NOREPLACE) {
            // A file system that cannot tell. The other file would be replaced.
            Err(Errno::INVAL) => renameat(directory, temporary, directory, name),
            renamed => renamed,
        }
    })
}

/// Puts a new file in the place of the old one.
fn replace(directory: &OwnedFd, name: &OsStr, text: &[u8]) -> io::Result<OwnedFd> {
    put(directory, text, |temporary| renameat(directory, temporary, directory, name))
}

/// Writes a file of a temporary name, and renames it.
fn put(directory: &OwnedFd, text: &[u8], rename: impl FnOnce(&OsStr) -> rustix::io::Result<()>) -> io::Result<OwnedFd> {
    let (mut file, temporary) = temporary(directory)?;
    let done = file.write_all(text).and_then(|()| Ok(rename(&temporary)?));
    if done.is_err() {
        let _ = unlinkat(directory, &temporary, AtFlags::empty());
    }
    done.map(|()| file.into())
}

/// Makes an empty file of a name that nobody has. The umask applies to its permissions, as to every
/// new file's. Only its owner may write to it, because scripts send signals to the process in it.
fn temporary(directory: &OwnedFd) -> io::Result<(File, OsString)> {
    let mut last = Errno::EXIST;
    for number in 0..MAX_TRIES {
        let name = OsString::from(format!(".rbdkit-{}-{number}.pid", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(directory, &name, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => return Ok((file.into(), name)),
            Err(Errno::EXIST) => last = Errno::EXIST,
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.into())
}

/// Checks that a file may be replaced: it is empty, or holds a number.
fn check_content(directory: &OwnedFd, name: &OsStr) -> Result<(), PidFileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(MAX_PID_FILE + 1).read_to_end(&mut content)?;
    let is_pid = content.trim_ascii().iter().all(u8::is_ascii_digit);
    if is_pid && content.len() as u64 <= MAX_PID_FILE { Ok(()) } else { Err(PidFileError::Foreign) }
}

/// Writes into the file that was checked.
fn overwrite(directory: &OwnedFd, name: &OsStr, checked: &OwnedFd, text: &[u8]) -> Result<(), PidFileError> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::empty())?);
    let stat = fstat(&file)?;
    if !is_same(&stat, &fstat(checked)?) {
        return Err(PidFileError::Busy);
    }
    // A second name of the file may have been made to have something else overwritten.
    if stat.st_nlink != 1 {
        return Err(PidFileError::Foreign);
    }
    file.set_len(0)?;
    Ok(file.write_all(text)?)
}

/// Writes to a pipe or a character device, or to one that a symbolic link leads to. `otherwise` is
/// the error for anything else.
fn write_to_stream(
    directory: &OwnedFd,
    name: &OsStr,
    text: &[u8],
    otherwise: PidFileError,
) -> Result<(), PidFileError> {
    // Without O_PATH, opening some devices has effects.
    let there = match openat(directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Err(otherwise),
        there => fstat(there?)?,
    };
    let is_stream = matches!(FileType::from_raw_mode(there.st_mode), FileType::Fifo | FileType::CharacterDevice);
    if !is_stream {
        return Err(otherwise);
    }
    let opened = openat(directory, name, OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    match is_same(&fstat(&opened)?, &there) {
        true => Ok(File::from(opened).write_all(text)?),
        false => Err(PidFileError::Busy),
    }
}

fn failed(path: &Path, error: &PidFileError) -> ConfigError {
    ConfigError::new(format!("--pidfile: {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn ours() -> String {
        format!("{}\n", std::process::id())
    }

    fn names(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_pid_file_is_new_or_replaces_an_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        for before in [None, Some(""), Some("123"), Some("4194304\n"), Some(" 7 \n")] {
            let _ = std::fs::remove_file(&path);
            if let Some(text) = before {
                std::fs::write(&path, text).unwrap();
            }
            PidFile::write(&path).unwrap().keep();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), ours(), "{before:?}");
        }
        assert_eq!(names(directory.path()), 1);
    }

    #[test]
    fn a_file_that_is_not_a_pid_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        for content in ["data", "1a", "-1", "0x10", &"1".repeat(65), &" ".repeat(1 << 20)] {
            std::fs::write(&path, content).unwrap();
            let error = PidFile::write(&path).unwrap_err().to_string();
            let wrong = "exists and holds something else than a process id (remove it, or give another name)";
            assert_eq!(error, format!("--pidfile: {}: {wrong}", path.display()));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(directory.path()), 1);
    }

    #[test]
    fn no_symbolic_link_makes_it_overwrite_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path().join("pid"), directory.path().join("target"));
        symlink(&target, &path).unwrap();
        for content in [None, Some(""), Some("123\n"), Some("precious")] {
            if let Some(text) = content {
                std::fs::write(&target, text).unwrap();
            }
            let error = PidFile::write(&path).unwrap_err().to_string();
            assert!(error.contains("is a symbolic link to a file, which is not overwritten"), "{error}");
            assert_eq!(std::fs::read_to_string(&target).ok().as_deref(), content);
            assert!(path.is_symlink());
        }
    }

    #[test]
    fn a_second_name_of_another_file_is_replaced_and_the_other_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("pid"), directory.path().join("other"));
        std::fs::write(&other, "123\n").unwrap();
        std::fs::hard_link(&other, &path).unwrap();
        PidFile::write(&path).unwrap().keep();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), ours());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "123\n");
    }

    #[test]
    fn a_pipe_gets_the_id_through_a_link_too() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, link) = (directory.path().join("pipe"), directory.path().join("link"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        symlink("pipe", &link).unwrap();
        for path in [pipe, link] {
            let name = path.clone();
            let reader = std::thread::spawn(move || std::fs::read_to_string(name).unwrap());
            PidFile::write(&path).unwrap().keep();
            assert_eq!(reader.join().unwrap(), ours());
        }
    }

    #[test]
    fn other_kinds_of_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        std::fs::create_dir(&path).unwrap();
        let error = PidFile::write(&path).unwrap_err().to_string();
        assert_eq!(error, format!("--pidfile: {}: is neither a file nor a pipe nor a terminal", path.display()));
        assert!(PidFile::write(&directory.path().join("..")).is_err());
    }

    #[test]
    fn a_failed_start_removes_its_own_pid_file_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        drop(PidFile::write(&path).unwrap());
        assert_eq!(names(directory.path()), 0);
        let first = PidFile::write(&path).unwrap();
        // Another server has taken the name meanwhile.
        PidFile::write(&path).unwrap().keep();
        drop(first);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), ours());
    }
}
