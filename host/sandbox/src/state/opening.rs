//! Opening what a parameter names. The operator chooses the paths, so they are opened with ambient
//! authority.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{File, OpenOptions, OpenOptionsExt as _};
use rbdkit_plugin_api::inherited;
use rustix::fs::{FileType, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Opens a file to append to. A pipe or a terminal never makes a writer wait: a request would wait
/// for whoever reads it, and with it the thread that serves others.
pub(super) fn to_append(path: &OsStr) -> std::io::Result<Arc<File>> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let path = Path::new(path);
    let opened = match File::open_ambient_with(path, &options, ambient_authority()) {
        // A pipe that nobody reads yet: it opens for both.
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NXIO) => {
            File::open_ambient_with(path, options.read(true), ambient_authority())
        }
        opened => opened,
    };
    opened.map(Arc::new)
}

/// Takes over a descriptor that the operator passed, which has to have another end.
pub(super) fn passed_on(number: &OsStr) -> std::io::Result<OwnedFd> {
    let number = number.to_str().and_then(|number| number.parse().ok()).ok_or(rustix::io::Errno::BADF)?;
    let fd = inherited::duplicate(number)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    match kind {
        FileType::Fifo | FileType::Socket => Ok(fd),
        _ => Err(std::io::Error::other("it is neither a pipe nor a socket")),
    }
}

/// Takes hold of a process, so that its end can be waited for.
pub(super) fn process(number: &OsStr) -> std::io::Result<OwnedFd> {
    let number = number.to_str().and_then(|number| number.parse().ok()).and_then(Pid::from_raw);
    Ok(pidfd_open(number.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())?)
}
