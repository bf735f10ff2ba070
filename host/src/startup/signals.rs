//! The signals that end the server, received on a thread of their own.
//!
//! The first signal asks the server to stop. The second one ends the process at once. That has to
//! work whatever the rest of the process does: a filter that spins, a plugin that blocks every
//! thread of the runtime, a layer's cleanup that hangs. So this thread shares nothing with the
//! server's runtime and takes no lock that others hold for long. It also ends the process if the
//! server was asked to stop and has not ended in time.
//!
//! While a command of `--run` runs, signals are meant for the command. Those of the terminal
//! (SIGINT, SIGQUIT) have reached it already. SIGTERM and SIGHUP are passed on to it.
//!
//! With `--reload`, SIGHUP is not one of these signals: it makes the server read the files of its
//! filters again.

use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_chain::{Chain, WriteWatch};
use rbdkit_plugin_api::{ConfigError, Flag, StopScope, lock};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::leftovers::Leftovers;
use super::log;
use super::process;

/// How long the process may take to end after it was asked to, while the plugin writes nothing. The
/// steps of an orderly end take 4 s at most, so this ends only a process whose runtime is blocked.
const END_TIMEOUT: Duration = Duration::from_millis(4300);

/// How long without a write until the plugin counts as not writing: between two writes a filter
/// computes and reads.
const WRITE_PAUSE: Duration = Duration::from_secs(2);

/// How long the process may take to end while the plugin writes: more than the server's own limit
/// (30 s).
const WRITING_TIMEOUT: Duration = Duration::from_secs(40);

/// Two signals within this time may be received in another order than they were sent in.
const SAME_TIME: Duration = Duration::from_millis(100);

/// How often to check whether the process takes too long to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long an end at once may take to remove files, kill programs and write its message.
const LAST_ACTS: Duration = Duration::from_millis(200);

/// A signal that asks the server to stop.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// It was passed on to the command of `--run`.
    pub passed_on: bool,
}

/// The main task's side of the thread.
pub struct Signals {
    received: UnboundedReceiver<Received>,
    /// Received while the server started.
    early: Option<Received>,
    ending: Arc<Ending>,
}

/// What the thread knows of the server.
pub struct Ending {
    chain: Arc<Chain>,
    /// When the server was last asked to stop.
    asked: Mutex<Option<Instant>>,
    /// The command of `--run`, while it runs.
    command: Mutex<Option<Arc<OwnedFd>>>,
    leftovers: Mutex<Leftovers>,
    confine: Flag,
    confined: Flag,
    /// An end at once has begun.
    at_once: Flag,
    /// What SIGHUP wakes with `--reload`. None: SIGHUP ends the server, as in nbdkit.
    reload: Option<Arc<Notify>>,
}

impl Signals {
    /// Receives SIGTERM, SIGINT, SIGQUIT and SIGHUP from now on. Has to be called before the first
    /// socket exists, so that no later signal is lost. (Rust's runtime ignores SIGPIPE.) With
    /// `reload`, SIGHUP does not end the server but wakes the reload.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn start(chain: &Arc<Chain>, reload: Option<Arc<Notify>>) -> Result<Signals, ConfigError> {
        let failed = |error: std::io::Error| ConfigError::new(format!("cannot wait for signals: {error}"));
        let ending = Arc::new(Ending {
            chain: Arc::clone(chain),
            asked: Mutex::default(),
            command: Mutex::default(),
            leftovers: Mutex::default(),
            confine: Flag::default(),
            confined: Flag::default(),
            at_once: Flag::default(),
            reload,
        });
        let (send, received) = unbounded_channel();
        let (ready, started) = channel();
        let ours = Arc::clone(&ending);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let streams = runtime.and_then(|runtime| {
                let streams = runtime.block_on(async { Streams::new() })?;
                Ok((runtime, streams))
            });
            let (runtime, streams) = match streams {
                Ok(streams) => streams,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            runtime.block_on(receive(streams, &ours, &send));
        };
        std::thread::Builder::new().name("rbdkit-signals".into()).spawn(work).map_err(failed)?;
        started.recv().map_err(std::io::Error::other).flatten().map_err(failed)?;
        Ok(Signals { received, early: None, ending })
    }

    /// Waits for the next signal that asks the server to stop. The future may be dropped and
    /// created again.
    pub async fn next(&mut self) -> Received {
        match self.early.take() {
            Some(received) => received,
            None => match self.received.recv().await {
                Some(received) => received,
                // The thread never ends.
                None => std::future::pending().await,
            },
        }
    }

    /// Waits for a signal, and then for `grace`. [`Signals::next`] returns the signal again.
    pub async fn late(&mut self, grace: Duration) -> Signal {
        let received = self.next().await;
        self.early = Some(received);
        sleep(grace).await;
        received.signal
    }

    /// What the thread knows of the server.
    pub fn ending(&self) -> &Arc<Ending> {
        &self.ending
    }
}

impl Ending {
    /// The server begins to stop: from now on a signal ends it at once.
    pub fn ask(&self) {
        *lock(&self.asked) = Some(Instant::now());
    }

