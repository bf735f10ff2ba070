//! Scripts: the steps of a test as text, one a line.
//!
//! ```text
//! # Lines that begin with # are comments.
//! transforms bijective
//! compare instances
//! disk writable seed=7
//! 1 pwrite 4096 512 fill=9 fua
//! & 2 pread 100 20
//! 1 reconnect
//! restart
//! instances
//! fault pwrite EIO
//! fault pread delay=20
//! fault extents short
//! ```
//!
//! `compare instances` runs the operations twice ([`super::instances`]) instead of comparing them
//! with the model.
//!
//! A line of an operation begins with the number of its connection. An `&` before it lets the
//! operation begin together with the one of the line before.

use std::fmt::Write as _;

use clap::ValueEnum as _;
use rbdkit_plugin_api::{Errno, Flags, MAX_REQUEST};

use super::disk::Access;
use super::promise::Promise;
use super::steps::{Below, CONNECTIONS, Fault, Request, Step};

/// The most steps of a script.
const MAX_STEPS: usize = 1_000_000;

/// The longest delay of the disk below, in milliseconds.
const MAX_DELAY: u16 = 1000;

/// What the answers are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A model of the export.
    Model,
    /// The same operations with a fresh instance for each call.
    FreshInstances,
}

/// A test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub promise: Promise,
    pub reference: Reference,
    pub access: Access,
    /// The content of the disk below follows from it.
    pub disk_seed: u64,
    pub steps: Vec<Step>,
}

/// The errors that the disk below can give.
pub const ERRORS: [Errno; 4] = [Errno::Eio, Errno::Enospc, Errno::Etimedout, Errno::Enomem];

impl Script {
    /// The text of the script.
    pub fn text(&self) -> String {
        let access = match self.access {
            Access::Writable => "writable",
            Access::ReadOnly => "read-only",
        };
        let compare = match self.reference {
            Reference::Model => "",
            Reference::FreshInstances => "compare instances\n",
        };
        let mut text = format!("transforms {}\n{compare}disk {access} seed={}\n", self.promise.name(), self.disk_seed);
        for step in &self.steps {
            text.push_str(&line(step));
            text.push('\n');
        }
        text
    }

    /// Reads a script.
    ///
    /// # Errors
    /// The first line that is wrong, with its number.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut script = Script {
            promise: Promise::Bijective,
            reference: Reference::Model,
            access: Access::Writable,
            disk_seed: 1,
            steps: Vec::new(),
        };
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match words[..] {
                [] => Ok(()),
                [first, ..] if first.starts_with('#') => Ok(()),
                ["transforms", name] => {
                    Promise::from_str(name, false).map(|promise| script.promise = promise).map_err(|_| name.to_string())
                }
                ["compare", "instances"] => {
                    script.reference = Reference::FreshInstances;
                    Ok(())
                }
                ["disk", access, seed] => disk(access, seed).map(|(access, seed)| {
                    script.access = access;
                    script.disk_seed = seed;
                }),
                _ if script.steps.len() >= MAX_STEPS => return Err(format!("it has more than {MAX_STEPS} steps")),
                _ => step(&words).map(|step| script.steps.push(step)),
            };
            parsed.map_err(|wrong| format!("line {number}: '{}' is not understood: {wrong}", line.trim()))?;
        }
        Ok(script)
    }
}

fn line(step: &Step) -> String {
    match step {
        Step::Reconnect(connection) => format!("{connection} reconnect"),
        Step::Restart => "restart".to_string(),
        Step::Instances => "instances".to_string(),
        Step::Fault(below, fault) => {
            let what = match fault {
                Fault::Error(errno) => errno.name().to_string(),
                Fault::Delay(milliseconds) => format!("delay={milliseconds}"),
                Fault::Short => "short".to_string(),
            };
            format!("fault {} {what}", below.name())
        }
        Step::Operation { connection, joins, operation } => {
            let joins = if *joins { "& " } else { "" };
            let mut line = format!("{joins}{connection} {}", operation.name());
            if let Some((offset, length)) = operation.range() {
                let _ = write!(line, " {offset} {length}");
            }
            if let Request::Pwrite { fill, .. } = operation {
                let _ = write!(line, " fill={fill}");
            }
            if let Request::Pwrite { flags, .. } | Request::Zero { flags, .. } = operation {
                for (set, word) in [(flags.fua, " fua"), (flags.may_trim, " may-trim"), (flags.fast_zero, " fast")] {
                    line.push_str(if set { word } else { "" });
                }
            }
            line
        }
    }
}

fn disk(access: &str, seed: &str) -> Result<(Access, u64), String> {
    let access = match access {
        "writable" => Access::Writable,
        "read-only" => Access::ReadOnly,
        other => return Err(format!("{other} is neither writable nor read-only")),
    };
    Ok((access, number(seed.strip_prefix("seed=").ok_or("seed=N is missing")?)?))
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is not a number that fits here"))
}

