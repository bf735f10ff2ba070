//! Errors of requests (an errno, and a sentence for the log) and of configuration (one line for the
//! user).

use std::fmt;

/// The error numbers that a layer may answer with. The server maps them to those of the NBD
/// protocol.
///
/// The set is the union of what the protocol carries and of what filters distinguish (a retry
/// filter treats [`Errno::Etimedout`] differently from [`Errno::Enotsup`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Operation not permitted.
    Eperm,
    /// No such export, file or object.
    Enoent,
    /// Input/output error. A fault of a guest becomes this error too.
    Eio,
    /// Out of memory.
    Enomem,
    /// An invalid request: out of range, not aligned, or with an unknown flag.
    Einval,
    /// No space left.
    Enospc,
    /// Write to a read-only export.
    Erofs,
    /// Not supported: for zero with `fast_zero`, "not faster than writing".
    Enotsup,
    /// A length or count that is too large to be represented.
    Eoverflow,
    /// The server or the connection is shutting down.
    Eshutdown,
    /// A deadline passed.
    Etimedout,
    /// Waiting would never end (a deadlock).
    Edeadlk,
    /// Not available here or now: no next layer, wrong phase.
    Enxio,
}

impl Errno {
    /// Maps an operating system's error number. Unknown numbers are [`Errno::Eio`].
    pub fn from_raw(raw: i32) -> Errno {
        match raw {
            libc::EPERM | libc::EACCES => Errno::Eperm,
            libc::ENOENT => Errno::Enoent,
            libc::ENOMEM => Errno::Enomem,
            libc::EINVAL => Errno::Einval,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Errno::Enospc,
            libc::EROFS => Errno::Erofs,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => Errno::Enotsup,
            libc::EOVERFLOW => Errno::Eoverflow,
            libc::ESHUTDOWN => Errno::Eshutdown,
            libc::ETIMEDOUT => Errno::Etimedout,
            libc::EDEADLK => Errno::Edeadlk,
            libc::ENXIO | libc::ENODEV => Errno::Enxio,
            _ => Errno::Eio,
        }
    }

    /// The C name, for example `"ENOSPC"`.
    pub fn name(self) -> &'static str {
        match self {
            Errno::Eperm => "EPERM",
            Errno::Enoent => "ENOENT",
            Errno::Eio => "EIO",
            Errno::Enomem => "ENOMEM",
            Errno::Einval => "EINVAL",
            Errno::Enospc => "ENOSPC",
            Errno::Erofs => "EROFS",
            Errno::Enotsup => "ENOTSUP",
            Errno::Eoverflow => "EOVERFLOW",
            Errno::Eshutdown => "ESHUTDOWN",
            Errno::Etimedout => "ETIMEDOUT",
            Errno::Edeadlk => "EDEADLK",
            Errno::Enxio => "ENXIO",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a request failed: an [`Errno`] for the client, and a sentence for the log.
#[derive(Debug)]
pub struct Error {
    errno: Errno,
    context: Option<Box<str>>,
}

/// The result of a request or of opening an export.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence for the log. The client sees the errno (and, on a structured reply,
    /// the sentence).
    pub fn new(errno: Errno, context: impl Into<String>) -> Error {
        Error { errno, context: Some(context.into().into_boxed_str()) }
    }

    /// The error number for the client.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The sentence for the log, if there is one.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error { errno, context: None }
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        let errno = match e.raw_os_error() {
            Some(raw) => Errno::from_raw(raw),
            None => Errno::Eio,
        };
        Error::new(errno, e.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.context {
            Some(context) => write!(f, "{context} ({})", self.errno),
            None => f.write_str(self.errno.name()),
        }
    }
}

impl std::error::Error for Error {}

/// A mistake in the configuration: one line that names the parameter and says what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    /// `message` is one line without a trailing full stop or newline.
    pub fn new(message: impl Into<String>) -> ConfigError {
        ConfigError(message.into())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}
