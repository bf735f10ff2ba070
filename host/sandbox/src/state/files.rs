//! What the operator named in a filter's parameters: the only files a filter ever reaches.
//!
//! Everything is opened when the filter is configured, while the working directory is still the user's, so that a missing file is one
//! clear line before anything listens (but for what may come and go while the server runs). A guest names the parameter and the occurrence; it never learns a path. Watched paths are made absolute
//! then, because the server changes its directory when it goes into the background.
//!
//! The functions block as reading a local file does. What is not a regular file (a pipe of `<(command)`, `/dev/stdin`) is read whole when it is
//! opened: it could not be read twice, and is often gone after a fork.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{File, FileExt, OpenOptions};
use rbdkit_plugin_api::schema::{ParamKind, ParamValue};
use rbdkit_plugin_api::{ConfigError, Errno};
use rustix::fs::{Access, Mode, OFlags};

use rbdkit_plugin_api::text::plain;

/// The most that one `read` answers, in bytes.
pub const MAX_READ: u32 = 1 << 20;
/// The most that is read of a pipe, in bytes: lists of ranges and the like.
const MAX_PIPE: u64 = 16 << 20;

/// The files of one filter, by parameter and occurrence.
#[derive(Debug, Default)]
pub struct Files(Vec<(String, Vec<Named>)>);

#[derive(Debug)]
enum Named {
    Read(File),
    Whole(Vec<u8>),
    Append(File),
    Now(PathBuf),
    Watch(PathBuf),
    Truth(bool),
    /// A parameter of a kind that names no file.
    Other,
}

impl Files {
    /// Opens what the parameters name. `params` are those that were given, in the order of the command line: the parameter's own name (not the
    /// alias that was used), its kind, its value.
    ///
    /// # Errors
    /// One line `key=value: ...` for a file that cannot be opened.
    pub fn open<'a>(
        params: impl IntoIterator<Item = (&'a str, ParamKind, &'a ParamValue)>,
    ) -> Result<Files, ConfigError> {
        let mut files = Files::default();
        for (name, kind, value) in params {
            let named = open_one(name, kind, value)?;
            match files.0.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.push(named),
                None => files.0.push((name.to_string(), vec![named])),
            }
        }
        Ok(files)
    }

    fn get(&self, param: &str, nth: u32) -> Result<&Named, Errno> {
        let (_, all) = self.0.iter().find(|(name, _)| name == param).ok_or(Errno::Enoent)?;
        all.get(nth as usize).ok_or(Errno::Enoent)
    }

    /// The size in bytes of a file to be read, as it is now.
    ///
    /// # Errors
    /// ENOENT if it was not given, or nothing is there now; EINVAL if the parameter is of another kind; what the file system says.
    pub fn size(&self, param: &str, nth: u32) -> Result<u64, Errno> {
        match self.get(param, nth)? {
            Named::Read(file) => Ok(file.metadata().map_err(errno)?.len()),
            Named::Whole(bytes) => Ok(bytes.len() as u64),
            Named::Now(path) => Ok(open_now(path)?.metadata().map_err(errno)?.len()),
            _ => Err(Errno::Einval),
        }
    }

    /// At most `length` bytes (and [`MAX_READ`]) from `offset` of a file to be read; fewer only at its end.
    ///
    /// # Errors
    /// As [`Files::size`].
    pub fn read(&self, param: &str, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        let length = length.min(MAX_READ) as usize;
        match self.get(param, nth)? {
            Named::Read(file) => read_at(file, offset, length),
            Named::Whole(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
                Ok(rest[..length.min(rest.len())].to_vec())
            }
            Named::Now(path) => read_at(&open_now(path)?, offset, length),
            _ => Err(Errno::Einval),
        }
    }

    /// The directories of the files that are opened anew each time they are read: what replaces such a file is in its place.
    pub fn opened_anew(&self) -> Vec<PathBuf> {
        let now = self.0.iter().flat_map(|(_, all)| all).filter_map(|named| match named {
            Named::Now(path) => Some(path),
            _ => None,
        });
        // What it leads to may be elsewhere.
        let both = now.flat_map(|path| [Some(path.clone()), std::fs::canonicalize(path).ok()]);
        both.flatten().filter_map(|path| path.parent().map(Path::to_path_buf)).collect()
    }

    /// Appends all of `data` in one write.
    ///
    /// # Errors
    /// As [`Files::size`]; ENOSPC if not all of it could be written.
    pub fn append(&self, param: &str, nth: u32, data: &[u8]) -> Result<(), Errno> {
        let Named::Append(file) = self.get(param, nth)? else { return Err(Errno::Einval) };
        if data.is_empty() {
            return Ok(());
        }
        // Not `write_all`: the rest of a short write could land behind somebody else's line.
        let mut file: &File = file;
        match file.write(data).map_err(errno)? {
            n if n == data.len() => Ok(()),
            _ => Err(Errno::Enospc),
        }
    }

    /// Whether a watched path exists now; of a truth value, the value.
    ///
    /// # Errors
    /// As [`Files::size`].
    pub fn holds(&self, param: &str, nth: u32) -> Result<bool, Errno> {
        match self.get(param, nth)? {
            Named::Watch(path) => Ok(rustix::fs::access(path, Access::EXISTS).is_ok()),
            Named::Truth(truth) => Ok(*truth),
            _ => Err(Errno::Einval),
        }
    }
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

