//! Secrets: passwords, cookies and header lines. They are bytes, and nothing prints them.
//!
//! Passwords and cookies come from the command line, a file, a descriptor, or the terminal.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{ConfigError, Param, stdin};

/// The longest secret that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// Bytes of one line that nothing may print. They contain no null byte, carriage return or line
/// feed, so they cannot begin another line in the head of a request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(CString);

impl Secret {
    /// The bytes, unless they are more than one line.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the name of the parameter.
    pub(crate) fn new(bytes: &[u8]) -> Result<Secret, OneLineError> {
        match bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            true => Err(OneLineError),
            false => CString::new(bytes).map(Secret).map_err(|_| OneLineError),
        }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Bytes that would end the line of the head that they become part of.
#[derive(Debug, thiserror::Error)]
#[error("contains a line break or a null byte: it has to be one line")]
pub(crate) struct OneLineError;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a secret cannot be read. The message names neither the parameter nor the secret.
#[derive(Debug, thiserror::Error)]
enum SecretError {
    #[error(transparent)]
    OneLine(#[from] OneLineError),
    #[error("cannot open {name}: {source}")]
    Open { name: String, source: io::Error },
    #[error("cannot read {name}: {source}")]
    Read { name: String, source: io::Error },
    #[error("after '-' there has to be the number of a descriptor")]
    NotADescriptor,
    #[error("the descriptor must not be standard input, output or error")]
    StandardDescriptor,
    #[error("stdin is not a tty, cannot read password interactively")]
    NotATerminal,
    #[error("cannot ask for it: {0}")]
    Ask(#[source] io::Error),
}

/// The value of `password=` and its like: `VALUE`, `+FILENAME`, `-FD` or `-`.
///
/// # Errors
/// One line that names the parameter and never the secret.
pub(crate) fn read(param: Param<'_>) -> Result<Secret, ConfigError> {
    read_value(param).map_err(|error| ConfigError::new(format!("{}: {error}", param.key)))
}

fn read_value(param: Param<'_>) -> Result<Secret, SecretError> {
    let value = param.value.as_bytes();
    if value == b"-" {
        return ask(param.key);
    }
    if let Some(name) = value.strip_prefix(b"+") {
        let name = Path::new(OsStr::from_bytes(name));
        let shown = || name.display().to_string();
        let file = stdin::open(name).map_err(|source| SecretError::Open { name: shown(), source })?;
        return Ok(Secret::new(&first_line(file).map_err(|source| SecretError::Read { name: shown(), source })?)?);
    }
    let Some(number) = value.strip_prefix(b"-") else { return Ok(Secret::new(value)?) };
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u32>().ok());
    let number = number.ok_or(SecretError::NotADescriptor)?;
    if number <= 2 {
        return Err(SecretError::StandardDescriptor);
    }
    // Opens what the descriptor refers to again, so that the inherited descriptor stays untouched.
    let line = File::open(Path::new("/proc/self/fd").join(number.to_string()))
        .and_then(first_line)
        .map_err(|source| SecretError::Read { name: format!("descriptor {number}"), source })?;
    Ok(Secret::new(&line)?)
}

fn first_line(from: impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(from.take(LONGEST)).read_until(b'\n', &mut line)?;
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(line)
}

/// Asks on the terminal, without showing what is typed.
fn ask(key: &str) -> Result<Secret, SecretError> {
    stdin::check().map_err(|error| SecretError::Ask(io::Error::other(error)))?;
    if !io::stdin().is_terminal() {
        return Err(SecretError::NotATerminal);
    }
    let echo = |how: &str| Command::new("stty").arg(how).stdin(Stdio::inherit()).status();
    let mut out = io::stderr();
    write!(out, "{key}: ").and_then(|()| out.flush()).map_err(SecretError::Ask)?;
    let silent = echo("-echo").is_ok_and(|status| status.success());
    let answer = first_line(io::stdin().lock());
    if silent {
        let _ = echo("echo");
        let _ = writeln!(out);
    }
    Ok(Secret::new(&answer.map_err(SecretError::Ask)?)?)
}
