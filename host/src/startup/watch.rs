//! Serving until a signal, the end of the command of `--run`, the wish of a layer, or a filter's
//! fault ends it.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use rbdkit_server::Stop;
use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use super::captive::Captive;
use super::filters::Ends;
use super::signals::Signals;

/// How long the command of `--run` may take to end after SIGTERM or SIGHUP. Then the server stops
/// without it. With this time, the server ends within 5 s of the signal.
const COMMAND_GRACE: Duration = Duration::from_millis(1500);

/// How serving ended.
pub struct End {
    /// How the command ended, if there was one.
    pub command: Option<CommandEnd>,
    /// A filter's fault ended the server.
    pub failed: bool,
}

/// How the command of `--run` ended.
pub enum CommandEnd {
    /// It has ended.
    Ended(io::Result<ExitStatus>),
    /// It ignored this signal and still runs.
    Ignored(Signal),
}

/// Serves until all requests have been answered after a signal, the end of the command, the wish of
/// a layer (a filter's `server.shutdown`, the plugin's own; both do what SIGTERM does) or a
/// filter's fault. [`Signals`] passes signals on to the command while it runs.
pub async fn watch(
    stop: &Stop,
    mut captive: Option<Captive>,
    signals: &mut Signals,
    ends: &Ends,
    serving: impl Future<Output = ()>,
) -> End {
    tokio::pin!(serving);
    let mut end = End { command: None, failed: false };
    let mut has_ended = false;
    // When to leave the command behind, and what it ignored.
    let mut leave: Option<(Instant, Signal)> = None;
    while !has_ended || captive.is_some() {
        let late = leave.map(|(time, _)| time);
        tokio::select! {
            () = &mut serving, if !has_ended => {
                has_ended = true;
                if captive.is_some() && leave.is_none() {
                    // The command may continue without the server, and its status becomes ours.
                    signals.ending().only_waits_for_the_command();
                }
            }
            () = ends.fatal.notified(), if !end.failed => {
                end.failed = true;
                signals.ending().ask();
                stop.stop();
            }
            () = ends.shutdown.notified(), if leave.is_none() => {
                tracing::debug!("a layer has asked the server to end: stopping");
                signals.ending().ask();
                match &captive {
                    Some(command) => {
                        command.signal(Signal::TERM);
                        leave = Some((Instant::now() + COMMAND_GRACE, Signal::TERM));
                    }
                    None => stop.stop(),
                }
            }
            status = command_ended(&mut captive) => {
                captive = None;
                end.command = Some(CommandEnd::Ended(status));
                signals.ending().forget_command();
                signals.ending().ask();
                stop.stop();
            }
            () = at(late) => {
                if let (Some(command), Some((_, signal))) = (captive.take(), leave.take()) {
                    tracing::warn!("--run: the command has not ended in {COMMAND_GRACE:?}: the server ends without it");
                    command.leave();
                    end.command = Some(CommandEnd::Ignored(signal));
                }
                signals.ending().forget_command();
                signals.ending().ask();
                stop.stop();
            }
            received = signals.next() => match &captive {
                Some(command) => {
                    if !received.passed_on {
                        command.signal(received.signal);
                    }
                    leave = Some((Instant::now() + COMMAND_GRACE, received.signal));
                }
                None => {
                    tracing::debug!("signal {}: stopping", received.signal.as_raw());
                    stop.stop();
                }
            },
        }
    }
    end
}

async fn command_ended(captive: &mut Option<Captive>) -> io::Result<ExitStatus> {
    match captive {
        Some(captive) => captive.ended().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
