//! Passwords: the value of a parameter, a file, a descriptor, or what the user types.
//!
//! Plugins (`password=` of curl and ssh) and the host of filters (parameters of the kind `secret`)
//! read them here, in nbdkit's forms. They are read while the server starts, before it is confined.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::locked::LockedBytes;
use crate::stdin;
use crate::text::plain;

/// The longest password that is read, in bytes. It is more than any program takes.
const LONGEST: usize = 64 << 10;

/// Bytes that nothing prints, in memory that is locked ([`locked`](crate::locked)). They are
/// overwritten when they are dropped.
#[derive(Clone)]
pub struct Secret(LockedBytes);

impl Secret {
    /// Takes over bytes.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(LockedBytes::copy(&Zeroizing::new(bytes)))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a password cannot be read. The text continues a sentence that begins with the parameter's
/// name. It shows nothing of the value, because a password may begin with `+` or `-` too.
#[derive(Debug)]
#[non_exhaustive]
pub enum PasswordError {
    /// `+FILE` cannot be read.
    File(io::Error),
    /// `-FD` cannot be read.
    Descriptor(io::Error),
    /// What follows `-` is not a number.
    NotADescriptor,
    /// The descriptor is 0, 1 or 2.
    StandardDescriptor,
    /// `-`, but nobody can be asked.
    NotATerminal,
    /// `-`, and asking failed.
    Ask(io::Error),
    /// It is longer than 64 KiB.
    TooLong,
}

impl fmt::Display for PasswordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PasswordError::File(error) => write!(f, "the file after '+' cannot be read: {}", plain(error)),
            PasswordError::Descriptor(error) => {
                write!(f, "the descriptor after '-' cannot be read: {}", plain(error))
            }
            PasswordError::NotADescriptor => f.write_str("after '-' there has to be the number of a descriptor"),
            PasswordError::StandardDescriptor => {
                f.write_str("the descriptor has to be greater than 2: 0 to 2 are standard input, output and error")
            }
            PasswordError::NotATerminal => {
                f.write_str("cannot ask for it, because standard input is not a terminal (use +FILE or -FD)")
            }
            PasswordError::Ask(error) => write!(f, "cannot ask for it: {}", plain(error)),
            PasswordError::TooLong => write!(f, "is longer than {} KiB", LONGEST >> 10),
        }
    }
}

impl std::error::Error for PasswordError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PasswordError::File(error) | PasswordError::Descriptor(error) | PasswordError::Ask(error) => Some(error),
            _ => None,
        }
    }
}

/// Reads the password that `value` stands for: the password itself, `+FILE` (the first line of the
/// file), `-FD` (the first line from an inherited descriptor), or `-`, which asks on the terminal.
/// `key` is the parameter's name, for the question. A line feed at the end is not part of it.
///
/// # Errors
/// The password cannot be read.
pub fn read(key: &str, value: &OsStr) -> Result<Secret, PasswordError> {
    let value = value.as_bytes();
    let bytes = match value {
        b"-" => ask(key)?,
        [b'+', file @ ..] => first_line(stdin::open(OsStr::from_bytes(file))).map_err(PasswordError::File)?,
        [b'-', number @ ..] => {
            let number = std::str::from_utf8(number).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number: u32 = number.and_then(|text| text.parse().ok()).ok_or(PasswordError::NotADescriptor)?;
            if number <= 2 {
                return Err(PasswordError::StandardDescriptor);
            }
            // Opens what the inherited descriptor refers to again, so that it stays untouched.
            let opened = File::open(Path::new("/proc/self/fd").join(number.to_string()));
            first_line(opened).map_err(PasswordError::Descriptor)?
        }
        password => Zeroizing::new(password.to_vec()),
    };
    if bytes.len() > LONGEST { Err(PasswordError::TooLong) } else { Ok(Secret(LockedBytes::copy(&bytes))) }
}

/// The bytes before the first line feed, at most one more than [`LONGEST`].
fn first_line(from: io::Result<impl Read>) -> io::Result<Zeroizing<Vec<u8>>> {
    // As long as a line can get: a vector that grows would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    BufReader::with_capacity(1, from?).take(LONGEST as u64 + 1).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}

/// Asks on the terminal, without showing what is typed.
fn ask(key: &str) -> Result<Zeroizing<Vec<u8>>, PasswordError> {
    stdin::check().map_err(|error| PasswordError::Ask(io::Error::other(error)))?;
    if !io::stdin().is_terminal() {
        return Err(PasswordError::NotATerminal);
    }
    // stty is on every system, and saves a terminal library for one line.
    let echo = |how: &str| Command::new("stty").arg(how).stdin(Stdio::inherit()).status();
    let mut out = io::stderr();
    write!(out, "{key}: ").and_then(|()| out.flush()).map_err(PasswordError::Ask)?;
    let silent = echo("-echo").is_ok_and(|status| status.success());
    let answer = first_line(Ok(io::stdin().lock()));
    if silent {
        let _ = echo("echo");
        let _ = writeln!(out);
    }
    answer.map_err(PasswordError::Ask)
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::os::fd::AsRawFd;

    use super::*;

    fn text(value: impl AsRef<OsStr>) -> Result<Vec<u8>, String> {
        read("key", value.as_ref()).map(|secret| secret.bytes().to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_password_comes_from_the_value_a_file_or_a_descriptor() {
        let mut file = tempfile();
        file.write_all(b"h\xfcsch \xff\r\nanother line").unwrap();
        file.rewind().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(text("plain +-"), Ok(b"plain +-".to_vec()));
        assert_eq!(text(""), Ok(Vec::new()));
        assert_eq!(text(format!("+{path}")), Ok(b"h\xfcsch \xff\r".to_vec()));
        assert_eq!(text(format!("-{}", file.as_raw_fd())), Ok(b"h\xfcsch \xff\r".to_vec()));
    }

    #[test]
    fn a_password_that_cannot_be_read_is_not_shown() {
        let no_file = "No such file or directory";
        for (value, why) in [
            ("+/no/such/file".to_string(), format!("the file after '+' cannot be read: {no_file}")),
            ("+".into(), format!("the file after '+' cannot be read: {no_file}")),
            ("-99999".into(), format!("the descriptor after '-' cannot be read: {no_file}")),
            ("-hush".into(), "after '-' there has to be the number of a descriptor".into()),
            ("-+7".into(), "after '-' there has to be the number of a descriptor".into()),
            (
                "-2".into(),
                "the descriptor has to be greater than 2: 0 to 2 are standard input, output and error".into(),
            ),
            ("x".repeat(LONGEST + 1), "is longer than 64 KiB".into()),
            ("+/dev/zero".into(), "is longer than 64 KiB".into()),
        ] {
            assert_eq!(text(&value), Err(why), "{value:.20}");
        }
        assert_eq!(text("x".repeat(LONGEST)).map(|password| password.len()), Ok(LONGEST));
        assert_eq!(format!("{:?}", Secret::new(b"hush".to_vec())), "***");
    }

    /// A file without a name.
    fn tempfile() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        File::from(rustix::fs::memfd_create("password", flags).unwrap())
    }
}
