//! What the exit status and the error output of a program mean.

use std::os::unix::process::ExitStatusExt;
use std::{fmt, io};

use rbdkit_plugin_api::{ConfigError, Ending, Errno, Error};

use crate::process::{Ended, Output, Problem};

/// The answer of a method that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit status 0; or 4 or 7, which also ask the server for something.
    Done,
    /// Exit status 2: there is no such method.
    Missing,
    /// Exit status 3.
    False,
}

/// A method that failed: the error number for the client, and the line for the log or the user.
#[derive(Debug)]
pub struct Failure {
    errno: Errno,
    message: String,
}

impl Failure {
    /// With a message that names the script.
    pub fn new(errno: Errno, message: impl Into<String>) -> Failure {
        Failure { errno, message: message.into() }
    }

    pub(crate) fn io(label: &str, error: &io::Error) -> Failure {
        let errno = error.raw_os_error().map_or(Errno::Eio, Errno::from_raw);
        Failure::new(errno, format!("{label}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::new(failure.errno, failure.message)
    }
}

impl From<Failure> for ConfigError {
    fn from(failure: Failure) -> ConfigError {
        ConfigError::new(failure.message)
    }
}

/// What an exit status asks for besides its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The end of the server.
    Shutdown,
    /// The end of the client's connection.
    Disconnect(Ending),
}

/// What this exit status asks for besides its answer.
pub(crate) fn wish(status: Option<i32>) -> Option<Wish> {
    match status {
        Some(4 | 5) => Some(Wish::Shutdown),
        Some(6) => Some(Wish::Disconnect(Ending::AtOnce)),
        Some(7 | 8) => Some(Wish::Disconnect(Ending::AfterAnswers)),
        _ => None,
    }
}

/// The failure of a method whose caller gave up, or that a stop of the server ended.
pub(crate) fn given_up(label: &str, method: &str) -> Failure {
    Failure::new(Errno::Eshutdown, format!("{label}: the {method} method was killed: nobody waits for it any more"))
}

/// The meaning of an exit status.
pub(crate) fn judge(label: &str, method: &str, ended: &Ended, output: &Output<'_>) -> Result<Answer, Failure> {
    let what = match (ended.problem, output) {
        (None, _) => None,
        (Some(Problem::Abandoned), _) => return Err(given_up(label, method)),
        (Some(Problem::OutputStaysOpen), _) => {
            Some(format!("the {method} method has ended, but a program that it started keeps its standard output open"))
        }
        (Some(Problem::TooMuch), Output::Exact { bytes, received }) => Some(too_much(bytes.len() as u64, *received)),
        (Some(Problem::TooMuch), Output::Counted { expected, received }) => Some(too_much(*expected, *received)),
        (Some(Problem::TooMuch), _) => Some(format!("the {method} method printed too much")),
    };
    if let Some(what) = what {
        return Err(Failure::new(Errno::Eio, format!("{label}: {what}")));
    }
    match ended.status.code() {
        Some(0 | 4 | 7) => Ok(Answer::Done),
        Some(2) => Ok(Answer::Missing),
        Some(3) => Ok(Answer::False),
        Some(5 | 6 | 8) => Err(said(label, method, &ended.errors, Errno::Eshutdown)),
        Some(_) => Err(said(label, method, &ended.errors, Errno::Eio)),
        None => {
            let signal = ended.status.signal().unwrap_or(0);
            Err(Failure::new(Errno::Eio, format!("{label}: script terminated by signal {signal}")))
        }
    }
}

fn too_much(expected: u64, received: u64) -> String {
    format!(
        "incorrect amount of data read: expecting {expected} bytes but received more than {received} bytes from the \
            script"
    )
}

/// The highest exit status with a meaning of its own.
pub(crate) const MAX_KNOWN_STATUS: i32 = 8;

/// The errno names that a script may begin its error message with.
const ERRNO_NAMES: [(&str, Errno); 13] = [
    ("EPERM", Errno::Eperm),
    ("ENOENT", Errno::Enoent),
    ("EIO", Errno::Eio),
    ("ENOMEM", Errno::Enomem),
    ("EINVAL", Errno::Einval),
    ("ENOSPC", Errno::Enospc),
    ("EOVERFLOW", Errno::Eoverflow),
    ("ESHUTDOWN", Errno::Eshutdown),
    ("ENOTSUP", Errno::Enotsup),
    ("EOPNOTSUPP", Errno::Enotsup),
    ("EROFS", Errno::Erofs),
    ("EDQUOT", Errno::Enospc),
    ("EFBIG", Errno::Enospc),
];

/// Reads `ERRNO message` from a failed script's standard error. Without a name it is `unnamed`.
fn said(label: &str, method: &str, errors: &[u8], unnamed: Errno) -> Failure {
    let all = String::from_utf8_lossy(errors);
    let all = all.trim_end_matches('\n');
    if all.is_empty() {
        let what = "script exited with error, but did not print an error message on stderr";
        return Failure::new(unnamed, format!("{label}: {what}"));
    }
    let word_end = all.find(|c: char| c.is_ascii_whitespace()).unwrap_or(all.len());
    let (word, rest) = all.split_at(word_end);
    let named = ERRNO_NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    let (errno, message) = match named {
        Some((_, errno)) => (*errno, rest.trim_start_matches(|c: char| c.is_ascii_whitespace())),
        None => (unnamed, all),
    };
    if all.contains('\n') {
        tracing::debug!("{label}: {all}");
    }
    match message.lines().next().unwrap_or("") {
        "" => Failure::new(errno, format!("{label}: the {method} method failed")),
        first => Failure::new(errno, format!("{label}: {first}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(errors: &str) -> (Errno, String) {
        let failure = said("x", "pread", errors.as_bytes(), Errno::Eio);
        (failure.errno, failure.message)
    }

    #[test]
    fn an_errno_name_at_the_beginning_is_taken_off_the_message() {
        assert_eq!(parsed("ENOSPC Out of space\n"), (Errno::Enospc, "x: Out of space".into()));
        assert_eq!(parsed("enospc   hello\nsecond line\n"), (Errno::Enospc, "x: hello".into()));
        assert_eq!(parsed("EOPNOTSUPP"), (Errno::Enotsup, "x: the pread method failed".into()));
        assert_eq!(parsed("EDQUOT\tquota"), (Errno::Enospc, "x: quota".into()));
        assert_eq!(parsed("ENOENT no such export"), (Errno::Enoent, "x: no such export".into()));
    }

    #[test]
    fn anything_else_is_eio_and_the_whole_first_line() {
        assert_eq!(parsed("ENOSPCX hello"), (Errno::Eio, "x: ENOSPCX hello".into()));
        assert_eq!(parsed("  ENOSPC hello"), (Errno::Eio, "x:   ENOSPC hello".into()));
        assert_eq!(parsed("ENODEV no such"), (Errno::Eio, "x: ENODEV no such".into()));
        let silent = "x: script exited with error, but did not print an error message on stderr";
        assert_eq!(parsed("\n\n"), (Errno::Eio, silent.into()));
    }
}
