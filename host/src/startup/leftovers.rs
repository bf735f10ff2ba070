//! [`Leftovers`]: files that a server removes when it ends without running its destructors.

use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_plugin_api::own_file::OwnFile;

/// Files that a server removes when it ends at once.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// The socket of a server that still starts. After the start it stays, as in nbdkit.
    pub socket: Option<Arc<OwnFile>>,
    /// The directory of a private socket.
    pub private: Option<PathBuf>,
    /// The pid file of a server that still starts.
    pub pidfile: Option<Arc<OwnFile>>,
}

impl Leftovers {
    /// Removes the files. A file that cannot be removed stays.
    pub fn remove(&self) {
        if let Some(directory) = &self.private {
            let _ = std::fs::remove_dir_all(directory);
        }
        for file in self.socket.iter().chain(&self.pidfile) {
            file.remove();
        }
    }
}
