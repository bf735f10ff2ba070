//! The file of the running program, which starts itself again for work that needs a process of its
//! own.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access, stat};

/// Starts the running program even if another version has replaced its file.
const LINK: &str = "/proc/self/exe";

/// The program's file, found at the start because there was no `/proc` then.
static FOUND: OnceLock<Option<Found>> = OnceLock::new();

struct Found {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Finds the program's file while the current directory and the file are those of the start. A
/// program that uses [`own_program`] calls this before anything else.
pub fn find_own_program() {
    FOUND.get_or_init(|| if has_link() { None } else { find() });
}

/// A path that starts the running program.
///
/// # Errors
/// `/proc` is not mounted, and the file that was started cannot be found or has been replaced.
pub fn own_program() -> io::Result<PathBuf> {
    if has_link() {
        return Ok(LINK.into());
    }
    let unknown = |why: &str| io::Error::other(format!("/proc is not mounted, and {why}"));
    let found = FOUND.get_or_init(find).as_ref().ok_or_else(|| unknown("the program's own file is not known"))?;
    match stat(&found.path) {
        Ok(now) if (now.st_dev, now.st_ino) == (found.device, found.inode) => Ok(found.path.clone()),
        _ => Err(unknown(&format!("{} has been replaced since the start", found.path.display()))),
    }
}

fn has_link() -> bool {
    access(LINK, Access::EXEC_OK).is_ok()
}

/// The file that the kernel was asked to start.
fn find() -> Option<Found> {
    let path = std::path::absolute(executed()?).ok()?;
    let stat = stat(&path).ok()?;
    Some(Found { path, device: stat.st_dev, inode: stat.st_ino })
}

fn executed() -> Option<&'static Path> {
    #[expect(unsafe_code, reason = "only the C library knows the path that was given to execve")]
    // SAFETY: the kernel puts the path in front of the process's first stack frame, where it stays
    // unchanged for the life of the process and ends with a zero byte. A pointer of 0 means that
    // there is none.
    let path = unsafe {
        let path = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
        if path.is_null() { None } else { Some(CStr::from_ptr(path)) }
    };
    path.map(|path| Path::new(OsStr::from_bytes(path.to_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_file_is_known_without_proc() {
        let found = find().unwrap();
        assert_eq!(found.path.canonicalize().unwrap(), std::fs::canonicalize(LINK).unwrap());
        assert_eq!(own_program().unwrap(), Path::new(LINK));
    }
}
