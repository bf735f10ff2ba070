//! Writes messages in nbdkit's form: `rbdkit: error: ...`, `rbdkit: debug: ...`.
//!
//! Errors and warnings go to standard error, or to the system log once the process is in the
//! background, or to the target of `--log`. Debugging messages (`-v`) always go to standard error.
//! A message is one line: control characters, which a client can put into an export's name, are
//! escaped.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::text::one_line;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{LogTo, Plan};

/// Whether the process is in the background, so that errors go to the system log.
static IN_BACKGROUND: AtomicBool = AtomicBool::new(false);

/// From now on errors go to the system log, unless `--log` says otherwise.
pub fn in_background() {
    IN_BACKGROUND.store(true, Ordering::Relaxed);
}

/// The target under which the chain reports every request.
const REQUESTS: &str = "rbdkit::ops";

/// Sets up messages for the process.
pub fn init(program: &'static str, plan: &Plan) {
    let ours = if plan.verbose { LevelFilter::DEBUG } else { LevelFilter::WARN };
    let requests = if plan.verbose && shows_requests(plan) { LevelFilter::TRACE } else { LevelFilter::OFF };
    let filter =
        Targets::new().with_default(LevelFilter::WARN).with_target("rbdkit", ours).with_target(REQUESTS, requests);
    let rate = (!plan.verbose).then(|| Rate::new(PER_SECOND, AT_ONCE));
    let messages = Messages { program, to: plan.log, rate };
    let subscriber = tracing_subscriber::registry().with(messages.with_filter(filter));
    // Fails only if there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// `-D nbdkit.backend.datapath=0` suppresses the messages about single requests.
fn shows_requests(plan: &Plan) -> bool {
    let flag = plan.debug_flags.iter().rev().find(|flag| flag.name == "nbdkit" && flag.flag == "backend.datapath");
    flag.is_none_or(|flag| flag.value != 0)
}

/// Warns of debug flags that do not exist here.
pub fn warn_of_unknown_flags(plan: &Plan) {
    for flag in &plan.debug_flags {
        let known = flag.name == "nbdkit" && matches!(flag.flag.as_str(), "backend.datapath" | "backend.controlpath");
        if !known {
            tracing::warn!("-D {}.{}: there is no such debug flag", flag.name, flag.flag);
        }
    }
}

/// Reports why the program ends.
pub fn fatal(program: &str, log: LogTo, message: &dyn fmt::Display) {
    let text = one_line(&format!("error: {message}"));
    if log == LogTo::Syslog || IN_BACKGROUND.load(Ordering::Relaxed) {
        to_syslog(program, ERR, &text);
    }
    to_stderr(program, &text);
}

/// Errors and warnings that are written at once. After them [`PER_SECOND`] applies. With `-v` there
/// is no limit. One client or one filter has lower limits of its own; this limit is for many of
/// them together.
const AT_ONCE: u32 = 2000;
/// Errors and warnings a second, once [`AT_ONCE`] are written.
const PER_SECOND: u32 = 200;

struct Messages {
    program: &'static str,
    to: LogTo,
    rate: Option<Rate>,
}

impl Messages {
    fn put(&self, level: Level, text: &str) {
        let priority = if level == Level::ERROR { ERR } else { WARNING };
        let to_the_system = match self.to {
            _ if level > Level::WARN => false,
            LogTo::Null => return,
            LogTo::Stderr => false,
            LogTo::Syslog => true,
            LogTo::Default => IN_BACKGROUND.load(Ordering::Relaxed),
        };
        match to_the_system {
            true => to_syslog(self.program, priority, text),
            false => to_stderr(self.program, text),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Messages {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        match self.rate.as_ref().map(Rate::admit) {
            None | Some(Some(0)) => {}
            Some(Some(dropped)) => self.put(Level::WARN, &format!("warning: {dropped} messages were dropped")),
            Some(None) => return,
        }
        let word = match level {
            Level::ERROR => "error",
            Level::WARN => "warning",
            _ => "debug",
        };
        let mut text = Text(format!("{word}: "));
        event.record(&mut text);
        self.put(level, &one_line(&text.0));
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// One write for each line, so that the lines of several threads and processes do not mix. A
/// failure cannot be reported anywhere.
fn to_stderr(program: &str, text: &str) {
    let _ = std::io::stderr().write_all(format!("{program}: {text}\n").as_bytes());
}

/// Priorities of syslog(3), for the facility "daemon" (3 times 8).
const ERR: u8 = 24 + 3;
const WARNING: u8 = 24 + 4;

/// The system log receives datagrams at a well-known socket. Without that socket the message is
/// lost, which cannot be reported anywhere.
fn to_syslog(program: &str, priority: u8, text: &str) {
    let message = format!("<{priority}>{program}[{}]: {text}", std::process::id());
    let _ = UnixDatagram::unbound().and_then(|socket| {
        // A system log that does not read must not stop the server.
        socket.set_nonblocking(true)?;
        socket.send_to(message.as_bytes(), "/dev/log")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line("export 'a\nb\u{1b}[2J' é"), "export 'a\\nb\\u{1b}[2J' é");
    }
}
