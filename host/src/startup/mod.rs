//! From the command line to a serving process, and to its end.
//!
//! The order, which is what this module is about:
//!
//! 1. The command line becomes a plan. What only prints (help, versions) prints and ends.
//! 2. Unless the process stays in the foreground it forks, before any thread exists. The child goes on; the parent waits for its word
//!    ([`background`]).
//! 3. Filters are loaded, parameters distributed, plugin and filters configured and made ready.
//! 4. Sockets are bound. From here on a failure removes what was made in the file system.
//! 5. User and group change, the pid file is written, the command of `--run` starts, the word is given.
//! 6. The process gives up what serving does not need ([`wall`]).
//! 7. Clients are served until a signal or the end of the command; then those that are there are drained.
//!
//! A mistake in 1 to 5 is one line on standard error and exit status 1, with nothing left behind.
//!
//! What nbdkit does differently, and why it is not followed there:
//!
//! * nbdkit's caller learns nothing of what fails after the fork; here the whole start has to succeed first, the pid file included.
//! * nbdkit leaves the socket of a failed start behind; here it is removed. A server that ran leaves socket and pid file, as nbdkit's do.
//! * nbdkit ignores signals while the command of `--run` runs; here SIGTERM and SIGHUP are passed on to the command.
//! * nbdkit kills its captive server when the command ends; here it is drained, so that a cache filter writes back.
//! * A second signal ends the server without draining (exit status 128 and the signal's number): nbdkit has nothing for that.

mod background;
mod captive;
mod filters;
mod listen;
mod log;
mod pidfile;
mod print;
mod process;
mod serving;
mod signals;
mod uri;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, Param, Plugin, PluginInfo, Pool};
use rustix::process::{Pid, Signal};
use tokio::sync::Notify;

use crate::cli::assign::{self, PluginSide};
use crate::cli::{self, Action, FilterFault, Inherited, Listen, LogTo, Plan, program_name};
use crate::registry;
use background::{Split, Word};
use captive::Captive;
use listen::{Reachable, Socket, Sockets};
use process::Identity;
use rbdkit_chain::Chain;
use rbdkit_confine::Grounds;
use rbdkit_sandbox::OnFault;
use rbdkit_server::Stop;
use signals::Signals;

/// Runs the program to its end.
pub fn main() -> ExitCode {
    if let Some(status) = rbdkit_sandbox::serve_if_asked().or_else(|| rbdkit_launcher::serve_if_asked(registry::STARTS))
    {
        return status;
    }
    rbdkit_confine::survive_the_file_size_limit();
    let parent = rustix::process::getppid();
    let mut args = std::env::args_os();
    let program = program_name(args.next().as_deref());
    let inherited = Inherited {
        pid: std::env::var_os("LISTEN_PID"),
        fds: std::env::var_os("LISTEN_FDS"),
        own_pid: std::process::id(),
    };
    let plan = match cli::parse(args.collect(), inherited) {
        Ok(plan) => plan,
        Err(error) => return fail(program, LogTo::Default, &error),
    };
    log::init(program, &plan);
    let log = plan.log;
    if plan.action != Action::Serve {
        return print::print(program, &plan).map_or_else(|error| fail(program, log, &error), |()| ExitCode::SUCCESS);
    }
    let inherited = match listen::inherit(&plan.listen) {
        Ok(sockets) => sockets,
        Err(error) => return fail(program, log, &error),
    };
    if !inherited.is_empty() {
        // The sockets are this process's: nobody that it starts shall take them for its own.
        process::forget_variables(&["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]);
    }
    let word = match plan.foreground {
        true => None,
        false => match background::split() {
            Ok(Split::Serve(word)) => Some(word),
            Ok(Split::Exit(code)) => return code,
            Err(error) => return fail(program, log, &ConfigError::new(format!("cannot fork: {error}"))),
        },
    };
    match serve(program, plan, parent, word, inherited) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(program, log, &error),
    }
}

fn fail(program: &str, log: LogTo, error: &ConfigError) -> ExitCode {
    log::fatal(program, log, error);
    ExitCode::FAILURE
}

/// How long the end waits for threads that are stuck in a system call.
const STUCK: Duration = Duration::from_secs(1);

fn serve(
    program: &'static str,
    plan: Plan,
    parent: Option<Pid>,
    word: Option<Word>,
    inherited: Vec<Socket>,
) -> Result<u8, ConfigError> {
    tracing::debug!("rbdkit {}", print::VERSION);
    process::tame_allocator();
    process::raise_descriptor_limit();
    if plan.exit_with_parent {
        exit_with(parent)?;
    }
    if plan.swap {
        lock_memory()?;
    }
    warn_of_debug_flags(&plan);
    let identity = Identity::look_up(plan.user.as_deref(), plan.group.as_deref())?;
    let pidfile = plan.pidfile.as_deref().map(pidfile::absolute).transpose()?;
    // A plugin that reads standard input or prints must not get between the client and the server.
    let stdio = matches!(plan.listen, Listen::Single).then(take_stdio).transpose()?;
    let fatal = Arc::new(Notify::new());
    let chain = chain(&plan, &fatal)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("rbdkit")
        .on_thread_start(rbdkit_confine::enter)
        .on_thread_unpark(rbdkit_confine::enter)
        .build();
    let runtime = runtime.map_err(|error| ConfigError::new(format!("cannot start threads: {error}")))?;
    let start = Start { program, plan, parent, chain, identity, pidfile, inherited, stdio, word, fatal };
    let status = runtime.block_on(start.run());
    runtime.shutdown_timeout(STUCK);
    status
}

fn exit_with(parent: Option<Pid>) -> Result<(), ConfigError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| ConfigError::new(format!("--exit-with-parent: {error}")))?;
    // It may have exited before it was asked for.
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

