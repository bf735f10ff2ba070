//! Serving until a signal, the end of the command of `--run`, or a filter's fault ends it.

use std::io;
use std::process::ExitStatus;

use rbdkit_server::Stop;
use rustix::process::Signal;
use tokio::sync::Notify;

use super::captive::Captive;
use super::signals::Signals;

/// How serving ended.
pub enum End {
    /// All requests have been answered.
    Drained {
        /// How the command ended, if there was one.
        ended: Option<io::Result<ExitStatus>>,
        /// A filter's fault ended the server.
        failed: bool,
    },
    /// A second signal ended the server.
    AtOnce(Signal),
}

/// Serves until all requests have been answered after the first signal or the end of the command. A
/// second signal ends it at once.
///
/// While a command runs, signals are meant for the command. Those from the terminal (SIGINT,
/// SIGQUIT) have reached it already; the others are passed on.
pub async fn watch(
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
                    // The command may continue without the server, and its status becomes ours.
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

async fn command_ended(captive: &mut Option<Captive>) -> io::Result<ExitStatus> {
    match captive {
        Some(captive) => captive.ended().await,
        None => std::future::pending().await,
    }
}
