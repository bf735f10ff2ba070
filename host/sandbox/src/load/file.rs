//! Reading the file of a component, which may come from a stranger.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::LoadError;

/// The largest component, in bytes. Interpreters with a standard library take 18 MiB.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// How many seconds to wait for the next bytes of a pipe. The other end of `<(make-a-filter)` may
/// be a compiler at work.
const PIPE_TIMEOUT: i64 = 60;

/// Reads a component from a file or a pipe, at most 64 MiB. It reads nothing else, because a device
/// may have no end.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn read_component(path: &Path) -> Result<Vec<u8>, LoadError> {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(LoadError::File)?;
    let kind = file.metadata().map_err(LoadError::File)?.file_type();
    if kind.is_dir() {
        return Err(LoadError::NotComponent("is a directory".into()));
    }
    if !kind.is_file() && !kind.is_fifo() {
        return Err(LoadError::NotComponent("is not a file".into()));
    }
    let component = read(&file).map_err(LoadError::File)?;
    if component.len() > MAX_COMPONENT_BYTES {
        return Err(LoadError::NotComponent(format!("is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)));
    }
    Ok(component)
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let mut component = Vec::new();
    let mut file = file.take(MAX_COMPONENT_BYTES as u64 + 1);
    loop {
        match file.read_to_end(&mut component) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result.map(|_| component),
        }
        let timeout = Timespec { tv_sec: PIPE_TIMEOUT, tv_nsec: 0 };
        match poll(&mut [PollFd::new(file.get_ref(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::Error::other(format!("nothing came out of it for {PIPE_TIMEOUT} s"))),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