fn warn_of_debug_flags(plan: &Plan) {
    for flag in &plan.debug_flags {
        let known = flag.name == "nbdkit" && matches!(flag.flag.as_str(), "backend.datapath" | "backend.controlpath");
        if !known {
            tracing::warn!("-D {}.{}: there is no such debug flag", flag.name, flag.flag);
        }
    }
}

/// Standard input and output, with /dev/null in their place.
fn take_stdio() -> Result<(OwnedFd, OwnedFd), ConfigError> {
    let take = || -> std::io::Result<(OwnedFd, OwnedFd)> {
        let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok((input, output))
    };
    take().map_err(|error| ConfigError::new(format!("--single: standard input and output: {error}")))
}

/// The layers, configured and, but for the filters' own get-ready, ready.
fn chain(plan: &Plan, fatal: &Arc<Notify>) -> Result<Arc<Chain>, ConfigError> {
    let name = plan.plugin.as_deref().unwrap_or_default();
    let info = registry::plugin(name)?;
    let on_fault = match plan.filter_on_fault {
        FilterFault::Error => OnFault::Error,
        FilterFault::Disconnect => OnFault::Disconnect,
        FilterFault::Exit => OnFault::Exit(Arc::clone(fatal)),
    };
    let modules = filters::load(&plan.filters, &plan.filter_limits, on_fault)?;
    let declared: Vec<_> = modules.iter().map(filters::declared).collect();
    let side = PluginSide { name: info.name, magic_key: info.magic_config_key, help: info.help };
    let assignment = assign::assign(&declared, side, &plan.params, &plan.filter_params)?;
    for warning in &assignment.warnings {
        tracing::warn!("{warning}");
    }
    let plugin = plugin(info, &assignment.plugin)?;
    let layers = filters::configure(modules, assignment.filters, &plan.filter_limits)?;
    Ok(Chain::new(layers, info.name, plugin, Pool::default()))
}

fn plugin(info: &PluginInfo, params: &[(String, std::ffi::OsString)]) -> Result<Box<dyn Plugin>, ConfigError> {
    let mut plugin = (info.make)();
    for (key, value) in params {
        tracing::debug!("{}: config key={key}", info.name);
        plugin.config(Param { key, value })?;
    }
    tracing::debug!("{}: config_complete", info.name);
    plugin.config_complete()?;
    tracing::debug!("{}: get_ready", info.name);
    plugin.get_ready()?;
    // The fork was the first of all, so this is the process that serves.
    tracing::debug!("{}: after_fork", info.name);
    plugin.after_fork()?;
    Ok(plugin)
}

/// Everything that the last steps need.
struct Start {
    program: &'static str,
    plan: Plan,
    parent: Option<Pid>,
    chain: Arc<Chain>,
    identity: Identity,
    pidfile: Option<PathBuf>,
    inherited: Vec<Socket>,
    stdio: Option<(OwnedFd, OwnedFd)>,
    word: Option<Word>,
    /// A filter failed, and the operator wants the server to end then.
    fatal: Arc<Notify>,
}

impl Start {
    /// Opens the doors, serves, and answers the exit status.
    async fn run(mut self) -> Result<u8, ConfigError> {
        self.chain.get_ready().await?;
        // Until here a signal ends the process as it ends any other: nothing is there yet that would have to be removed.
        let mut signals = Signals::new()?;
        let mut sockets = listen::listen(&self.plan.listen, std::mem::take(&mut self.inherited))?;
        let opened = self.open(&mut sockets).await;
        if opened.is_err() {
            self.chain.cleanup().await;
        }
        let captive = opened?;
        self.confine(&sockets, captive.is_some()).await;
        let listeners = std::mem::take(&mut sockets.listeners);
        let stop = Stop::new();
        let serving = serving::serve(&self.plan, Arc::clone(&self.chain), listeners, self.stdio.take(), stop.clone());
        match watch(&stop, captive, &mut signals, &self.fatal, serving).await {
            End::Drained { ended, failed } => {
                self.chain.cleanup().await;
                tracing::debug!("the server has ended");
                if failed {
                    return Err(ConfigError::new("a filter failed (--filter-on-fault=exit)"));
                }
                Ok(ended.map_or(0, |ended| captive::exit_status(self.program, ended)))
            }
            End::AtOnce(signal) => {
                tracing::warn!("a second signal: ending without waiting for clients");
                u8::try_from(128 + signal.as_raw()).map_err(|_| ConfigError::new("impossible signal"))
            }
        }
    }

