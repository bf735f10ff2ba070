//! Ends the server after an event: a file appears or goes, a pipe closes, a process ends, or a
//! command of the operator says so.
//!
//! After the event no client may connect, and the server ends when no client is connected any more.
//! That an event has happened is in a slot of the host, because any instance may be called.

mod conditions;

use std::time::Duration;

use conditions::{Condition, Verdict};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The filter's parameters.
    pub struct Settings {
        /// End when this file is created.
        exit_when_file_created: Vec<Watch>,
        /// End when this file is deleted.
        exit_when_file_deleted: Vec<Watch>,
        /// End when the other end of this pipe is closed, a descriptor that the server inherits.
        exit_when_pipe_closed: Vec<Descriptor>,
        /// End when this process exits.
        exit_when_process_exits: Vec<Process>,
        /// End when this shell command exits with status 88.
        exit_when_script: Vec<Script>,
        /// Seconds between two looks for events of which the kernel tells nothing.
        exit_when_poll: u32 = 60,
    }
}

/// Word a is 1 once an event has happened.
const HAPPENED: slots::Slot = slots::Slot { scope: Scope::Server, index: 0 };

/// The alarm for the next look.
const LOOK: u32 = 0;

/// The filter.
pub struct Exitwhen {
    settings: Settings,
}

impl Exitwhen {
    /// Whether an event has happened by now. Runs the commands, so it may take as long as they do.
    fn has_happened(&self) -> bool {
        HAPPENED.get().a == 1 || self.is_seen_now() || self.settings.exit_when_script.iter().any(says_so)
    }

    /// Looks at everything but the commands.
    fn is_seen_now(&self) -> bool {
        let settings = &self.settings;
        settings.exit_when_file_created.iter().any(|file| Condition::Created.is_met(file.holds()))
            || settings.exit_when_file_deleted.iter().any(|file| Condition::Deleted.is_met(file.holds()))
            || settings.exit_when_pipe_closed.iter().any(|pipe| Condition::Closed.is_met(pipe.holds()))
            || settings.exit_when_process_exits.iter().any(|process| Condition::Exited.is_met(process.holds()))
    }

    fn waits_for_something(&self) -> bool {
        let settings = &self.settings;
        !(settings.exit_when_file_created.is_empty()
            && settings.exit_when_file_deleted.is_empty()
            && settings.exit_when_pipe_closed.is_empty()
            && settings.exit_when_process_exits.is_empty()
            && settings.exit_when_script.is_empty())
    }

    /// An event has happened: the server ends once no client is connected.
    fn end_if_idle(&self) {
        let old = HAPPENED.get();
        if old.a != 1 && HAPPENED.replace(old, [1, 0, 0, 0]) {
            info!("the event has happened: the server ends when no client is connected");
        }
        if server::connections() == 0 {
            // Without the right to do so the host has told the operator how to grant it.
            let _ = server::shutdown();
        }
    }

    /// Looks, and sets the alarm for the next time.
    fn look(&self) {
        if self.has_happened() {
            self.end_if_idle();
        } else if self.waits_for_something() {
            let _ = alarms::set_after(Scope::Server, LOOK, Duration::from_secs(self.settings.exit_when_poll.into()));
        }
    }
}

/// Whether a command says that its event has happened.
fn says_so(command: &Script) -> bool {
    // The host logs why a command could not run.
    let Ok((status, _)) = command.run(&[]) else { return false };
    let verdict = Verdict::of(status);
    if verdict == Verdict::Failed {
        error!(
            "exit-when-script: the command ended with status {status}, which is neither 0 nor {}",
            conditions::HAPPENED
        );
    }
    verdict == Verdict::Happened
}

impl Filter for Exitwhen {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("exitwhen", env!("CARGO_PKG_VERSION"), "ends the server after an event")
            .help("After the event no client may connect, and the server ends when the last one has left.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        match settings.exit_when_poll {
            0 => Err("exit-when-poll=0: has to be 1 or more".into()),
            _ => Ok(Exitwhen { settings }),
        }
    }
}

impl Lifecycle for Exitwhen {
    fn after_fork(&self) -> Result<(), String> {
        if self.is_seen_now() {
            self.end_if_idle();
        } else if self.waits_for_something() {
            // A command that takes long must not delay the start.
            let _ = alarms::set_after(Scope::Server, LOOK, Duration::ZERO);
        }
        Ok(())
    }
}

impl Admission for Exitwhen {
    fn preconnect(&self, readonly: bool) -> Result<(), Errno> {
        if self.has_happened() {
            self.end_if_idle();
            return Err(Errno::Eshutdown);
        }
        next_open::preconnect(readonly)
    }
}

impl OnAlarm for Exitwhen {
    fn alarm(&self, _scope: Scope, _id: u32) {
        self.look();
    }
}

impl OnWatch for Exitwhen {
    fn changed(&self, param: &str, _nth: u32, holds: bool) {
        if Condition::of(param).is_some_and(|condition| condition.is_met(holds)) {
            self.end_if_idle();
        }
    }
}

