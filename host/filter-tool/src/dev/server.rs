//! The server that `dev` runs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};

/// Options that say where clients come from. Without one the server gets a private socket.
const LISTENING: [&str; 7] = ["-U", "--unix", "-p", "--port", "-i", "--ipaddr", "-s"];

/// A running server. It ends when this is dropped.
pub(super) struct DevServer {
    child: Child,
    /// It writes its process id there when it is ready for clients and for SIGHUP.
    pidfile: PathBuf,
}

impl DevServer {
    /// Starts a server with this filter. `rest` is the plugin with its words and further options.
    /// `dir` is a directory for its pid file.
    pub(super) fn start(filter: &Path, rest: &[OsString], params: &[String], dir: &Path) -> Result<DevServer> {
        let pidfile = dir.join("pid");
        // Of an earlier server.
        let _ = std::fs::remove_file(&pidfile);
        let program = program();
        let mut command = Command::new(&program);
        // It ends with this process, however that ends.
        command.args(["--foreground", "--exit-with-parent", "--reload", "--print-uri", "--pidfile"]).arg(&pidfile);
        if !rest.iter().any(|word| listens(word)) {
            command.args(["--unix", "-"]);
        }
        command.arg("--wasm-filter").arg(filter).args(rest).args(params);
        // Control-C in a terminal reaches this process, which ends the server in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child =
            command.spawn().map_err(|source| Error::NoServer { program: program.display().to_string(), source })?;
        Ok(DevServer { child, pidfile })
    }

    /// How the server has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether it is ready for clients, and reloads when it is asked to.
    pub(super) fn is_ready(&self) -> bool {
        std::fs::read_to_string(&self.pidfile).is_ok_and(|text| text.ends_with('\n'))
    }

    /// Makes it read the filter's file again. It says in its log how that went.
    pub(super) fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Ends the server, which finishes the requests in flight.
    pub(super) fn stop(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        // A server that has ended was not waited for yet, so its number belongs to nobody else.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for DevServer {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.stop();
            let _ = self.child.wait();
        }
    }
}

fn listens(word: &OsStr) -> bool {
    let word = word.to_string_lossy();
    LISTENING.iter().any(|option| match option.strip_prefix("--") {
        Some(_) => word.split('=').next() == Some(option),
        None => word.starts_with(option),
    })
}

/// The server's program: beside this one, or in PATH.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("rbdkit"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "rbdkit".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_an_option_for_clients_gets_no_private_socket() {
        for word in ["-U", "-U/tmp/sock", "--unix", "--unix=/tmp/sock", "-p", "-p0", "--port=0", "-s"] {
            assert!(listens(OsStr::new(word)), "{word}");
        }
        for word in ["file", "disk.img", "--exit-with-parent", "-v", "size=1M"] {
            assert!(!listens(OsStr::new(word)), "{word}");
        }
    }
}
