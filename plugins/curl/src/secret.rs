//! Passwords and cookies: on the command line, in a file, from a descriptor, or asked for on the terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_plugin_api::{ConfigError, Param};

/// The longest secret that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// The value of `password=` and its like: `VALUE`, `+FILENAME`, `-FD` or `-`.
///
/// # Errors
/// One line that names the parameter and never the secret.
pub(crate) fn read(param: Param<'_>) -> Result<String, ConfigError> {
    let wrong = |what: String| ConfigError::new(format!("{}: {what}", param.key));
    let Some(text) = param.value.to_str() else { return Err(wrong("is not UTF-8 text".into())) };
    if text == "-" {
        return ask(param.key).map_err(wrong);
    }
    if let Some(name) = text.strip_prefix('+') {
        let file = File::open(name).map_err(|error| wrong(format!("cannot open {name}: {error}")))?;
        return first_line(file).map_err(|error| wrong(format!("cannot read {name}: {error}")));
    }
    let Some(number) = text.strip_prefix('-') else { return Ok(text.to_string()) };
    let number: u32 =
        number.parse().map_err(|_| wrong("after '-' there has to be the number of a descriptor".to_string()))?;
    if number <= 2 {
        return Err(wrong("the descriptor must not be standard input, output or error".into()));
    }
    // What the descriptor stands for, without taking it over.
    File::open(Path::new("/proc/self/fd").join(number.to_string()))
        .and_then(first_line)
        .map_err(|error| wrong(format!("cannot read descriptor {number}: {error}")))
}

fn first_line(from: impl Read) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(from.take(LONGEST)).read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(line)
}

/// Asks on the terminal, without showing what is typed.
fn ask(key: &str) -> Result<String, String> {
    if !std::io::stdin().is_terminal() {
        return Err("stdin is not a tty, cannot read password interactively".into());
    }
    let echo = |how: &str| Command::new("stty").arg(how).stdin(Stdio::inherit()).status();
    let failed = |error: std::io::Error| format!("cannot ask for it: {error}");
    let mut out = std::io::stderr();
    write!(out, "{key}: ").and_then(|()| out.flush()).map_err(failed)?;
    let silent = echo("-echo").is_ok_and(|status| status.success());
    let answer = first_line(std::io::stdin().lock());
    if silent {
        let _ = echo("echo");
        let _ = writeln!(out);
    }
    answer.map_err(failed)
}
