//! Why a part of confinement is not in force.

/// The kernel or a library refused a rule.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Landlock's rules could not be made or put in force.
    #[error(transparent)]
    Landlock(#[from] landlock::RulesetError),
    /// Landlock's rules could not be copied for another thread.
    #[error(transparent)]
    CopyRules(#[from] std::io::Error),
    /// The list of system calls could not be compiled into a filter.
    #[error(transparent)]
    SeccompFilter(#[from] seccompiler::BackendError),
    /// The kernel refused the filter.
    #[error(transparent)]
    Seccomp(#[from] seccompiler::Error),
}
