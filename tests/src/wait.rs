//! Waiting with a deadline: a test that would hang fails instead, and says what it waited for.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for anything before it fails. What tests wait for takes milliseconds;
/// a minute is enough on a machine that runs all tests at once.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How long to sleep between two looks at something that sends no event.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The time at which a wait is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// [`TIMEOUT`] from now.
    pub fn new() -> Deadline {
        Deadline::after(TIMEOUT)
    }

    /// This long from now.
    pub fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now() + limit)
    }

    /// Whether it has passed.
    pub fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// Fails the test if the deadline has passed. `what` is what the test waits for.
    ///
    /// # Panics
    /// If the deadline has passed.
    pub fn check(self, what: &str) {
        assert!(!self.is_over(), "timed out waiting for this: {what}");
    }
}

impl Default for Deadline {
    fn default() -> Deadline {
        Deadline::new()
    }
}

/// Waits until `condition` holds, and says whether it did before the deadline.
pub fn holds_before(deadline: Deadline, mut condition: impl FnMut() -> bool) -> bool {
    while !condition() {
        if deadline.is_over() {
            return false;
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
    true
}

/// Waits until `condition` holds, for at most [`TIMEOUT`].
///
/// # Panics
/// With `what`, if it does not hold in time.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    within(TIMEOUT, what, condition);
}

/// Waits until `condition` holds, for at most `limit`.
///
/// # Panics
/// With `what`, if it does not hold in time.
pub fn within(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_before(Deadline::after(limit), condition), "timed out after {limit:?} waiting for this: {what}");
}

/// Runs a program to its end, for at most [`TIMEOUT`], with no input.
///
/// # Panics
/// If it cannot be started or does not end in time.
pub fn output(command: &mut Command) -> Output {
    output_within(TIMEOUT, command)
}

/// Runs a program to its end, for at most `limit`, with no input.
///
/// # Panics
/// If it cannot be started or does not end in time.
pub fn output_within(limit: Duration, command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error} (see tests/setup.sh)"));
    finish(limit, &shown, child)
}

/// Waits for the end of a program for at most `limit` and collects what it writes into its pipes.
///
/// # Panics
/// With `what`, if the program does not end in time. It is killed then.
pub fn finish(limit: Duration, what: &str, child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    match receive.recv_timeout(limit) {
        Ok(output) => output.unwrap_or_else(|error| panic!("{what}: {error}")),
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            panic!("did not end within {limit:?}: {what}");
        }
    }
}

/// The lines of a pipe. They are read until its end, so that the writer never blocks.
pub struct Lines(Receiver<String>);

impl Lines {
    /// Begins to read.
    pub fn of(pipe: impl Read + Send + 'static) -> Lines {
        let (send, receive) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                // Nobody may want the rest, but it has to be read.
                let _ = send.send(line);
            }
        });
        Lines(receive)
    }

    /// The next line, for which it waits for at most [`TIMEOUT`]. `None` at the end.
    ///
    /// # Panics
    /// With `what`, if neither a line nor the end comes in time.
    pub fn next(&self, what: &str) -> Option<String> {
        match self.0.recv_timeout(TIMEOUT) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("timed out after {TIMEOUT:?} waiting for a line: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn what_holds_is_not_waited_for() {
        within(Duration::ZERO, "nothing", || true);
        let mut looks = 0;
        until("the third look", || {
            looks += 1;
            looks == 3
        });
    }

    #[test]
    #[should_panic(expected = "timed out after 20ms waiting for this: the impossible")]
    fn a_timeout_names_what_was_awaited() {
        within(SHORT, "the impossible", || false);
    }

    #[test]
    #[should_panic(expected = "did not end within 20ms")]
    fn a_program_that_does_not_end_is_killed() {
        output_within(SHORT, Command::new("sleep").arg("1000"));
    }

    #[test]
    fn lines_come_until_the_end() {
        let lines = Lines::of(&b"one\ntwo"[..]);
        assert_eq!(
            [lines.next("one"), lines.next("two"), lines.next("the end")],
            [Some("one".into()), Some("two".into()), None]
        );
    }
}
