//! What the operator wants to happen after a fault of a filter.

use std::sync::Arc;

use tokio::sync::Notify;

/// What a fault costs besides its own request (`--filter-on-fault`). The request itself always
/// fails: it never bypasses a filter that failed.
#[derive(Clone, Debug, Default)]
pub enum OnFault {
    /// Nothing more.
    #[default]
    Error,
    /// The connection in which it happened: all its requests fail from then on, and it is closed.
    Disconnect,
    /// The server ends as after a signal. A fault notifies this.
    Exit(Arc<Notify>),
}