fn step(words: &[&str]) -> Result<Step, String> {
    let (joins, words) = match words {
        ["&", rest @ ..] => (true, rest),
        all => (false, all),
    };
    match words {
        ["restart"] if !joins => Ok(Step::Restart),
        ["instances"] if !joins => Ok(Step::Instances),
        ["fault", below, fault] if !joins => {
            let below = Below::ALL.iter().find(|(_, name)| name == below).map(|(kind, _)| *kind);
            Ok(Step::Fault(below.ok_or("the disk below has no such operation")?, parse_fault(fault)?))
        }
        [connection, rest @ ..] => {
            let connection = number::<u8>(connection)?;
            if !(1..=CONNECTIONS).contains(&connection) {
                return Err(format!("connections are 1 to {CONNECTIONS}"));
            }
            match rest {
                ["reconnect"] if !joins => Ok(Step::Reconnect(connection)),
                _ => Ok(Step::Operation { connection, joins, operation: operation(rest)? }),
            }
        }
        [] => Err("nothing follows".to_string()),
    }
}

fn parse_fault(word: &str) -> Result<Fault, String> {
    if word == "short" {
        return Ok(Fault::Short);
    }
    if let Some(milliseconds) = word.strip_prefix("delay=") {
        return Ok(Fault::Delay(number::<u16>(milliseconds)?.min(MAX_DELAY)));
    }
    let errno = ERRORS.into_iter().find(|errno| errno.name() == word);
    errno.map(Fault::Error).ok_or_else(|| "a fault is an error such as EIO, delay=MILLISECONDS or short".to_string())
}

fn operation(words: &[&str]) -> Result<Request, String> {
    let (name, range, rest) = match words {
        ["flush"] => return Ok(Request::Flush),
        [name, offset, length, rest @ ..] => (*name, (number::<u64>(offset)?, number::<u64>(length)?), rest),
        _ => return Err("an operation is NAME OFFSET LENGTH".to_string()),
    };
    let (offset, length) = range;
    if length == 0 || offset.checked_add(length).is_none() {
        return Err("the range is empty or too large".to_string());
    }
    let data = || {
        u32::try_from(length).ok().filter(|length| *length <= MAX_REQUEST).ok_or("a request has at most 64 MiB of data")
    };
    let (mut flags, mut fill) = (Flags::NONE, 1);
    for word in rest {
        match (name, *word) {
            ("pwrite" | "zero", "fua") => flags.fua = true,
            ("zero", "may-trim") => flags.may_trim = true,
            ("zero", "fast") => flags.fast_zero = true,
            ("pwrite", word) if word.starts_with("fill=") => fill = number(&word["fill=".len()..])?,
            _ => return Err(format!("{name} does not take {word}")),
        }
    }
    Ok(match name {
        "pread" => Request::Pread { offset, length: data()? },
        "pwrite" => Request::Pwrite { offset, length: data()?, fill, flags },
        "zero" => Request::Zero { offset, length, flags },
        "trim" => Request::Trim { offset, length },
        "cache" => Request::Cache { offset, length },
        "extents" => Request::Extents { offset, length },
        _ => return Err(format!("there is no operation {name}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "transforms identity\ndisk read-only seed=7\n1 pwrite 4096 512 fill=9 fua\n& 2 pread 100 20\n\
                        1 zero 0 5 may-trim fast\n3 flush\n4 trim 1 2\n1 extents 0 9\n1 cache 0 9\n1 reconnect\n\
                        restart\ninstances\nfault pwrite EIO\nfault pread delay=20\nfault extents short\n";

    #[test]
    fn a_script_is_read_as_it_was_written() {
        let script = Script::parse(&format!("# a comment\n\n{TEXT}")).unwrap();
        assert_eq!(script.steps.len(), 13);
        assert_eq!(script.text(), TEXT);
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (line, wrong) in [
            ("1 pread 0", "an operation is NAME OFFSET LENGTH"),
            ("9 pread 0 1", "connections are 1 to 4"),
            ("x pread 0 1", "x is not a number that fits here"),
            ("1 pread 18446744073709551615 1", "the range is empty or too large"),
            ("1 pread 0 67108865", "a request has at most 64 MiB of data"),
            ("1 pread 0 1 fua", "pread does not take fua"),
            ("1 sync 0 1", "there is no operation sync"),
            ("& restart", "restart is not a number that fits here"),
            ("fault pread EBADF", "a fault is an error such as EIO, delay=MILLISECONDS or short"),
            ("disk odd seed=1", "odd is neither writable nor read-only"),
        ] {
            let expected = format!("line 2: '{line}' is not understood: {wrong}");
            assert_eq!(Script::parse(&format!("\n{line}\n")).unwrap_err(), expected);
        }
    }
}
