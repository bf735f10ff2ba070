//! The pid file: written when clients can connect, and not removed at the end, as in nbdkit.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;

/// Makes the name absolute, because a server in the background changes its working directory.
///
/// # Errors
/// One line that names the file.
pub fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| failed(path, &error))
}

/// Writes this process's id. A new file appears complete. A file that exists is overwritten in
/// place, because it may be a pipe or a device.
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

/// Removes the file if it has this process's id.
pub fn remove(path: &Path) {
    // A pipe or a device is not read: that could block.
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if is_file && fs::read_to_string(path).is_ok_and(|text| text == format!("{}\n", std::process::id())) {
        let _ = fs::remove_file(path);
    }
}

fn write_at_once(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // The umask applies to these permissions, as for every new file.
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError::new(format!("--pidfile: {}: {}", path.display(), plain(error)))
}
