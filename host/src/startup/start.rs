//! The steps between the command line and serving clients.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::Chain;
use rbdkit_confine::ConfinementNeeds;
use rbdkit_plugin_api::{ConfigError, stdin};
use rbdkit_server::{Listener, Stop};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Signal};
use tokio::sync::Notify;

use super::background::{StandardError, Word};
use super::captive::{self, Captive};
use super::identity::Identity;
use super::listen::{self, Reachable, Sockets};
use super::pidfile::{self, PidFile};
use super::signals::Signals;
use super::watch::{End, watch};
use super::{layers, log, print, process, serving, uri};
use crate::cli::{Listen, Plan};

/// The inputs of the start.
pub struct Start {
    /// The name that messages begin with.
    pub program: &'static str,
    /// What to serve, and how.
    pub plan: Plan,
    /// The process that started this one.
    pub parent: Option<Pid>,
    /// Tells the parent that the server is ready, if it forked into the background.
    pub word: Option<Word>,
    /// The sockets of socket activation.
    pub inherited: Vec<Listener>,
}

/// How long the process waits at its end for threads that are stuck in a system call.
const STUCK: Duration = Duration::from_secs(1);

/// Starts the server and serves until it ends. Returns the exit status.
///
/// # Errors
/// One line: why it cannot start, or that a filter's fault ended it.
pub fn serve(start: Start) -> Result<u8, ConfigError> {
    let plan = &start.plan;
    tracing::debug!("rbdkit {}", print::VERSION);
    process::tame_allocator();
    process::raise_descriptor_limit();
    if plan.exit_with_parent {
        exit_with(start.parent)?;
    }
    if plan.swap {
        lock_memory()?;
    }
    log::warn_of_unknown_flags(plan);
    let identity = Identity::look_up(plan.user.as_deref(), plan.group.as_deref())?;
    let pidfile = plan.pidfile.as_deref().map(pidfile::absolute).transpose()?;
    let stdio = matches!(plan.listen, Listen::Single).then(take_stdio).transpose()?;
    let fatal = Arc::new(Notify::new());
    let chain = layers::chain(plan, &fatal)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("rbdkit")
        .on_thread_start(rbdkit_confine::confine_thread)
        .on_thread_unpark(rbdkit_confine::confine_thread)
        .build();
    let runtime = runtime.map_err(|error| ConfigError::new(format!("cannot start threads: {error}")))?;
    let running = Running { start, chain, identity, pidfile, stdio, fatal };
    let status = runtime.block_on(running.run());
    runtime.shutdown_timeout(STUCK);
    status
}

/// A server whose layers are configured.
struct Running {
    start: Start,
    chain: Arc<Chain>,
    identity: Identity,
    pidfile: Option<PathBuf>,
    /// Standard input and output, if the client is connected to them (`-s`).
    stdio: Option<(OwnedFd, OwnedFd)>,
    /// A filter failed, and `--filter-on-fault=exit` is given.
    fatal: Arc<Notify>,
}

impl Running {
    /// Listens, serves, and returns the exit status.
    async fn run(mut self) -> Result<u8, ConfigError> {
        self.chain.get_ready().await?;
        // Before this, a signal may end the process, because nothing exists yet that has to be
        // removed.
        let mut signals = Signals::new()?;
        log::start_writer(self.start.program);
        let mut sockets = listen::listen(&self.start.plan.listen, std::mem::take(&mut self.start.inherited))?;
        let opened = self.open(&mut sockets).await;
        if opened.is_err() {
            self.chain.cleanup().await;
        }
        let captive = opened?;
        self.confine(&sockets, captive.as_ref()).await;
        let listeners = std::mem::take(&mut sockets.listeners);
        let stop = Stop::new();
        let serving =
            serving::serve(&self.start.plan, Arc::clone(&self.chain), listeners, self.stdio.take(), stop.clone());
        match watch(&stop, captive, &mut signals, &self.fatal, serving).await {
            End::Drained { ended, failed } => {
                self.chain.cleanup().await;
                tracing::debug!("the server has ended");
                if failed {
                    return Err(ConfigError::new("a filter failed (--filter-on-fault=exit)"));
                }
                Ok(ended.map_or(0, |ended| captive::exit_status(self.start.program, ended)))
            }
            End::AtOnce(signal) => {
                tracing::warn!("a second signal: ending without waiting for clients");
                u8::try_from(128 + signal.as_raw()).map_err(|_| ConfigError::new("impossible signal"))
            }
        }
    }

