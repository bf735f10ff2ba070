//! `--selinux-label`: the label of the sockets that the server makes.
//!
//! The kernel gives each socket that a thread makes the label in the thread's attribute
//! `sockcreate`. A connection has the label of the socket that accepted it. So it is enough to set
//! the attribute while the listening sockets are made. No library is needed for that.

use std::ffi::OsStr;
use std::path::Path;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;

/// The attribute of this thread.
const ATTRIBUTE: &str = "/proc/thread-self/attr/sockcreate";

/// The file system that exists only if SELinux is enabled.
const FILE_SYSTEM: &str = "/sys/fs/selinux";

/// Calls `make`. The sockets that it makes in this thread have the label.
///
/// # Errors
/// One line: SELinux is not enabled, or it does not take the label. Then `make` is not called.
pub fn labelled<T>(label: &OsStr, make: impl FnOnce() -> T) -> Result<T, ConfigError> {
    if !Path::new(FILE_SYSTEM).exists() {
        return Err(ConfigError::new("--selinux-label: SELinux is not enabled on this machine"));
    }
    labelled_by(Path::new(ATTRIBUTE), label, make)
}

fn labelled_by<T>(attribute: &Path, label: &OsStr, make: impl FnOnce() -> T) -> Result<T, ConfigError> {
    let failed = |error: std::io::Error| {
        let label = label.to_string_lossy();
        ConfigError::new(format!("--selinux-label: the kernel does not take '{label}': {}", plain(&error)))
    };
    set(attribute, label.as_encoded_bytes()).map_err(failed)?;
    let made = make();
    // Without a label, sockets have that of the process again. Layers make sockets of their own.
    set(attribute, b"").map_err(failed)?;
    Ok(made)
}

/// The kernel takes a label as one write. An empty write removes the label.
fn set(attribute: &Path, label: &[u8]) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(attribute)?;
    rustix::io::write(&file, label)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_set_while_the_sockets_are_made_and_not_after() {
        let attribute = tempfile::NamedTempFile::new().unwrap();
        let path = attribute.path();
        let label = OsStr::new("system_u:object_r:svirt_socket_t:s0");
        let seen = labelled_by(path, label, || std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(seen, "system_u:object_r:svirt_socket_t:s0");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "");
    }

    #[test]
    fn a_label_that_the_kernel_does_not_take_makes_no_socket() {
        let error = labelled_by(Path::new("/dev/full"), OsStr::new("x"), || panic!("made")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--selinux-label: the kernel does not take 'x': No space left on device (os error 28)"
                .trim_end_matches(" (os error 28)")
        );
        if !Path::new(FILE_SYSTEM).exists() {
            let error = labelled(OsStr::new("x"), || panic!("made")).unwrap_err();
            assert_eq!(error.to_string(), "--selinux-label: SELinux is not enabled on this machine");
        }
    }
}
