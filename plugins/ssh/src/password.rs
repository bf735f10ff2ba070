//! `password=`: the password itself, `-` (ask), `+FILE`, or `-FD`.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{ConfigError, Param, stdin};

/// The longest password, in bytes: several have to fit a pipe.
const MAX: u64 = 4096;

/// The password that a parameter stands for.
///
/// # Errors
/// One line that does not show a password.
pub(crate) fn read(param: Param<'_>) -> Result<String, ConfigError> {
    let wrong = |what: String| ConfigError::new(format!("password: {what}"));
    let text = param.value.to_str().ok_or_else(|| wrong("is not UTF-8 text".into()))?;
    let password = match text.as_bytes() {
        b"-" => ask().map_err(|error| wrong(format!("cannot ask for it: {error}")))?,
        [b'+', file @ ..] if !file.is_empty() => {
            first_line(Path::new(&text[1..])).map_err(|error| wrong(format!("{}: {error}", &text[1..])))?
        }
        [b'-', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let number: u32 = text[1..].parse().map_err(|_| wrong(format!("there is no descriptor {}", &text[1..])))?;
            if number <= 2 {
                return Err(wrong(
                    "the descriptor has to be greater than 2: 0 to 2 are standard input, output and error".into(),
                ));
            }
            // Opens what the inherited descriptor refers to again.
            let file = format!("/proc/self/fd/{number}");
            first_line(Path::new(&file)).map_err(|error| wrong(format!("descriptor {number}: {error}")))?
        }
        _ => text.to_owned(),
    };
    match password.contains(['\n', '\0']) || password.len() as u64 >= MAX {
        true => Err(wrong("is too long, or has a character that cannot be typed".into())),
        false => Ok(password),
    }
}

fn first_line(path: &Path) -> io::Result<String> {
    line(BufReader::new(stdin::open(path)?.take(MAX)))
}

fn line(mut from: impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if line.ends_with('\n') {
        line.pop();
    }
    Ok(line)
}

fn ask() -> io::Result<String> {
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