/// What is at a path now: a regular file. Nothing else is opened in a way that could wait.
fn open_now(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
    let file = File::from_std(file.into());
    match file.metadata().map_err(errno)?.is_file() {
        true => Ok(file),
        false => Err(Errno::Einval),
    }
}

fn open_one(name: &str, kind: ParamKind, value: &ParamValue) -> Result<Named, ConfigError> {
    let Some(path) = &value.path else {
        return Ok(match kind {
            ParamKind::BoolOrWatch => Named::Truth(value.text == "true"),
            _ => Named::Other,
        });
    };
    let wrong = |what: &str, e: std::io::Error| {
        ConfigError::new(format!("{name}={}: {what}: {}", path.to_string_lossy(), plain(&e)))
    };
    match kind {
        ParamKind::PathRead => open_read(path).map_err(|e| wrong("cannot be read", e)),
        ParamKind::PathAppend => {
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            File::open_ambient_with(path, &options, ambient_authority())
                .map(Named::Append)
                .map_err(|e| wrong("cannot be opened for appending", e))
        }
        ParamKind::PathNow => std::path::absolute(path).map(Named::Now).map_err(|e| wrong("cannot be read", e)),
        ParamKind::Watch | ParamKind::BoolOrWatch => {
            std::path::absolute(path).map(Named::Watch).map_err(|e| wrong("cannot be watched", e))
        }
        _ => Ok(Named::Other),
    }
}