    /// Gives up what serving does not need.
    async fn confine(&self, sockets: &Sockets, captive: Option<&Captive>) {
        if !self.start.plan.confine {
            tracing::debug!("not confined (--no-confine)");
            return;
        }
        let needs = ConfinementNeeds {
            scratch: (!self.start.plan.filters.is_empty()).then(rbdkit_sandbox::state::scratch_directory),
            private: sockets.private().map(PathBuf::from),
            runs_command: captive.is_some(),
        };
        // Not inside the macro, which evaluates its arguments only if it logs them.
        let said = rbdkit_confine::confine_process(self.chain.reach(), &needs).await;
        tracing::debug!("{said}");
    }

    /// The steps between listening and serving. If one of them fails, dropping `sockets` removes
    /// what was made in the file system.
    async fn open(&mut self, sockets: &mut Sockets) -> Result<Option<Captive>, ConfigError> {
        let mut captive = None;
        if self.identity.is_another() {
            // The command runs as the user who called the program, not as the server's user.
            captive = self.start_command(&sockets.reachable)?;
            sockets.give_to(&self.identity)?;
            self.identity.assume()?;
            if self.start.plan.exit_with_parent {
                // The kernel forgets the signal when the user changes.
                exit_with(self.start.parent)?;
            }
        }
        self.chain.after_fork().await?;
        let pidfile = self.pidfile.as_deref().map(PidFile::write).transpose()?;
        if captive.is_none() {
            captive = self.start_command(&sockets.reachable)?;
        }
        if self.start.plan.print_uri {
            print_uri(&sockets.reachable, &self.start.plan);
        }
        tracing::debug!("listening at {}", sockets.reachable);
        // If the parent is gone, socket and pid file have no use.
        self.tell_the_parent()?;
        if let Some(file) = pidfile {
            file.keep();
        }
        sockets.keep();
        Ok(captive)
    }

    /// Tells the parent that the server is ready, if it waits for that.
    fn tell_the_parent(&mut self) -> Result<(), ConfigError> {
        let Some(word) = self.start.word.take() else {
            return Ok(());
        };
        let standard_error = if self.start.plan.verbose { StandardError::Stays } else { StandardError::Closes };
        word.give(standard_error)
            .map_err(|error| ConfigError::new(format!("cannot go into the background: {error}")))?;
        log::in_background();
        Ok(())
    }

    fn start_command(&self, reachable: &Reachable) -> Result<Option<Captive>, ConfigError> {
        let Some(command) = &self.start.plan.run else {
            return Ok(None);
        };
        Captive::start(command, reachable, &self.start.plan.exportname).map(Some)
    }
}

fn print_uri(reachable: &Reachable, plan: &Plan) {
    use std::io::Write;
    let uri = match reachable {
        Reachable::Unix(socket) => uri::unix(socket, &plan.exportname),
        Reachable::Tcp { host, port } => uri::tcp(host, *port, &plan.exportname),
        Reachable::Unknown => return,
    };
    // As nbdkit: the URI, and commands to copy that use it. If standard output is closed, nobody
    // needs them.
    let mut lines = OsString::from(format!("{uri}\n"));
    for command in ["nbdinfo", "nbdsh -u"] {
        lines.push(format!("{command} "));
        lines.push(uri::shell_quote(uri.as_ref()));
        lines.push("\n");
    }
    let _ = std::io::stdout().write_all(lines.as_encoded_bytes());
}

fn exit_with(parent: Option<Pid>) -> Result<(), ConfigError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| ConfigError::new(format!("--exit-with-parent: {error}")))?;
    // The parent may have exited before the signal was asked for.
    match rustix::process::getppid() == parent {
        true => Ok(()),
        false => Err(ConfigError::new("--exit-with-parent: the parent process has exited")),
    }
}

fn lock_memory() -> Result<(), ConfigError> {
    use rustix::mm::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|error| {
        ConfigError::new(format!("--swap: the process cannot be locked into memory (see ulimit -l): {error}"))
    })
}

/// Takes standard input and output from the process for the client. What a layer prints is
/// discarded. A layer that reads standard input gets an error, because the descriptor becomes a
/// socket without a peer: an empty script or password would not be noticed.
fn take_stdio() -> Result<(OwnedFd, OwnedFd), ConfigError> {
    let take = || -> std::io::Result<(OwnedFd, OwnedFd)> {
        let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let nothing = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        rustix::stdio::dup2_stdin(&nothing)?;
        rustix::stdio::dup2_stdout(std::fs::OpenOptions::new().write(true).open("/dev/null")?)?;
        stdin::reserve_for_client();
        Ok((input, output))
    };
    take().map_err(|error| ConfigError::new(format!("--single: standard input and output: {error}")))
}
