//! Which events end the server.

/// What a parameter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A file is there.
    Created,
    /// A file is not there.
    Deleted,
    /// The other end of a pipe is closed.
    Closed,
    /// A process has ended.
    Exited,
}

impl Condition {
    /// Whether it has happened. `holds` says whether the file is there, the pipe is open, or the
    /// process runs.
    pub fn is_met(self, holds: bool) -> bool {
        match self {
            Condition::Created => holds,
            Condition::Deleted | Condition::Closed | Condition::Exited => !holds,
        }
    }

    /// The condition that a parameter stands for.
    pub fn of(param: &str) -> Option<Condition> {
        match param {
            "exit-when-file-created" => Some(Condition::Created),
            "exit-when-file-deleted" => Some(Condition::Deleted),
            "exit-when-pipe-closed" => Some(Condition::Closed),
            "exit-when-process-exits" => Some(Condition::Exited),
            _ => None,
        }
    }
}

/// What a command of the operator says of its own event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The event has not happened.
    NotYet,
    /// The event has happened.
    Happened,
    /// The command could not tell.
    Failed,
}

/// The exit status by which a command says that its event has happened.
pub const HAPPENED: i32 = 88;

impl Verdict {
    /// What an exit status says.
    pub fn of(status: i32) -> Verdict {
        match status {
            0 => Verdict::NotYet,
            HAPPENED => Verdict::Happened,
            _ => Verdict::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_tells_its_event_by_one_status_and_all_others_but_0_are_errors() {
        assert_eq!((Verdict::of(0), Verdict::of(88)), (Verdict::NotYet, Verdict::Happened));
        for status in [1, 87, 89, 137, 255] {
            assert_eq!(Verdict::of(status), Verdict::Failed, "{status}");
        }
    }

    #[test]
    fn only_the_creation_of_a_file_waits_for_something_to_be_there() {
        for (param, holds, is_met) in [
            ("exit-when-file-created", true, true),
            ("exit-when-file-created", false, false),
            ("exit-when-file-deleted", true, false),
            ("exit-when-file-deleted", false, true),
            ("exit-when-pipe-closed", true, false),
            ("exit-when-pipe-closed", false, true),
            ("exit-when-process-exits", true, false),
            ("exit-when-process-exits", false, true),
        ] {
            assert_eq!(Condition::of(param).unwrap().is_met(holds), is_met, "{param} {holds}");
        }
        assert_eq!(Condition::of("exit-when-poll"), None);
    }
}
