//! Reading a component's file, which a stranger may have put there.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use rbdkit_plugin_api::text::plain;

/// The largest component, in bytes. Interpreters with a standard library are at 18 MiB.
pub(crate) const COMPONENT_BYTES: usize = 64 << 20;

const LARGEST: u64 = COMPONENT_BYTES as u64;

/// How long a pipe may say nothing, in seconds. Who writes `<(make-a-filter)` waits for a compiler perhaps.
const PATIENCE: i64 = 60;

/// What the file holds, at most 64 MiB; a file or a pipe, nothing that has no end.
///
/// # Errors
/// What is wrong with it, without its name.
pub fn read_component(path: &Path) -> Result<Vec<u8>, String> {
    // Opening a pipe that nobody writes to would wait for who does.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(|error| plain(&error))?;
    let kind = file.metadata().map_err(|error| plain(&error))?.file_type();
    if kind.is_dir() {
        return Err("is a directory".into());
    }
    if !kind.is_file() && !kind.is_fifo() {
        return Err("is not a file".into());
    }
    let component = read(&file).map_err(|error| plain(&error))?;
    match component.len() as u64 > LARGEST {
        true => Err(format!("is larger than {} MiB", LARGEST >> 20)),
        false => Ok(component),
    }
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let mut component = Vec::new();
    let mut file = file.take(LARGEST + 1);
    loop {
        match file.read_to_end(&mut component) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result.map(|_| component),
        }
        let timeout = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        match poll(&mut [PollFd::new(file.get_ref(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::Error::other(format!("nothing came out of it for {PATIENCE} s"))),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