impl OnConnection for Exitwhen {
    fn opened(&self, _connection: u64) {}

    fn closed(&self, _connection: u64) {
        if self.has_happened() {
            self.end_if_idle();
        }
    }
}

rbdkit_filter_sdk::export!(Exitwhen: lifecycle, admission, on_alarm, on_watch, on_connection);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    fn serve(words: &[&str]) -> Served<Exitwhen> {
        Host::new(Disk::pattern(512)).file("/there", b"").serve(words).unwrap()
    }

    #[test]
    fn the_server_ends_at_once_if_nobody_is_connected() {
        let host = serve(&["exit-when-file-created=/stop", "exit-when-file-deleted=/there"]);
        assert!(!host.shutdown_asked());
        host.set_file("/stop", Some(b""));
        assert!(host.shutdown_asked());
        let host = serve(&["exit-when-file-created=/stop", "exit-when-file-deleted=/there"]);
        host.set_file("/there", None);
        assert!(host.shutdown_asked());
        let host = serve(&["exit-when-pipe-closed=3", "exit-when-pipe-closed=4"]);
        host.end("exit-when-pipe-closed", 1);
        assert!(host.shutdown_asked());
        let host = serve(&["exit-when-process-exits=17"]);
        host.end("exit-when-process-exits", 0);
        assert!(host.shutdown_asked());
    }

    #[test]
    fn clients_that_are_connected_may_stay_and_no_new_one_may_connect() {
        let host = serve(&["exit-when-file-created=/stop"]);
        let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
        host.set_file("/stop", Some(b""));
        assert!(!host.shutdown_asked());
        assert_eq!(host.connect().err(), Some(Errno::Eshutdown));
        assert_eq!(one.pread(5, 7).unwrap(), host.disk()[5..12]);
        one.close().unwrap();
        assert!(!host.shutdown_asked());
        // What has happened stays so.
        host.set_file("/stop", None);
        two.close().unwrap();
        assert!(host.shutdown_asked());
    }

    #[test]
    fn what_has_happened_before_the_start_ends_the_server_at_once() {
        assert!(serve(&["exit-when-file-created=/there"]).shutdown_asked());
        assert!(serve(&["exit-when-file-deleted=/missing"]).shutdown_asked());
        assert!(!serve(&["exit-when-file-deleted=/there"]).shutdown_asked());
    }

    #[test]
    fn a_command_is_asked_at_the_start_by_and_by_and_when_clients_come_and_go() {
        let command = |status: i32, words: &[&str]| {
            let host = Host::new(Disk::pattern(512)).script("ask", status, b"ignored");
            host.serve::<Exitwhen>(&[&["exit-when-script=ask"], words].concat()).unwrap()
        };
        let host = command(0, &["exit-when-poll=7"]);
        host.pass_time(0);
        assert_eq!(host.take_calls(), ["script ask"], "at the start");
        host.pass_time(21_000_000_000);
        assert_eq!(host.take_calls(), ["script ask"; 3], "every seven seconds");
        host.connect().unwrap().close().unwrap();
        let calls = host.take_calls();
        assert_eq!(calls.iter().filter(|call| *call == "script ask").count(), 2, "{calls:?}");
        assert!(!host.shutdown_asked());
        let host = command(88, &[]);
        assert!(!host.shutdown_asked(), "the start does not wait for the command");
        host.pass_time(0);
        assert!(host.shutdown_asked());
        let host = command(88, &[]);
        assert_eq!(host.connect().err(), Some(Errno::Eshutdown));
        assert!(host.shutdown_asked());
    }

    #[test]
    fn a_command_that_fails_is_logged_and_ends_nothing() {
        let host = Host::new(Disk::pattern(512)).script("ask", 87, b"").serve::<Exitwhen>(&["exit-when-script=ask"]);
        let host = host.unwrap();
        host.pass_time(0);
        let line = "error: exit-when-script: the command ended with status 87, which is neither 0 nor 88";
        assert_eq!(host.take_log(), [line]);
        host.fail_next("script", Errno::Etimedout);
        host.connect().unwrap();
        assert!(!host.shutdown_asked());
    }

    #[test]
    fn without_an_event_nothing_happens_and_no_alarm_is_set() {
        let host = serve(&[]);
        host.connect().unwrap().close().unwrap();
        host.pass_time(u64::MAX / 2);
        assert!(!host.shutdown_asked());
    }

    #[test]
    fn the_poll_is_a_number_of_seconds() {
        let refused = Host::new(Disk::pattern(512)).serve::<Exitwhen>(&["exit-when-poll=0"]);
        assert_eq!(refused.err(), Some("exitwhen: exit-when-poll=0: has to be 1 or more".into()));
        let host = serve(&["exit-when-file-created=/stop", "exit-when-poll=7"]);
        host.pass_time(100_000_000_000);
        host.set_file("/stop", Some(b""));
        assert!(host.shutdown_asked());
    }
}