    /// Gives up what serving does not need.
    async fn confine(&self, sockets: &Sockets, captive: bool) {
        if !self.plan.confine {
            tracing::debug!("not confined (--no-confine)");
            return;
        }
        let grounds = Grounds {
            scratch: (!self.plan.filters.is_empty()).then(rbdkit_sandbox::state::scratch_directory),
            private: sockets.private().map(PathBuf::from),
            captive,
        };
        // Not within the macro: what is not logged is not evaluated there.
        let said = rbdkit_confine::raise(self.chain.reach(), &grounds).await;
        tracing::debug!("{said}");
    }

    /// The steps between listening and serving. What they leave behind if one of them fails goes with `sockets`.
    async fn open(&mut self, sockets: &mut Sockets) -> Result<Option<Captive>, ConfigError> {
        let mut captive = None;
        if self.identity.is_another() {
            // The command belongs to whoever called the program, not to whom the server becomes.
            captive = self.start_command(&sockets.reachable)?;
            sockets.give_to(&self.identity)?;
            self.identity.assume()?;
            if self.plan.exit_with_parent {
                // The kernel forgets it when the user changes.
                exit_with(self.parent)?;
            }
        }
        self.chain.after_fork().await?;
        if let Some(file) = &self.pidfile {
            pidfile::write(file)?;
        }
        if captive.is_none() {
            captive = self.start_command(&sockets.reachable)?;
        }
        if self.plan.print_uri {
            print_uri(&sockets.reachable, &self.plan);
        }
        tracing::debug!("listening at {}", sockets.reachable);
        self.go_on_alone()?;
        sockets.keep();
        Ok(captive)
    }

    /// Gives the word, if it is owed.
    fn go_on_alone(&mut self) -> Result<(), ConfigError> {
        let Some(word) = self.word.take() else {
            return Ok(());
        };
        if let Err(error) = word.give(self.plan.verbose) {
            // Whoever would have looked into it is gone.
            self.pidfile.as_deref().map(std::fs::remove_file);
            return Err(ConfigError::new(format!("cannot go into the background: {error}")));
        }
        log::in_background();
        Ok(())
    }

    fn start_command(&self, reachable: &Reachable) -> Result<Option<Captive>, ConfigError> {
        let Some(command) = &self.plan.run else {
            return Ok(None);
        };
        Captive::start(command, reachable, &self.plan.exportname).map(Some)
    }
}

fn print_uri(reachable: &Reachable, plan: &Plan) {
    use std::io::Write;
    let uri = match reachable {
        Reachable::Unix(socket) => uri::unix(socket, &plan.exportname),
        Reachable::Tcp { host, port } => uri::tcp(host, *port, &plan.exportname),
        Reachable::Unknown => return,
    };
    // Nobody reads it: then nobody misses it.
    let _ = writeln!(std::io::stdout(), "{uri}");
}

/// How serving ended.
enum End {
    /// In order. With what became of the command, if there was one, and whether it was because a filter failed.
    Drained { ended: Option<std::io::Result<std::process::ExitStatus>>, failed: bool },
    /// By a second signal.
    AtOnce(Signal),
}

/// Serves until it is drained. The first signal, or the end of the command, begins the drain; a second signal ends it.
///
/// While a command runs, signals are the command's: those from the terminal (SIGINT, SIGQUIT) have reached it already, the others are passed on.
async fn watch(
    stop: &Stop,
    mut captive: Option<Captive>,
    signals: &mut Signals,
    fatal: &Notify,
    serving: impl Future<Output = ()>,
) -> End {
    tokio::pin!(serving);
    let mut ended = None;
    let mut failed = false;
    let mut asked = false;
    loop {
        tokio::select! {
            () = &mut serving => {
                if let Some(mut captive) = captive.take() {
                    // Nothing is served any more: what the command still does is its own affair, but its status is ours.
                    ended = Some(captive.ended().await);
                }
                return End::Drained { ended, failed };
            }
            () = fatal.notified(), if !failed => {
                failed = true;
                stop.stop();
            }
            status = command_ended(&mut captive) => {
                captive = None;
                ended = Some(status);
                stop.stop();
            }
            signal = signals.next() => match (&captive, signal) {
                (Some(_), Signal::INT | Signal::QUIT) => {}
                (Some(captive), signal) if !asked => {
                    asked = true;
                    captive.signal(signal);
                }
                (None, signal) if !stop.is_stopped() => {
                    tracing::debug!("signal {}: stopping", signal.as_raw());
                    stop.stop();
                }
                (_, signal) => return End::AtOnce(signal),
            },
        }
    }
}

async fn command_ended(captive: &mut Option<Captive>) -> std::io::Result<std::process::ExitStatus> {
    match captive {
        Some(captive) => captive.ended().await,
        None => std::future::pending().await,
    }
}
