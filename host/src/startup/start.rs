//! The steps between the command line and serving clients.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::Chain;
use rbdkit_confine::ConfinementNeeds;
use rbdkit_plugin_api::own_file::OwnFile;
use rbdkit_plugin_api::shell::shell_quoted;
use rbdkit_plugin_api::{ConfigError, StopScope, locked, stdin};
use rbdkit_record::Recorder;
use rbdkit_server::{Listener, ServerOptions, Stop};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::background::{StandardError, Word};
use super::captive::{self, Captive};
use super::filters::Ends;
use super::identity::Identity;
use super::layers::Layers;
use super::leftovers::Leftovers;
use super::listen::{self, Reachable, Sockets};
use super::pidfile::{self, PidFile};
use super::reload::Reloads;
use super::signals::{Ending, Signals};
use super::tls::{Tls, TlsUri};
use super::watch::{CommandEnd, watch};
use super::{log, print, process, record, selinux, serving, uri};
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
const STUCK: Duration = Duration::from_millis(500);

/// How long a start may still take after a signal. A start that is about to succeed does, and the
/// server then stops as usual.
const START_GRACE: Duration = Duration::from_secs(1);

/// How long after the signal the layers may still clean up.
const CLEANUP_END: Duration = Duration::from_secs(3);

/// How long the layers may clean up even if serving took longer to end.
const MIN_CLEANUP: Duration = Duration::from_millis(500);

/// How long the end waits for the last entries of a record.
const LAST_ENTRIES: Duration = Duration::from_secs(1);

