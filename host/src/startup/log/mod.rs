//! Writes messages in nbdkit's form: `rbdkit: error: ...`, `rbdkit: debug: ...`.
//!
//! Errors, warnings and what a filter says with `log.info` go to standard error, or to the system
//! log once the process is in the background, or to the target of `--log`. Debugging messages
//! (`-v`) always go to standard error. A message is one line of at most [`LONGEST_LINE`] bytes:
//! control characters, which a client can put into an export's name, are escaped. Writing a message
//! never blocks ([`writer`]).

mod file;
mod form;
mod writer;

use std::fmt::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::text::one_line_within;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{LogTo, Plan};
use form::Form;
use writer::Target;

/// Whether the process is in the background, so that errors go to the system log.
static IN_BACKGROUND: AtomicBool = AtomicBool::new(false);

/// From now on errors go to the system log, unless `--log` says otherwise.
pub fn in_background() {
    IN_BACKGROUND.store(true, Ordering::Relaxed);
}

/// The target under which the chain reports every request.
const REQUESTS: &str = "rbdkit::ops";

/// The target of messages about calls of layers that are no requests.
pub const CONTROL: &str = "rbdkit::control";

/// Sets up messages for the process. Returns what they begin with: the program's name and that of
/// `--name`.
///
/// # Errors
/// One line: the file of `--log` cannot be opened.
pub fn init(program: &'static str, plan: &Plan) -> Result<&'static str, ConfigError> {
    let form = Form::new(program, plan);
    let prefix = form.prefix;
    file::open(&plan.log)?;
    let ours = if plan.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let requests = if plan.verbose && shows(plan, "backend.datapath") { LevelFilter::TRACE } else { LevelFilter::OFF };
    let control = if shows(plan, "backend.controlpath") { ours } else { LevelFilter::INFO };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("rbdkit", ours)
        .with_target(CONTROL, control)
        .with_target(REQUESTS, requests);
    let rate = (!plan.verbose).then(|| Rate::new(PER_SECOND, AT_ONCE));
    let messages = Messages { form, to: plan.log.clone(), rate };
    let subscriber = tracing_subscriber::registry().with(messages.with_filter(filter));
    // Fails only if there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    // The default hook writes to standard error itself, which can block.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", describe_panic(panic))));
    Ok(prefix)
}

/// From now on a thread writes the messages, so that no other thread waits for their reader. Call
/// it after the fork, before the first client.
pub fn start_writer(program: &'static str) {
    writer::start(program);
}

/// Waits until all messages are written, but at most for `patience`. Call it before the process
/// ends.
pub fn flush(patience: Duration) {
    writer::flush(patience);
}

/// How long the program waits at its end for a reader of its last messages.
pub const LAST_MESSAGES: Duration = Duration::from_millis(500);

/// The server's debug flags. Each suppresses messages of `-v` if it is 0.
const SERVER_FLAGS: [&str; 2] = ["backend.controlpath", "backend.datapath"];

/// Whether `-D nbdkit.FLAG=0` is not given.
fn shows(plan: &Plan, name: &str) -> bool {
    let flag = plan.debug_flags.iter().rev().find(|flag| flag.name == "nbdkit" && flag.flag == name);
    flag.is_none_or(|flag| flag.value != 0)
}

/// Warns of debug flags that do not exist here. `layers` are the names of the plugin and the
/// filters. A plugin of nbdkit has flags of its own, which its process looks for.
pub fn warn_of_unknown_flags(plan: &Plan, is_foreign: bool, layers: &[String]) {
    for flag in plan.debug_flags.iter().filter(|flag| flag.name == "nbdkit" || !is_foreign) {
        let (name, flag) = (&flag.name, &flag.flag);
        match name.as_str() {
            "nbdkit" if SERVER_FLAGS.contains(&flag.as_str()) => {}
            "nbdkit" => {
                let known = SERVER_FLAGS.join(", nbdkit.");
                tracing::warn!("-D nbdkit.{flag}: there is no such debug flag (there are nbdkit.{known})");
            }
            name if layers.iter().any(|layer| layer == name) => {
                tracing::warn!("-D {name}.{flag}: {name} has no such debug flag")
            }
            name => tracing::warn!("-D {name}.{flag}: neither the plugin nor a filter is called {name}"),
        }
    }
}

/// Reports why the program ends.
pub fn fatal(program: &str, log: &LogTo, message: &dyn fmt::Display) {
    let text = one_line_within(&format!("error: {message}"), LONGEST_LINE);
    match log {
        LogTo::File(_) | LogTo::Descriptor(_) => to(Target::LogFile, program, &text),
        LogTo::Syslog => to_syslog(program, ERR, &text),
        _ if IN_BACKGROUND.load(Ordering::Relaxed) => to_syslog(program, ERR, &text),
        _ => {}
    }
    to(Target::StandardError, program, &text);
}

/// Reports something that is not an error on standard error, also without `-v`.
pub fn say(program: &str, message: &dyn fmt::Display) {
    to(Target::StandardError, program, &one_line_within(&message.to_string(), LONGEST_LINE));
}

fn describe_panic(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
    let text = panic.payload_as_str().unwrap_or("no message");
    format!("a thread panicked{place}: {text}")
}

/// The most bytes of a message. With the program's name before it, a line fits into one write to a
/// pipe (4096 bytes). It also holds a path of some thousand bytes.
const LONGEST_LINE: usize = 4000;

/// A message counts as one line for each of these bytes that it begins, so that long messages do
/// not evade the limit on lines.
const COUNTED_LENGTH: usize = 256;

/// Errors and warnings that are written at once. After them [`PER_SECOND`] applies. With `-v` there
/// is no limit. One client or one filter has lower limits of its own; this limit is for many of
/// them together.
const AT_ONCE: u32 = 2000;
/// Errors and warnings a second, once [`AT_ONCE`] are written.
const PER_SECOND: u32 = 200;

struct Messages {
    form: Form,
    to: LogTo,
    rate: Option<Rate>,
}

impl Messages {
    fn put(&self, level: Level, text: &str) {
        let priority = match level {
            Level::ERROR => ERR,
            Level::WARN => WARNING,
            _ => INFO,
        };
        let prefix = self.form.prefix;
        match self.to {
            // Debugging messages, which only exist with -v.
            _ if level > Level::INFO => to(Target::StandardError, prefix, text),
            LogTo::Null => {}
            LogTo::Syslog => to_syslog(prefix, priority, text),
            LogTo::Default if IN_BACKGROUND.load(Ordering::Relaxed) => to_syslog(prefix, priority, text),
            LogTo::Default | LogTo::Stderr => to(Target::StandardError, prefix, text),
            LogTo::File(_) | LogTo::Descriptor(_) => to(Target::LogFile, prefix, text),
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
            Level::INFO => "info",
            _ => "debug",
        };
        let mut text = Text::default();
        event.record(&mut text);
        let line = one_line_within(&self.form.line(word, text.connection, &text.text), LONGEST_LINE);
        if let Some(rate) = &self.rate {
            rate.charge(line.len() / COUNTED_LENGTH);
        }
        self.put(level, &line);
    }
}

/// The text of a message, as far as a line can show it.
#[derive(Default)]
struct Text {
    text: String,
    /// The connection that the message is about.
    connection: Option<u64>,
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte more than a line has, so that the cut shows.
        let room = (LONGEST_LINE + 1).saturating_sub(self.text.len());
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        Ok(())
    }
}

impl Visit for Text {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "connection" => self.connection = Some(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self, "{value:?}"),
            name => write!(self, " {name}={value:?}"),
        };
    }
}

fn to(target: Target, program: &str, text: &str) {
    writer::write(target, format!("{program}: {text}\n").into_bytes());
}

/// Priorities of syslog(3), for the facility "daemon" (3 times 8).
const ERR: u8 = 24 + 3;
const WARNING: u8 = 24 + 4;
const INFO: u8 = 24 + 6;

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
    fn a_message_is_one_line_of_bounded_length_whatever_is_in_it() {
        let mut text = Text::default();
        for part in ["export 'a\nb\u{1b}[2J' é", &"\u{1}".repeat(100_000), "end"] {
            write!(text, "{part}").unwrap();
        }
        assert!((LONGEST_LINE..=LONGEST_LINE + 1).contains(&text.text.len()));
        let line = one_line_within(&text.text, LONGEST_LINE);
        assert!(line.starts_with("export 'a\\nb\\u{1b}[2J' é\\u{1}"), "{line}");
        assert!(line.ends_with("...") && line.len() <= LONGEST_LINE + 3, "{}", line.len());
    }
}
