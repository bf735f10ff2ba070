//! [`ConfinementNeeds`]: what the server needs besides what its plugin needs.

use std::path::PathBuf;

/// What the server needs besides what its plugin needs.
#[derive(Clone, Debug, Default)]
pub struct ConfinementNeeds {
    /// The directory in which scratch files are made.
    pub scratch: Option<PathBuf>,
    /// The directory that the server removes, with the files in it, when it ends.
    pub private: Option<PathBuf>,
    /// Whether the server passes signals on to a command (`--run`) and waits for it.
    pub runs_command: bool,
}