/// Starts the server and serves until it ends. Returns the exit status.
///
/// # Errors
/// One line: why it cannot start, or that a filter's fault ended it.
pub fn serve(start: Start) -> Result<u8, ConfigError> {
    let plan = &start.plan;
    tracing::debug!("{}", print::versions(start.program));
    process::tame_allocator();
    process::raise_descriptor_limit();
    if plan.exit_with_parent {
        exit_with(start.parent)?;
    }
    if plan.swap {
        lock_memory()?;
    }
    let mut options = serving::options(plan)?;
    let tls = Tls::load(&plan.tls)?;
    options.tls = tls.as_ref().map(|tls| tls.options().clone());
    let identity = Identity::look_up(plan.user.as_deref(), plan.group.as_deref())?;
    let pidfile = plan.pidfile.as_deref().map(pidfile::absolute).transpose()?;
    let stdio = matches!(plan.listen, Listen::Single).then(take_stdio).transpose()?;
    let ends = Ends::default();
    let Layers { chain, recorder, reloads } = super::layers::layers(plan, &ends)?;
    // As the user who starts the server, who alone may be able to read the keys.
    let reread = tls.as_ref().filter(|tls| tls.is_reread() && plan.run.is_none());
    reread.map_or(Ok(()), Tls::prepare_rereading)?;
    let tls_uri = tls.as_ref().map(|tls| tls.uri().clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("rbdkit")
        .on_thread_start(rbdkit_confine::confine_thread)
        .on_thread_unpark(rbdkit_confine::confine_thread)
        .build();
    let runtime = runtime.map_err(|error| ConfigError::new(format!("cannot start threads: {error}")))?;
    let running = Running {
        start,
        options,
        chain,
        recorder,
        reloads,
        reloading: None,
        tls,
        tls_uri,
        identity,
        pidfile,
        stdio,
        ends,
    };
    let status = runtime.block_on(running.run());
    runtime.shutdown_timeout(STUCK);
    status
}

/// A server whose layers are configured.
struct Running {
    start: Start,
    options: ServerOptions,
    chain: Arc<Chain>,
    recorder: Option<Arc<Recorder>>,
    /// The filters that are read again (`--reload`), until the helper for them runs.
    reloads: Option<Reloads>,
    /// The tasks that do so.
    reloading: Option<JoinSet<()>>,
    /// The TLS whose certificates are read again, until the task for that runs.
    tls: Option<Tls>,
    /// What clients have to know of TLS.
    tls_uri: Option<TlsUri>,
    identity: Identity,
    pidfile: Option<PathBuf>,
    /// Standard input and output, if the client is connected to them (`-s`).
    stdio: Option<(OwnedFd, OwnedFd)>,
    /// What filters notify to end the server.
    ends: Ends,
}

impl Running {
    /// Listens, serves, and returns the exit status.
    async fn run(mut self) -> Result<u8, ConfigError> {
        self.chain.get_ready().await?;
        // Before this, a signal may end the process, because nothing exists yet that has to be
        // removed.
        let reload = self.reloads.as_ref().map(Reloads::asked);
        let (hangup, rereading) = self.on_hangup(reload);
        let mut signals = Signals::start(&self.chain, hangup)?;
        log::start_writer(self.start.program);
        let ending = Arc::clone(signals.ending());
        let inherited = std::mem::take(&mut self.start.inherited);
        // An end at once waits for this, so that it removes the socket whenever it comes.
        let mut sockets = ending.make_leftovers(|| {
            let plan = &self.start.plan;
            let make = || listen::listen(&plan.listen, inherited);
            let sockets = match &plan.selinux_label {
                Some(label) => selinux::labelled(label, make)??,
                None => make()?,
            };
            let leftovers = leftovers(&sockets, None);
            Ok::<_, ConfigError>((sockets, leftovers))
        })?;
        let opened = tokio::select! {
            opened = self.open(&mut sockets, &ending) => opened,
            signal = signals.late(START_GRACE) => return self.give_up(signal).await,
        };
        if opened.is_err() {
            self.chain.cleanup(Instant::now() + CLEANUP_END).await;
        }
        let captive = opened?;
        ending.set_leftovers(leftovers(&sockets, None));
        self.confine(&sockets, captive.as_ref(), &ending).await;
        let listeners = std::mem::take(&mut sockets.listeners);
        let stop = Stop::new();
        let serving =
            serving::serve(self.options.clone(), Arc::clone(&self.chain), listeners, self.stdio.take(), stop.clone());
        let end = watch(&stop, captive, &mut signals, &self.ends, serving).await;
        // No reload begins any more.
        drop(self.reloading.take());
        drop(rereading);
        self.clean_up(&ending).await;
        if let Some(recorder) = &self.recorder {
            recorder.finish(LAST_ENTRIES);
        }
        ending.leave_it_to_the_end_at_once().await;
        tracing::debug!("the server has ended");
        match end.command {
            _ if end.failed => Err(ConfigError::new("a filter failed (--filter-on-fault=exit)")),
            None => Ok(0),
            Some(CommandEnd::Ended(status)) => Ok(captive::exit_status(self.start.program, status)),
            Some(CommandEnd::Ignored(signal)) => Ok(status_of(signal)),
        }
    }

    /// What SIGHUP wakes: the reload of filters, rereading the certificates, or both. None: it ends
    /// the server. A command of `--run` gets it, so certificates are not read again then.
    fn on_hangup(&mut self, reload: Option<Arc<Notify>>) -> (Option<Arc<Notify>>, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let tls = self.tls.take().filter(|tls| tls.is_reread() && self.start.plan.run.is_none());
        let Some(tls) = tls else { return (reload, tasks) };
        let (hangup, reread) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        if let Some(rereading) = tls.reread_when(Arc::clone(&reread)) {
            tasks.spawn(rereading);
        }
        let woken = Arc::clone(&hangup);
        tasks.spawn(async move {
            loop {
                woken.notified().await;
                reread.notify_one();
                reload.iter().for_each(|reload| reload.notify_one());
            }
        });
        (Some(hangup), tasks)
    }

    /// The layers clean up, for a limited time.
    async fn clean_up(&self, ending: &Ending) {
        let now = Instant::now();
        let asked = ending.asked().unwrap_or(now);
        self.chain.cleanup((asked + CLEANUP_END).max(now + MIN_CLEANUP)).await;
    }

    /// Ends a start that hangs, after a signal.
    async fn give_up(self, signal: Signal) -> Result<u8, ConfigError> {
        tracing::warn!("the start does not end: it is given up");
        self.chain.begin_stop();
        self.chain.abandon(StopScope::Everything);
        self.chain.cleanup(Instant::now() + MIN_CLEANUP).await;
        Ok(status_of(signal))
    }

    /// Gives up what serving does not need.
    async fn confine(&self, sockets: &Sockets, captive: Option<&Captive>, ending: &Ending) {
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
        ending.confine().await;
        tracing::debug!("{said}");
    }

    /// The steps between listening and serving. If one of them fails, dropping `sockets` removes
    /// what was made in the file system.
    async fn open(&mut self, sockets: &mut Sockets, ending: &Ending) -> Result<Option<Captive>, ConfigError> {
        let mut captive = None;
        if self.identity.is_another() {
            // The command runs as the user who called the program, not as the server's user.
            captive = self.start_command(&sockets.reachable, ending)?;
            sockets.give_to(&self.identity)?;
            self.identity.assume()?;
            if self.start.plan.exit_with_parent {
                // The kernel forgets the signal when the user changes.
                exit_with(self.start.parent)?;
            }
        }
        if let Err(error) = locked::lock_again() {
            tracing::debug!("passwords and keys may be swapped out: they cannot be locked into memory: {error}");
        }
        self.chain.after_fork().await?;
        if let Some(reloads) = self.reloads.take() {
            // As the server's user, and while the process may still start programs.
            let tasks = reloads.start();
            let failed = |error| ConfigError::new(format!("--reload: cannot start a helper process: {error}"));
            self.reloading = Some(tasks.map_err(failed)?);
        }
        // Before the pid file, which says that the server is ready.
        let record = self.start_record()?;
        let announced = self.announce(captive, sockets, ending);
        if announced.is_err() {
            record.inspect(OwnFile::remove);
        }
        announced
    }

    /// Writes the pid file, starts the command if it does not run yet, and tells the parent that
    /// the server is ready.
    fn announce(
        &mut self,
        mut captive: Option<Captive>,
        sockets: &mut Sockets,
        ending: &Ending,
    ) -> Result<Option<Captive>, ConfigError> {
        let pidfile = self.pidfile.as_deref().map(PidFile::write).transpose()?;
        ending.set_leftovers(leftovers(sockets, pidfile.as_ref()));
        if captive.is_none() {
            captive = self.start_command(&sockets.reachable, ending)?;
        }
        if self.start.plan.print_uri {
            print_uri(&sockets.reachable, &self.start.plan, self.tls_uri.as_ref());
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

    /// Opens the record's file. Returns it if it is new.
    fn start_record(&self) -> Result<Option<OwnFile>, ConfigError> {
        match (&self.start.plan.record, &self.recorder) {
            (Some(option), Some(recorder)) => record::start(option, recorder),
            _ => Ok(None),
        }
    }

    fn start_command(&self, reachable: &Reachable, ending: &Ending) -> Result<Option<Captive>, ConfigError> {
        let Some(command) = &self.start.plan.run else {
            return Ok(None);
        };
        let captive = ending.start_command(|| {
            let captive = Captive::start(command, reachable, &self.start.plan.exportname, self.tls_uri.as_ref())?;
            let process = captive.process();
            Ok::<_, ConfigError>((captive, process))
        })?;
        Ok(Some(captive))
    }
}

/// What has to be removed if the process ends now. `pidfile` is that of a server that still starts.
fn leftovers(sockets: &Sockets, pidfile: Option<&PidFile>) -> Leftovers {
    Leftovers {
        socket: sockets.unfinished().cloned(),
        private: sockets.private().map(PathBuf::from),
        pidfile: pidfile.and_then(PidFile::file).cloned(),
    }
}

/// The exit status of a process that a signal ended.
fn status_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}

fn print_uri(reachable: &Reachable, plan: &Plan, tls: Option<&TlsUri>) {
    use std::io::Write;
    let Some(uri) = uri::of(reachable, &plan.exportname) else { return };
    let uri = match tls {
        Some(tls) => tls.apply(uri),
        None => uri,
    };
    // As nbdkit: the URI, and commands to copy that use it. If standard output is closed, nobody
    // needs them.
    let mut lines = OsString::from(format!("{uri}\n"));
    for command in ["nbdinfo", "nbdsh -u"] {
        lines.push(format!("{command} "));
        lines.push(shell_quoted(uri.as_ref()));
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
