//! Starts the plugin's process: the same program, with another argument.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};

use rbdkit_launcher::{Order, Start, Started, packet};
use rbdkit_plugin_api::own_program;

use crate::process::ARGUMENT;
use crate::setup::{Failure, Setup, Switches};
use crate::wire::kind;

/// The name of [`start_ready`] among the functions that a helper may call.
pub(crate) const NAME: &str = "foreign";

/// How a helper starts the process anew.
pub const START: (&str, Start) = (NAME, start_ready);

/// What the process needs, as words for a launcher: the file, the directory in which the program
/// was started, switches, the thread model, and then keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) file: OsString,
    pub(crate) directory: OsString,
    pub(crate) switches: Switches,
    /// The thread model that the server keeps to.
    pub(crate) thread_model: String,
    pub(crate) parameters: Vec<(OsString, OsString)>,
}

impl Words {
    pub(crate) fn to_vec(&self) -> Vec<OsString> {
        let verbose = if self.switches.verbose { "verbose" } else { "" };
        let threads = self.switches.threads.to_string();
        let fixed = [&self.file, &self.directory].map(Clone::clone);
        let flags = self.switches.debug_flags.iter().map(|(name, flag, value)| format!("{name}.{flag}={value} "));
        let flags = flags.collect::<String>();
        let fixed = fixed.into_iter().chain([verbose, &threads, &flags, &self.thread_model].map(OsString::from));
        let parameters = self.parameters.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
        fixed.chain(parameters).collect()
    }

    fn read(words: &[OsString]) -> Option<Words> {
        let [file, directory, verbose, threads, flags, model, parameters @ ..] = words else { return None };
        let (pairs, _) = parameters.as_chunks::<2>();
        Some(Words {
            file: file.clone(),
            directory: directory.clone(),
            switches: Switches {
                verbose: !verbose.is_empty(),
                stdio_safe: false,
                threads: threads.to_str()?.parse().ok()?,
                // The helper that starts it has left the terminal.
                background: false,
                debug_flags: debug_flags(flags.to_str()?)?,
            },
            thread_model: model.to_str()?.into(),
            parameters: pairs.iter().map(|[key, value]| (key.clone(), value.clone())).collect(),
        })
    }
}

/// Reads what [`Words::to_vec`] writes of flags.
fn debug_flags(text: &str) -> Option<Vec<(String, String, i32)>> {
    let flag = |word: &str| {
        let (name, rest) = word.split_once('.')?;
        let (flag, value) = rest.rsplit_once('=')?;
        Some((name.to_string(), flag.to_string(), value.parse().ok()?))
    };
    text.split_whitespace().map(flag).collect()
}

/// Starts the process for a conversation that the server holds.
pub(crate) fn start_only(words: &[OsString], _: &Order) -> io::Result<Started> {
    let words = Words::read(words).ok_or(io::ErrorKind::InvalidInput)?;
    let (child, control) = spawn(&words.file, &words.directory)?;
    Ok(Started { child, ends: vec![control], keep: None })
}

/// Starts the process and takes it to the point where connections begin. The parameters are those
/// that the operator gave, whatever the server asks for.
fn start_ready(words: &[OsString], _: &Order) -> io::Result<Started> {
    let words = Words::read(words).ok_or(io::ErrorKind::InvalidInput)?;
    let (mut child, control) = spawn(&words.file, &words.directory)?;
    match ready(&words, control) {
        Ok(control) => Ok(Started { child, ends: vec![control], keep: None }),
        Err(failure) => {
            let _ = child.kill();
            let status = child.wait();
            Err(io::Error::other(match failure {
                Failure::Refused(why) => why,
                Failure::Ended => {
                    status.map_or_else(|error| error.to_string(), |status| format!("it ended ({status})"))
                }
            }))
        }
    }
}

fn ready(words: &Words, control: OwnedFd) -> Result<OwnedFd, Failure> {
    let mut log = |which: u8, text: &str| match which {
        kind::ERROR => tracing::error!("{text}"),
        _ => tracing::debug!("{text}"),
    };
    let mut setup = Setup::begin(control, words.switches.clone(), None, &mut log)?;
    for (key, value) in &words.parameters {
        setup.config(key.as_bytes(), value.as_bytes(), &mut log)?;
    }
    setup.call_plain(kind::CONFIG_COMPLETE, &mut log)?;
    let model = setup.thread_model(&mut log)?;
    if model.name() != words.thread_model {
        let before = &words.thread_model;
        return Err(Failure::Refused(format!("its thread model is now {model} and was {before}")));
    }
    setup.call_plain(kind::GET_READY, &mut log)?;
    setup.after_fork(&mut log)?;
    Ok(setup.into_control())
}

/// Starts the process. Returns it and the socket to it.
fn spawn(file: &OsStr, directory: &OsStr) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = packet::pair()?;
    let mut command = Command::new(own_program()?);
    std::os::unix::process::CommandExt::arg0(&mut command, "rbdkit");
    command.arg(ARGUMENT).arg(file).current_dir(directory).stdin(Stdio::from(theirs.as_fd().try_clone_to_owned()?));
    let child = command.spawn()?;
    Ok((child, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_as_they_were_sent() {
        let debug_flags = vec![("memory".into(), "dir".into(), -1), ("x".into(), "a.b".into(), 2)];
        let switches = Switches { verbose: true, stdio_safe: false, threads: 16, background: false, debug_flags };
        let parameters = vec![("size".into(), "1M".into()), ("".into(), "".into())];
        let (file, directory) = ("/p.so".into(), "/tmp".into());
        let words = Words { file, directory, switches, thread_model: "parallel".into(), parameters };
        assert_eq!(Words::read(&words.to_vec()), Some(words));
        assert_eq!(Words::read(&["/p.so".into()]), None);
    }
}
