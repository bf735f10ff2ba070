//! The pid file: written when clients can connect, and left behind, as nbdkit does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rbdkit_plugin_api::ConfigError;

use rbdkit_plugin_api::text::plain;

/// Makes the name independent of the working directory, which a server in the background leaves.
///
/// # Errors
/// One line that names the file.
pub fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| failed(path, &error))
}

/// Writes this process's id. Whoever waits for the file to appear finds it complete; a file that exists is overwritten in its place, as it may
/// be a pipe or a device.
///
/// # Errors
/// One line that names the file.
pub fn write(path: &Path) -> Result<(), ConfigError> {
    let text = format!("{}\n", std::process::id());
    let written = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_at_once(path, &text),
        _ => fs::write(path, text),
    };
    written.map_err(|error| failed(path, &error))
}

fn write_at_once(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // The error of the writing is the one that counts.
        let _ = fs::remove_file(&temporary);
    })
}

fn failed(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError::new(format!("--pidfile: {}: {}", path.display(), plain(error)))
}
