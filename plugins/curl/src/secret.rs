//! Reads passwords and cookies: from the command line, a file, a descriptor, or the terminal.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{ConfigError, Param, stdin};

/// The longest secret that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// Why a secret cannot be read. The message names neither the parameter nor the secret.
#[derive(Debug, thiserror::Error)]
enum SecretError {
    #[error("is not UTF-8 text")]
    NotUtf8,
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
pub(crate) fn read(param: Param<'_>) -> Result<String, ConfigError> {
    read_value(param).map_err(|error| ConfigError::new(format!("{}: {error}", param.key)))
}

fn read_value(param: Param<'_>) -> Result<String, SecretError> {
    let text = param.value.to_str().ok_or(SecretError::NotUtf8)?;
    if text == "-" {
        return ask(param.key);
    }
    if let Some(name) = text.strip_prefix('+') {
        let file = stdin::open(name).map_err(|source| SecretError::Open { name: name.to_owned(), source })?;
        return first_line(file).map_err(|source| SecretError::Read { name: name.to_owned(), source });
    }
    let Some(number) = text.strip_prefix('-') else { return Ok(text.to_string()) };
    let number: u32 = number.parse().map_err(|_| SecretError::NotADescriptor)?;
    if number <= 2 {
        return Err(SecretError::StandardDescriptor);
    }
    // Opens what the descriptor refers to again, so that the inherited descriptor stays untouched.
    File::open(Path::new("/proc/self/fd").join(number.to_string()))
        .and_then(first_line)
        .map_err(|source| SecretError::Read { name: format!("descriptor {number}"), source })
}

fn first_line(from: impl Read) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(from.take(LONGEST)).read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(line)
}

/// Asks on the terminal, without showing what is typed.
fn ask(key: &str) -> Result<String, SecretError> {
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
    answer.map_err(SecretError::Ask)
}
