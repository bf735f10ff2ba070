//! [`Leftovers`]: files that a server removes when it ends without running its destructors.

use std::path::PathBuf;
use std::sync::Arc;

use super::own_file::OwnFile;
use super::pidfile;

/// Files that a server removes when it ends at once.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// The socket of a server that still starts. After the start it stays, as in nbdkit.
    pub socket: Option<Arc<OwnFile>>,
    /// The directory of a private socket.
    pub private: Option<PathBuf>,
    /// The pid file of a server that still starts.
    pub pidfile: Option<PathBuf>,
}

impl Leftovers {
    /// Removes the files. A file that cannot be removed stays.
    pub fn remove(&self) {
        if let Some(directory) = &self.private {
            let _ = std::fs::remove_dir_all(directory);
        }
        if let Some(socket) = &self.socket {
            socket.remove();
        }
        if let Some(file) = &self.pidfile {
            pidfile::remove(file);
        }
    }
}