    /// The server has stopped, and only its command still runs: the next signal is for the command.
    pub fn only_waits_for_the_command(&self) {
        *lock(&self.asked) = None;
    }

    /// When the server was asked to stop, if it was.
    pub fn asked(&self) -> Option<Instant> {
        *lock(&self.asked)
    }

    /// Starts the command of `--run`. A signal that comes meanwhile waits until it is known whether
    /// there is a command, and which process it is.
    pub fn start_command<T, E>(&self, start: impl FnOnce() -> Result<(T, Option<Arc<OwnedFd>>), E>) -> Result<T, E> {
        let mut command = lock(&self.command);
        let (started, process) = start()?;
        *command = process;
        Ok(started)
    }

    /// The command of `--run` has ended, or the server no longer waits for it.
    pub fn forget_command(&self) {
        *lock(&self.command) = None;
    }

    /// What an end at once removes.
    pub fn set_leftovers(&self, leftovers: Leftovers) {
        *lock(&self.leftovers) = leftovers;
    }

    /// Makes files that an end at once removes. It waits until `make` returns, so `make` must not
    /// wait for anything.
    pub fn make_leftovers<T, E>(&self, make: impl FnOnce() -> Result<(T, Leftovers), E>) -> Result<T, E> {
        let mut leftovers = lock(&self.leftovers);
        let (made, files) = make()?;
        *leftovers = files;
        Ok(made)
    }

    /// The process was confined: the thread confines itself.
    pub async fn confine(&self) {
        self.confine.set();
        self.confined.wait().await;
    }

    /// Decides what a signal does. None: it ends the server at once.
    fn receive(&self, signal: Signal) -> Option<Option<Received>> {
        let command = lock(&self.command).clone();
        let of_terminal = command.is_some() && matches!(signal, Signal::INT | Signal::QUIT);
        let mut asked = lock(&self.asked);
        if of_terminal && asked.is_none_or(|asked| asked.elapsed() < SAME_TIME) {
            return Some(None);
        }
        if asked.is_some() {
            return None;
        }
        *asked = Some(Instant::now());
        if let Some(command) = &command {
            // If the command has just ended, nothing happens.
            let _ = pidfd_send_signal(&**command, signal);
        }
        Some(Some(Received { signal, passed_on: command.is_some() }))
    }

    /// Returns once the server was asked to stop and takes too long.
    async fn overdue(&self) {
        let mut watch = WriteWatch::new(self.chain.writes());
        loop {
            sleep(POLL_INTERVAL).await;
            let Some(asked) = self.asked() else { continue };
            let writes = watch.last_write().is_some_and(|last| last.elapsed() < WRITE_PAUSE);
            if asked.elapsed() >= if writes { WRITING_TIMEOUT } else { END_TIMEOUT } {
                return;
            }
        }
    }

    /// The server has stopped by itself. Never returns if an end at once has begun: what that gives
    /// up can let the server stop, and the process has to end with its status all the same.
    pub async fn leave_it_to_the_end_at_once(&self) {
        if self.at_once.is_set() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends the process without waiting for anything.
    fn end_at_once(self: &Arc<Self>, status: u8, say: impl FnOnce() + Send + 'static) -> ! {
        self.at_once.set();
        let ending = Arc::clone(self);
        let (done, wait) = channel();
        // On another thread, because each of these could wait: for a lock, a disk, or a full pipe.
        let acts = std::thread::Builder::new().name("rbdkit-end".into()).spawn(move || {
            lock(&ending.leftovers).remove();
            ending.chain.abandon(StopScope::Everything);
            say();
            log::flush(log::LAST_MESSAGES);
            let _ = done.send(());
        });
        if acts.is_ok() {
            let _ = wait.recv_timeout(LAST_ACTS);
        }
        process::exit_at_once(status)
    }
}

/// The thread: receives signals as long as the process lives.
async fn receive(mut streams: Streams, ending: &Arc<Ending>, main: &UnboundedSender<Received>) {
    let overdue = ending.overdue();
    tokio::pin!(overdue);
    loop {
        let signal = tokio::select! {
            biased;
            signal = streams.next() => signal,
            () = ending.confine.wait(), if !ending.confined.is_set() => {
                rbdkit_confine::confine_thread();
                ending.confined.set();
                continue;
            }
            () = &mut overdue => {
                ending.end_at_once(1, || tracing::error!("the server does not end in time: it is ended"));
            }
        };
        if signal == Signal::HUP
            && let Some(reload) = &ending.reload
        {
            reload.notify_one();
            continue;
        }
        match ending.receive(signal) {
            Some(Some(received)) => drop(main.send(received)),
            Some(None) => {}
            None => {
                let status = u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX);
                ending.end_at_once(status, || {
                    tracing::warn!("a second signal: ending without waiting for clients");
                });
            }
        }
    }
}

struct Streams {
    term: Stream,
    int: Stream,
    quit: Stream,
    hup: Stream,
}

impl Streams {
    fn new() -> std::io::Result<Streams> {
        Ok(Streams {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. The future may be dropped and created again.
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::TERM,
            _ = self.int.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.hup.recv() => Signal::HUP,
        }
    }
}
