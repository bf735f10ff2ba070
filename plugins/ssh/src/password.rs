//! `password=`: the password itself, `-` (ask), `+FILE`, or `-FD`.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{ConfigError, Param, stdin};

/// The longest password, in bytes: several have to fit a pipe.
const MAX: u64 = 4096;

/// A password. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(Vec<u8>);

impl Password {
    /// Any bytes but a newline and zero.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// The password that a parameter stands for.
///
/// # Errors
/// One line that shows nothing of the value: a password may begin with `+` or `-` too.
pub(crate) fn read(param: Param<'_>) -> Result<Password, ConfigError> {
    let wrong = |what: String| ConfigError::new(format!("password: {what}"));
    let password = match param.value.as_bytes() {
        b"-" => ask().map_err(|error| wrong(format!("cannot ask for it: {error}")))?,
        [b'+', file @ ..] if !file.is_empty() => first_line(Path::new(OsStr::from_bytes(file)))
            .map_err(|error| wrong(format!("the file after '+' cannot be read: {error}")))?,
        [b'-', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok());
            match number {
                Some(0..=2) => {
                    return Err(wrong(
                        "the descriptor has to be greater than 2: 0 to 2 are standard input, output and error".into(),
                    ));
                }
                // Opens what the inherited descriptor refers to again.
                Some(number) => first_line(Path::new(&format!("/proc/self/fd/{number}")))
                    .map_err(|error| wrong(format!("the descriptor after '-' cannot be read: {error}")))?,
                None => return Err(wrong("there is no descriptor of the number after '-'".into())),
            }
        }
        password => password.to_owned(),
    };
    match password.iter().any(|byte| matches!(byte, b'\n' | 0)) || password.len() as u64 >= MAX {
        true => Err(wrong("is too long, or has a character that cannot be typed".into())),
        false => Ok(Password(password)),
    }
}

fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    line(BufReader::new(stdin::open(path)?.take(MAX)))
}

/// The bytes up to the first newline.
fn line(mut from: impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}

fn ask() -> io::Result<Vec<u8>> {
    stdin::check().map_err(io::Error::other)?;
    let input = io::stdin();
    if !input.is_terminal() {
        return line(input.lock().take(MAX));
    }
    // stty is on every system, and saves a terminal library for one line.
    let echo = |how: &str| Command::new("stty").arg(how).stdin(Stdio::inherit()).status();
    eprint!("password: ");
    io::stderr().flush()?;
    echo("-echo")?;
    let password = line(input.lock().take(MAX));
    echo("echo")?;
    eprintln!();
    password
}
