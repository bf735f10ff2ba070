//! Starts `ssh` with the `sftp` subsystem, and gives it the password.
//!
//! `ssh` asks for a password by running the program that `SSH_ASKPASS` names. That program is three
//! lines of shell in a private directory. It reads the password from a named pipe there, so the
//! password is neither in a file nor on a command line. Directory and pipe are removed once the
//! connection is established.
//!
//! A confined server may do none of that, so [`start`] runs in its helper process.

use std::any::Any;
use std::ffi::OsString;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Order, Program, Started};
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::text::one_line;
use rbdkit_plugin_api::{Errno, Error, Result, lock, run_blocking, temporary};
use rbdkit_stream::Socket;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::config::Settings;

/// How many bytes of standard error are kept until the connection is established. The longest
/// message of `ssh` is a tenth of that.
const MAX_STDERR: usize = 16 << 10;

/// How many lines of standard error of a connected `ssh` go to the log, each second and at once.
/// The server can send any number.
const LINES_PER_SECOND: u32 = 1;
const LINES_AT_ONCE: u32 = 20;

/// How long `ssh` may take to end after SIGTERM. It has nothing to write back.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for the end of standard error after `ssh` has closed its connection.
const STDERR_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers questions for a password and refuses others: the passphrase of a key is not the
/// password.
const ASKPASS: &str = r#"#!/bin/sh
case "$1" in *assword*) ;; *) exit 1 ;; esac
IFS= read -r line <"${0%/*}/password" && printf '%s\n' "$line"
"#;

/// How often the password can be read. `ssh` has two methods that ask for it, with one attempt for
/// each; twice that is enough.
const ANSWERS: usize = 4;

/// The keys that `ssh` tries if none is named.
const DEFAULT_IDENTITIES: [&str; 3] = ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"];

/// A running `ssh`, connected or about to be. [`Program::release`] removes the password.
pub(crate) struct Launched {
    pub(crate) socket: Arc<Socket>,
    pub(crate) program: Program,
    pub(crate) stderr: Stderr,
}

/// The standard error of `ssh`.
pub(crate) struct Stderr {
    printed: Arc<Mutex<Printed>>,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Printed {
    text: String,
    /// The connection is established: further lines go to the log.
    connected: bool,
}

impl Stderr {
    fn new(pipe: OwnedFd, host: String) -> io::Result<Stderr> {
        let printed = Arc::new(Mutex::new(Printed::default()));
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let into = Arc::clone(&printed);
        let reader = tokio::spawn(async move {
            let log = Rate::new(LINES_PER_SECOND, LINES_AT_ONCE);
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
                let text = String::from_utf8_lossy(&bytes[..count]);
                let mut printed = lock(&into);
                if printed.connected {
                    drop(printed);
                    for line in text.lines() {
                        match log.admit() {
                            Some(0) => tracing::warn!("ssh: {host}: {}", one_line(line)),
                            Some(dropped) => {
                                tracing::warn!(
                                    "ssh: {host}: {} ({dropped} lines before it are left out)",
                                    one_line(line)
                                );
                            }
                            None => {}
                        }
                    }
                } else if printed.text.len() < MAX_STDERR {
                    printed.text.push_str(&text);
                }
            }
        });
        Ok(Stderr { printed, reader })
    }

    /// Records that the connection is established.
    pub(crate) fn connected(&self) {
        lock(&self.printed).connected = true;
    }

    /// Everything that an `ssh` printed which has closed its connection.
    pub(crate) async fn last(self) -> String {
        // The reader ends when ssh does.
        let _ = tokio::time::timeout(STDERR_TIMEOUT, self.reader).await;
        std::mem::take(&mut lock(&self.printed).text)
    }
}

/// A directory with the password. Only this user can enter it, and it is removed with the value.
struct Secret {
    directory: TempDir,
    /// The pipe holds the password as long as somebody has it open.
    _pipe: OwnedFd,
}

impl Secret {
    fn new(password: &[u8]) -> io::Result<Secret> {
        let private = Permissions::from_mode(0o700);
        let mut directory = tempfile::Builder::new();
        directory.prefix("rbdkit-ssh-").permissions(private);
        let directory = directory.tempdir_in(temporary::directory()?)?;
        let askpass = askpass(&directory);
        OpenOptions::new().write(true).create_new(true).mode(0o700).open(&askpass)?.write_all(ASKPASS.as_bytes())?;
        let pipe = directory.path().join("password");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Opened in both directions, the pipe holds what nobody has read yet, and a later reader
        // does not wait for a writer.
        let mut pipe = OpenOptions::new().read(true).write(true).open(pipe)?;
        pipe.write_all(&[password, b"\n"].concat().repeat(ANSWERS))?;
        Ok(Secret { directory, _pipe: pipe.into() })
    }
}

/// The program in the directory that `ssh` asks for the password.
fn askpass(directory: &TempDir) -> PathBuf {
    directory.path().join("askpass")
}

/// An option whose value is the name of a file: in quotes, and with percent signs doubled so that
/// `ssh` does not expand them again.
fn file_option(name: &str, file: &Path) -> String {
    format!("{name}=\"{}\"", file.display().to_string().replace('%', "%%"))
}

