//! The error for calls that only a faulty guest makes.

/// The guest named something that does not exist. Its call ends with a trap. The text is for the
/// log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub &'static str);
