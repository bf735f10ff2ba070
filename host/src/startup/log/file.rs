//! The file of `--log=/PATH` and the descriptor of `--log=fd:N`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;
use rustix::fs::{Mode, OFlags};

use super::super::process;
use crate::cli::LogTo;

static FILE: OnceLock<OwnedFd> = OnceLock::new();

/// Opens the file, before the process changes its directory, its user or its rights.
///
/// # Errors
/// One line that names the file.
pub(super) fn open(to: &LogTo) -> Result<(), ConfigError> {
    let (opened, name) = match to {
        LogTo::File(path) => (append(path), path.display().to_string()),
        LogTo::Descriptor(fd) => (process::duplicate(*fd), format!("fd:{fd}")),
        _ => return Ok(()),
    };
    let file = opened.map_err(|error| ConfigError::new(format!("--log={name}: {}", plain(&error))))?;
    // There is one plan in a process.
    let _ = FILE.set(file);
    Ok(())
}

fn append(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?)
}

/// The file, if there is one.
pub(super) fn opened() -> Option<&'static OwnedFd> {
    FILE.get()
}