/// The arguments of `ssh`.
pub(crate) fn arguments(settings: &Settings) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut option = |text: &str| arguments.extend(["-o".to_owned(), text.to_owned()]);
    // A separate connection that does nothing but SFTP, whatever the user's configuration sets for
    // terminals.
    for text in [
        "ControlMaster=no",
        "ControlPath=none",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
        "UpdateHostKeys=no",
        "LogLevel=ERROR",
        // Detects a host that has vanished, after 90 s.
        "ServerAliveInterval=30",
        "ServerAliveCountMax=3",
    ] {
        option(text);
    }
    match settings.any_host_key {
        true => ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null"]
            .iter()
            .for_each(|text| option(text)),
        false => option("StrictHostKeyChecking=yes"),
    }
    if let (Some(file), false) = (&settings.known_hosts, settings.any_host_key) {
        option(&file_option("UserKnownHostsFile", file));
    }
    match settings.password {
        Some(_) => [
            "BatchMode=no",
            "NumberOfPasswordPrompts=1",
            "PreferredAuthentications=publickey,password,keyboard-interactive",
        ]
        .iter()
        .for_each(|text| option(text)),
        None => option("BatchMode=yes"),
    }
    settings.identities.iter().for_each(|file| option(&file_option("IdentityFile", file)));
    if !settings.identities.is_empty() {
        // If one key is named, ssh no longer tries its default keys.
        DEFAULT_IDENTITIES.iter().for_each(|file| option(&format!("IdentityFile={file}")));
    }
    if let Some(seconds) = settings.timeout {
        option(&format!("ConnectTimeout={seconds}"));
    }
    option(if settings.compression { "Compression=yes" } else { "Compression=no" });
    let mut flag = |flag: &str, value: &Option<String>| {
        if let Some(value) = value {
            arguments.extend([flag.to_owned(), value.clone()]);
        }
    };
    flag("-F", &settings.config.as_ref().map(|file| file.display().to_string()));
    flag("-l", &settings.user);
    flag("-p", &settings.port);
    arguments.extend(["-s", "--", &settings.host, "sftp"].map(str::to_owned));
    arguments
}

/// The words that [`start`] takes: the password, then the arguments of `ssh`.
pub(crate) fn words(settings: &Settings) -> Vec<OsString> {
    let password = settings.password.as_ref().map(|password| [GIVEN, password.bytes()].concat());
    let password = OsString::from_vec(password.unwrap_or_default());
    std::iter::once(password).chain(arguments(settings).into_iter().map(OsString::from)).collect()
}

/// Stands before a password in the first word, so that an empty password differs from none.
const GIVEN: &[u8] = b"=";

/// Starts `ssh`. The first word is the password, the others are the arguments. The ends are a
/// socket, which is standard input and output of `ssh`, and a pipe, which is its standard error.
pub(crate) fn start(words: &[OsString], _order: &Order) -> io::Result<Started> {
    let (password, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new("ssh");
    command.args(arguments);
    command.env_remove("SSH_ASKPASS").env_remove("SSH_ASKPASS_REQUIRE").env("LC_ALL", "C");
    // Control-C must reach only the server: requests in flight still need the connection.
    command.process_group(0);
    let password = password.as_bytes().strip_prefix(GIVEN);
    let secret = password.map(Secret::new).transpose()?;
    if let Some(secret) = &secret {
        command.env("SSH_ASKPASS", askpass(&secret.directory)).env("SSH_ASKPASS_REQUIRE", "force");
        if std::env::var_os("DISPLAY").is_none() {
            // OpenSSH before 8.4 runs SSH_ASKPASS only if DISPLAY is set.
            command.env("DISPLAY", "none");
        }
    }
    let (ours, theirs) = UnixStream::pair()?;
    let (stderr, stderr_end) = io::pipe()?;
    command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
    command.stdout(Stdio::from(OwnedFd::from(theirs)));
    command.stderr(Stdio::from(OwnedFd::from(stderr_end)));
    // Dropping the command closes our copies of the program's ends.
    let child = command.spawn()?;
    let keep = secret.map(|secret| Box::new(secret) as Box<dyn Any + Send>);
    Ok(Started { child, ends: vec![ours.into(), stderr.into()], keep })
}

/// Starts `ssh`. The socket shows whether it connects.
pub(crate) async fn launch(launcher: &Arc<Launcher>, settings: &Settings) -> Result<Launched> {
    let failed = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "the program ssh is not there (Debian's package is openssh-client)".to_owned(),
            _ => format!("ssh cannot be started: {error}"),
        };
        Error::new(Errno::Eio, format!("ssh: {}: {why}", settings.host))
    };
    let launcher = Arc::clone(launcher);
    let launched = run_blocking(move || Ok(launcher.launch("ssh: the program ssh", &Order::default()))).await?;
    let make = |(ends, program): (Vec<OwnedFd>, Program)| -> io::Result<Launched> {
        let [socket, stderr] = <[OwnedFd; 2]>::try_from(ends).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let stderr = Stderr::new(stderr, settings.host.clone())?;
        Ok(Launched { socket: Arc::new(Socket::new(socket)?), program: program.allow(END_TIMEOUT), stderr })
    };
    launched.and_then(make).map_err(failed)
}
