//! The parameters: what to serve, and how files are accessed.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::{AccessRights, ConfigError, Param, units};
use rustix::fs::Advice;

/// The words that `cache=` takes.
pub(crate) const CACHE_MODES: &[&str] = &["default", "none"];

/// The words that `fadvise=` takes.
pub(crate) const ACCESS_PATTERNS: &[&str] = &["normal", "random", "sequential"];

/// What to serve, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `file=`, without symbolic links.
    File(PathBuf),
    /// `dir=`, without symbolic links.
    Dir(PathBuf),
    /// `fd=`.
    Fd(i32),
    /// `dirfd=`.
    DirFd(i32),
}

impl Place {
    fn key(&self) -> &'static str {
        match self {
            Place::File(_) => "file",
            Place::Dir(_) => "dir",
            Place::Fd(_) => "fd",
            Place::DirFd(_) => "dirfd",
        }
    }
}

/// How every file is accessed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// `fadvise=`: the advice for the kernel when a file is opened.
    pub(crate) advice: Advice,
    /// `reduce-memory-pressure`: keep what was read and written out of the page cache.
    pub(crate) evict: bool,
}

#[derive(Default)]
pub(crate) struct Config {
    place: Option<Place>,
    access: Access,
}

impl Default for Access {
    fn default() -> Access {
        Access { advice: Advice::Normal, evict: false }
    }
}

impl Config {
    pub(crate) fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "file" => self.set_place(Place::File(real_path(param)?)),
            "dir" | "directory" => self.set_place(Place::Dir(real_path(param)?)),
            "fd" => self.set_place(Place::Fd(descriptor(param)?)),
            "dirfd" => self.set_place(Place::DirFd(descriptor(param)?)),
            "cache" => {
                self.access.evict = match param.text()? {
                    "default" => false,
                    "none" => true,
                    _ => return Err(param.not_one_of(CACHE_MODES)),
                };
                Ok(())
            }
            "reduce-memory-pressure" => {
                self.access.evict = param.bool()?;
                Ok(())
            }
            "fadvise" => {
                self.access.advice = match param.text()? {
                    "normal" => Advice::Normal,
                    "random" => Advice::Random,
                    "sequential" => Advice::Sequential,
                    _ => return Err(param.not_one_of(ACCESS_PATTERNS)),
                };
                Ok(())
            }
            "rdelay" | "wdelay" => {
                Err(param.error("is a parameter of the delay filter: add --filter=delay on the command line"))
            }
            _ => Err(param.unknown("file")),
        }
    }

    /// Only one source can be served, so a second one is a mistake.
    fn set_place(&mut self, place: Place) -> Result<(), ConfigError> {
        let key = place.key();
        match self.place.replace(place).map(|before| before.key()) {
            None => Ok(()),
            Some(before) if before == key => Err(ConfigError::new(format!("file: {key}= can be given only once"))),
            Some(before) => {
                Err(ConfigError::new(format!("file: {before}= and {key}= cannot be used at the same time")))
            }
        }
    }

    pub(crate) fn place(&self) -> Result<&Place, ConfigError> {
        self.place.as_ref().ok_or_else(|| {
            ConfigError::new(
                "file: what to serve has to be given: [file=]FILENAME, dir=DIRECTORY, fd=NUMBER or dirfd=NUMBER",
            )
        })
    }

    /// Each connection opens the file again, and reads from /sys whether a block device is
    /// rotational.
    pub(crate) fn access_rights(&self) -> AccessRights {
        let place = match &self.place {
            Some(Place::File(path) | Place::Dir(path)) => path.clone(),
            Some(Place::Fd(fd) | Place::DirFd(fd)) => PathBuf::from(format!("/proc/self/fd/{fd}")),
            None => return AccessRights::default(),
        };
        let devices = ["/sys/dev/block", "/sys/devices"].map(PathBuf::from);
        AccessRights { read: devices.into(), write: vec![place], ..AccessRights::default() }
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }
}

/// Makes a name absolute, because the server changes its directory when it goes to the background.
fn real_path(param: Param<'_>) -> Result<PathBuf, ConfigError> {
    let path: &Path = param.path();
    path.canonicalize().map_err(|error| param.error(error))
}

fn descriptor(param: Param<'_>) -> Result<i32, ConfigError> {
    match units::parse_whole(param.text()?, i32::MAX as u64) {
        Ok(number) if number > 2 => Ok(number as i32),
        Ok(_) => Err(param.error("has to be greater than 2: 0 to 2 are standard input, output and error")),
        Err(_) => Err(param.error("is not the number of a descriptor")),
    }
}
