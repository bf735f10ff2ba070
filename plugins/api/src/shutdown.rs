//! [`Shutdown`]: how a plugin ends the server.

use std::sync::Arc;

use tokio::sync::Notify;

/// Ends the server that runs a plugin, as SIGTERM does. Its clones end the same server. The default
/// ends nothing; it is for a plugin that no server runs.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<Notify>);

impl Shutdown {
    /// A request to end the server notifies `server`.
    pub fn new(server: Arc<Notify>) -> Shutdown {
        Shutdown(server)
    }

    /// Asks the server to end. It returns at once; the requests under way are answered first. A
    /// server that is still starting ends once it has started. It may be called from any thread,
    /// any number of times.
    pub fn request(&self) {
        self.0.notify_one();
    }
}
