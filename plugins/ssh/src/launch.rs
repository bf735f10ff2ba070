//! Starts `ssh` with the `sftp` subsystem, and gives it the password.
//!
//! `ssh` asks a program of the environment's for a password, never us. That program is three lines of shell in a directory of our own, which
//! take the password from a named pipe there: it is neither in a file nor on a command line. Directory and pipe are gone
//! once the connection stands.
//!
//! A server that is confined may do nothing of that, so [`start`] runs in a helper process then.

use std::any::Any;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Order, Program, Started};
use rbdkit_plugin_api::{Errno, Error, Result, lock};
use rbdkit_stream::Socket;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::config::Settings;

/// The most that is kept of what `ssh` says before the connection stands: its longest message is a tenth of that.
const MAX_SAID: usize = 16 << 10;

/// How long the last words of an `ssh` that has closed its connection are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Takes what is asked for as a password, and refuses anything else: a key's passphrase is not the password.
const ASKPASS: &str = r#"#!/bin/sh
case "$1" in *assword*) ;; *) exit 1 ;; esac
IFS= read -r line <"${0%/*}/password" && printf '%s\n' "$line"
"#;

/// How often the password may be asked for. `ssh` has two methods, and one attempt for each.
const ANSWERS: usize = 4;

/// Where `ssh` looks for keys by itself.
const DEFAULT_IDENTITIES: [&str; 3] = ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"];

/// A running `ssh`, connected or about to be. [`Program::release`] takes the password away.
pub(crate) struct Launched {
    pub(crate) socket: Arc<Socket>,
    pub(crate) program: Program,
    pub(crate) words: Words,
}

/// What `ssh` says on standard error.
pub(crate) struct Words {
    kept: Arc<Mutex<Kept>>,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    text: String,
    /// The connection stands: what comes now is for the log.
    connected: bool,
}

impl Words {
    fn new(pipe: OwnedFd, host: String) -> io::Result<Words> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let into = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
                let text = String::from_utf8_lossy(&bytes[..count]);
                let mut kept = lock(&into);
                if kept.connected {
                    text.lines().for_each(|line| tracing::warn!("ssh: {host}: {}", line.escape_debug()));
                } else if kept.text.len() < MAX_SAID {
                    kept.text.push_str(&text);
                }
            }
        });
        Ok(Words { kept, reader })
    }

    /// The connection stands.
    pub(crate) fn connected(&self) {
        lock(&self.kept).connected = true;
    }

    /// All that an `ssh` said which has closed its connection.
    pub(crate) async fn last(self) -> String {
        // It ends when ssh does.
        let _ = tokio::time::timeout(LAST_WORDS, self.reader).await;
        std::mem::take(&mut lock(&self.kept).text)
    }
}

/// A directory with the password.
struct Secret {
    directory: PathBuf,
    /// The pipe holds the password as long as somebody has it open.
    pipe: Option<OwnedFd>,
}

impl Secret {
    fn new(password: &str) -> io::Result<Secret> {
        let mut secret = Secret { directory: directory()?, pipe: None };
        let askpass = secret.askpass();
        OpenOptions::new().write(true).create_new(true).mode(0o700).open(&askpass)?.write_all(ASKPASS.as_bytes())?;
        let pipe = secret.directory.join("password");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Open in both directions: the pipe holds what nobody reads yet, and a reader that comes later does not wait for a writer.
        let mut pipe = OpenOptions::new().read(true).write(true).open(pipe)?;
        pipe.write_all(format!("{password}\n").repeat(ANSWERS).as_bytes())?;
        secret.pipe = Some(pipe.into());
        Ok(secret)
    }

    fn askpass(&self) -> PathBuf {
        self.directory.join("askpass")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rbdkit-ssh-{}-{nth}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            // Left by a process of the same id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// An option whose value is the name of a file: in quotes, and no sequence is expanded twice.
fn file_option(name: &str, file: &Path) -> String {
    format!("{name}=\"{}\"", file.display().to_string().replace('%', "%%"))
}

/// The arguments of `ssh`.
pub(crate) fn arguments(settings: &Settings) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut option = |text: &str| arguments.extend(["-o".to_owned(), text.to_owned()]);
    // A connection of its own, for SFTP alone, whatever the user's configuration has for terminals.
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
        // A host that vanishes says nothing.
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
        // Naming one makes ssh forget those that it would look for by itself.
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

/// Starts `ssh` with these settings.
pub(crate) fn launcher(settings: &Settings) -> Launcher {
    let password = settings.password.as_ref().map(|password| format!("{GIVEN}{password}")).unwrap_or_default();
    let words = std::iter::once(password).chain(arguments(settings)).map(OsString::from);
    Launcher::new(crate::INFO.name, crate::START, words.collect())
}

/// In front of a password in the first word: one of no characters is a password too.
const GIVEN: char = '=';

/// Starts `ssh`: the first word is the password, the others are its arguments. Our ends: of its standard input and output, and of its errors.
pub(crate) fn start(words: &[OsString], _order: Order) -> io::Result<Started> {
    let (password, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new("ssh");
    command.args(arguments);
    command.env_remove("SSH_ASKPASS").env_remove("SSH_ASKPASS_REQUIRE").env("LC_ALL", "C");
    // Control-C is for us: requests under way still need the connection.
    command.process_group(0);
    let password = password.to_str().and_then(|word| word.strip_prefix(GIVEN));
    let secret = password.map(Secret::new).transpose()?;
    if let Some(secret) = &secret {
        command.env("SSH_ASKPASS", secret.askpass()).env("SSH_ASKPASS_REQUIRE", "force");
        if std::env::var_os("DISPLAY").is_none() {
            // Before OpenSSH 8.4 that was the sign that there is somebody to ask.
            command.env("DISPLAY", "none");
        }
    }
    let (ours, theirs) = UnixStream::pair()?;
    let (said, says) = io::pipe()?;
    command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
    command.stdout(Stdio::from(OwnedFd::from(theirs)));
    command.stderr(Stdio::from(OwnedFd::from(says)));
    // With the command go our copies of what ssh has.
    let child = command.spawn()?;
    let keep = secret.map(|secret| Box::new(secret) as Box<dyn Any + Send>);
    Ok(Started { child, ends: vec![ours.into(), said.into()], keep })
}

/// Starts `ssh`. Whether it comes to a connection shows on the socket.
pub(crate) fn launch(launcher: &Launcher, settings: &Settings) -> Result<Launched> {
    let failed = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "the program ssh is not there (Debian's package is openssh-client)".to_owned(),
            _ => format!("ssh cannot be started: {error}"),
        };
        Error::new(Errno::Eio, format!("ssh: {}: {why}", settings.host))
    };
    let start = || -> io::Result<Launched> {
        let (ends, program) = launcher.launch("ssh: the program ssh", Order { which: 0, number: 0 })?;
        let [socket, said] = <[OwnedFd; 2]>::try_from(ends).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let words = Words::new(said, settings.host.clone())?;
        Ok(Launched { socket: Arc::new(Socket::new(socket)?), program, words })
    };
    start().map_err(failed)
}
