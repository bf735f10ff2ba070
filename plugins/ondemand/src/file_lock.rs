//! The lock on an open disk: that of nbdkit's plugin and of qemu, so that it also keeps other
//! servers away. It goes when the descriptor is closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether others may have the disk open for reading too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    Shared,
    Exclusive,
}

/// Locks the whole file. Does not wait. Returns false if somebody else has it.
///
/// # Errors
/// Those of the system.
pub(crate) fn try_lock(file: impl AsFd, kind: LockKind) -> io::Result<bool> {
    let kind = if kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: `fd` is open during the call, and the kernel reads `range`, which lives longer.
    #[allow(unsafe_code, reason = "rustix has only the locks that belong to a process")]
    let result = unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &range) };
    match result {
        0.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_lock_keeps_another_descriptor_away_until_it_is_closed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(try_lock(&first, LockKind::Exclusive).unwrap());
        assert!(!try_lock(&second, LockKind::Exclusive).unwrap());
        assert!(!try_lock(&second, LockKind::Shared).unwrap());
        drop(first);
        assert!(try_lock(&second, LockKind::Shared).unwrap());
        let third = open();
        assert!(try_lock(&third, LockKind::Shared).unwrap());
        assert!(!try_lock(&third, LockKind::Exclusive).unwrap());
    }
}
