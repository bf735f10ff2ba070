//! `--run`: the server runs as long as a shell command.
//!
//! The command has nbdkit's shell variables. They are not exported, so the programs that the
//! command starts do not get them.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::shell::shell_quoted;
use rbdkit_plugin_api::text::plain;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::listen::Reachable;
use super::tls::TlsUri;
use super::{log, process, uri};

/// The command while it runs.
pub struct Captive {
    /// Refers to this process even if another process gets the same id later.
    pidfd: Option<Arc<OwnedFd>>,
    ended: oneshot::Receiver<std::io::Result<ExitStatus>>,
}

impl Captive {
    /// Starts the command.
    ///
    /// # Errors
    /// There is no shell, or the system cannot create a process.
    pub fn start(
        command: &OsStr,
        reachable: &Reachable,
        exportname: &OsStr,
        tls: Option<&TlsUri>,
    ) -> Result<Captive, ConfigError> {
        let failed = |error: std::io::Error| ConfigError::new(format!("--run: /bin/sh: {}", plain(&error)));
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(script(command, reachable, exportname, tls))
            .spawn()
            .map_err(failed)?;
        // Without a descriptor, signals are not passed on.
        let pidfd = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .map(Arc::new);
        let (sender, ended) = oneshot::channel();
        let wait = move || {
            // The server may have ended without the command: then the receiver is dropped.
            let _ = sender.send(child.wait());
        };
        std::thread::Builder::new().name("run".into()).spawn(wait).map_err(failed)?;
        Ok(Captive { pidfd, ended })
    }

    /// Waits for the command's end. The future may be dropped and made again until it has answered.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        (&mut self.ended).await.unwrap_or_else(|_| Err(std::io::Error::other("nobody waits for the command")))
    }

    /// Passes a signal on. If the command has just ended, nothing happens.
    pub fn signal(&self, signal: Signal) {
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd_send_signal(&**pidfd, signal);
        }
    }

    /// Its process, if signals can be passed on to it.
    pub fn process(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.clone()
    }

    /// Lets the command run on without the server.
    pub fn leave(mut self) {
        self.pidfd = None;
    }
}

impl Drop for Captive {
    /// Ends the command when a later step of the start fails. A command that has ended is not
    /// affected.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// The exit status for the command's, as the shell computes it: 128 and the signal's number for a
/// command that was killed.
pub fn exit_status(program: &str, ended: std::io::Result<ExitStatus>) -> u8 {
    let number = match &ended {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => {
                let name = process::signal_name(signal);
                log::say(program, &format_args!("external command was killed by signal {signal} ({name})"));
                128 + signal
            }
            (None, None) => 1,
        },
        Err(error) => {
            log::say(program, &format_args!("error: --run: {}", plain(error)));
            1
        }
    };
    u8::try_from(number).unwrap_or(1)
}

fn script(command: &OsStr, reachable: &Reachable, exportname: &OsStr, tls: Option<&TlsUri>) -> OsString {
    let uri = uri::of(reachable, exportname).unwrap_or_default();
    let (port, unixsocket) = match reachable {
        Reachable::Unix(socket) => (String::new(), socket.as_os_str()),
        Reachable::Tcp { port, .. } => (port.to_string(), OsStr::new("")),
        Reachable::Vsock { port } => (port.to_string(), OsStr::new("")),
        Reachable::Unknown => (String::new(), OsStr::new("")),
    };
    let uri = match tls {
        Some(tls) => tls.apply(uri),
        None => uri,
    };
    let variables: [(&str, &OsStr); 5] = [
        ("uri", uri.as_ref()),
        ("nbd", uri.as_ref()),
        ("exportname", exportname),
        ("port", port.as_ref()),
        ("unixsocket", unixsocket),
    ];
    let mut script = OsString::new();
    // On the command's own line, so that line numbers in the shell's messages are right.
    for (name, value) in variables {
        script.push(name);
        script.push("=");
        script.push(shell_quoted(value));
        script.push("; ");
    }
    match tls {
        Some(tls) => script.push(format!("tls={}; ", tls.variable())),
        // As in nbdkit.
        None => script.push("unset tls; "),
    }
    script.push(command);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_finds_nbdkits_variables() {
        let socket = Reachable::Unix("/tmp/x y/s".into());
        assert_eq!(
            script(OsStr::new("nbdinfo \"$uri\""), &socket, OsStr::new("it's"), None),
            "uri='nbd+unix:///it%27s?socket=/tmp/x%20y/s'; nbd='nbd+unix:///it%27s?socket=/tmp/x%20y/s'; \
             exportname='it'\\''s'; port=''; unixsocket='/tmp/x y/s'; unset tls; nbdinfo \"$uri\""
        );
        let port = Reachable::Tcp { host: "localhost".into(), port: 10809 };
        assert!(
            script(OsStr::new("x"), &port, OsStr::new(""), None)
                .to_string_lossy()
                .starts_with("uri='nbd://localhost:10809'; ")
        );
        let vsock =
            script(OsStr::new("x"), &Reachable::Vsock { port: 7 }, OsStr::new("e"), None).into_string().unwrap();
        assert!(
            vsock.starts_with("uri='nbd+vsock://1:7/e'; ") && vsock.contains(" port='7'; unixsocket=''; "),
            "{vsock}"
        );
    }
}