fn open_read(path: &OsStr) -> std::io::Result<Named> {
    let file = File::open_ambient(Path::new(path), ambient_authority())?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    if kind.is_file() {
        return Ok(Named::Read(file));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PIPE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PIPE {
        return Err(rustix::io::Errno::FBIG.into());
    }
    Ok(Named::Whole(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, path: Option<&Path>) -> ParamValue {
        ParamValue { text: text.into(), path: path.map(Into::into) }
    }

    /// A directory that is removed at the end of a test.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("rbdkit-files-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_occurrence_of_a_parameter_is_a_file_of_its_own() {
        let dir = Dir::new("nth");
        let (one, two) = (dir.0.join("one"), dir.0.join("two"));
        std::fs::write(&one, b"hello").unwrap();
        std::fs::write(&two, b"other").unwrap();
        let (one, two) = (value("set", Some(&one)), value("set", Some(&two)));
        let files = Files::open([("list", ParamKind::PathRead, &one), ("list", ParamKind::PathRead, &two)]).unwrap();
        assert_eq!(files.size("list", 0), Ok(5));
        assert_eq!(files.read("list", 0, 1, 3), Ok(b"ell".to_vec()));
        assert_eq!(files.read("list", 1, 3, 100), Ok(b"er".to_vec()));
        assert_eq!(files.read("list", 1, u64::MAX, 100), Ok(vec![]));
        assert_eq!(files.read("list", 2, 0, 1), Err(Errno::Enoent));
        assert_eq!(files.size("other", 0), Err(Errno::Enoent));
        assert_eq!(files.append("list", 0, b"x"), Err(Errno::Einval));
        assert_eq!(files.holds("list", 0), Err(Errno::Einval));
    }

    #[test]
    fn a_missing_file_is_one_line_that_names_it() {
        let path = value("set", Some(Path::new("/nonexistent/list")));
        let error = Files::open([("list", ParamKind::PathRead, &path)]).unwrap_err();
        assert_eq!(error.to_string(), "list=/nonexistent/list: cannot be read: No such file or directory");
        let path = value("set", Some(Path::new("/")));
        let error = Files::open([("log", ParamKind::PathAppend, &path)]).unwrap_err();
        assert_eq!(error.to_string(), "log=/: cannot be opened for appending: Is a directory");
        assert!(Files::open([("list", ParamKind::PathRead, &path)]).is_err());
    }

    #[test]
    fn appending_goes_to_the_end_and_makes_the_file() {
        let dir = Dir::new("append");
        let path = dir.0.join("log");
        let log = value("set", Some(&path));
        let files = Files::open([("log", ParamKind::PathAppend, &log)]).unwrap();
        files.append("log", 0, b"one\n").unwrap();
        std::fs::write(&path, b"").unwrap();
        files.append("log", 0, b"two\n").unwrap();
        files.append("log", 0, b"").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        assert_eq!(files.size("log", 0), Err(Errno::Einval));
    }

    #[test]
    fn a_watch_tells_what_is_there_now() {
        let dir = Dir::new("watch");
        let path = dir.0.join("flag");
        let (flag, truth) = (value("watch", Some(&path)), value("true", None));
        let files = Files::open([
            ("one", ParamKind::Watch, &flag),
            ("two", ParamKind::BoolOrWatch, &flag),
            ("three", ParamKind::BoolOrWatch, &truth),
        ])
        .unwrap();
        assert_eq!(
            (files.holds("one", 0), files.holds("two", 0), files.holds("three", 0)),
            (Ok(false), Ok(false), Ok(true))
        );
        std::fs::write(&path, b"").unwrap();
        assert_eq!((files.holds("one", 0), files.holds("two", 0)), (Ok(true), Ok(true)));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(files.holds("one", 0), Ok(false));
    }

    #[test]
    fn what_is_at_a_path_now_is_read_and_nothing_else_than_a_regular_file() {
        let dir = Dir::new("now");
        let path = dir.0.join("rate");
        let value = value("set", Some(&path));
        let files = Files::open([("rate", ParamKind::PathNow, &value)]).unwrap();
        assert_eq!((files.read("rate", 0, 0, 10), files.size("rate", 0)), (Err(Errno::Enoent), Err(Errno::Enoent)));
        for text in ["1M", "20M"] {
            std::fs::write(dir.0.join("new"), text).unwrap();
            std::fs::rename(dir.0.join("new"), &path).unwrap();
            assert_eq!(files.read("rate", 0, 0, 10).unwrap(), text.as_bytes());
            assert_eq!(files.size("rate", 0), Ok(text.len() as u64));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(files.read("rate", 0, 0, 10), Err(Errno::Einval));
        assert_eq!(files.holds("rate", 0), Err(Errno::Einval));
    }

    #[test]
    fn a_relative_path_to_watch_is_made_absolute() {
        let relative = value("set", Some(Path::new("some/flag")));
        let files = Files::open([("flag", ParamKind::Watch, &relative)]).unwrap();
        let Named::Watch(path) = files.get("flag", 0).unwrap() else { panic!() };
        assert_eq!(*path, std::env::current_dir().unwrap().join("some/flag"));
    }

    #[test]
    fn a_pipe_is_read_whole() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"from a command").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader)));
        let pipe = value("set", Some(&path));
        let files = Files::open([("list", ParamKind::PathRead, &pipe)]).unwrap();
        assert_eq!(files.size("list", 0), Ok(14));
        assert_eq!(files.read("list", 0, 5, 1), Ok(b"a".to_vec()));
        assert_eq!(files.read("list", 0, 5, 1), Ok(b"a".to_vec()));
        assert_eq!(files.read("list", 0, 99, 1), Ok(vec![]));
    }
}
