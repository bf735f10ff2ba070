//! Changes to the process itself when a server starts. This is the only module of the program that
//! needs `unsafe`: the C functions that it calls have no safe form in the crates that we use.
#![allow(unsafe_code, reason = "fork, setenv, mallopt and _exit have no safe form in the crates that we use")]

use std::ffi::CStr;
use std::io;

/// Which side of a fork this is.
pub enum Side {
    /// The original process, with the id of its child.
    Parent(rustix::process::Pid),
    /// The new process.
    Child,
}

/// Forks. Call it only while the process has a single thread.
///
/// # Errors
/// As fork(2); also if there is a second thread already.
pub fn fork() -> io::Result<Side> {
    if thread_count() > 1 {
        return Err(io::Error::other("threads were started before the fork"));
    }
    // SAFETY: fork is sound if no other thread can hold a lock or be in the middle of a change, and
    // there is no other thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => rustix::process::Pid::from_raw(pid).map(Side::Parent).ok_or_else(|| io::Error::other("impossible pid")),
    }
}

/// The threads of this process; 1 if the kernel does not say.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Removes variables from the environment. Call it only while the process has a single thread.
pub fn forget_variables(names: &[&str]) {
    for name in names {
        // SAFETY: no other thread exists that could read the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
}

/// The allocator maps each block of this many bytes or more separately, and unmaps it when it is
/// freed. The server keeps long payload buffers itself, so this does not happen on each request.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LONG: libc::c_int = 1 << 20;

/// The allocator keeps this many free bytes at the end of each arena: its own default.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 128 << 10;

/// Makes the C library's allocator give memory back after a burst. By default it raises both
/// thresholds with the largest block that was ever freed, up to 32 MiB. Then blocks of that size
/// come from its arenas, of which there is about one for each thread, and each arena keeps twice as
/// much at its end. `malloc_trim` does not give that back either.
pub fn tame_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LONG), (libc::M_TRIM_THRESHOLD, KEPT)] {
        // SAFETY: mallopt changes a number, under the allocator's own lock.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Ends the process with this status, without destructors and without the C library's exit
/// handlers, which may wait for other threads.
pub fn exit_at_once(status: u8) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status.into()) }
}

/// Raises the limit on file descriptors as far as the system allows, because each client needs one.
/// The usual soft limit of 1024 exists for programs that call `select`. Scripts and the command of
/// `--run` inherit the limit.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!("the limit on file descriptors stays as it is: {error}");
    }
}

/// How many file descriptors the process may have.
pub fn descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The operating system's description of a signal, for messages.
pub fn signal_name(signal: i32) -> String {
    // SAFETY: strsignal returns a pointer to a string that stays valid until this thread calls it
    // again. The string is copied at once.
    let text = unsafe { libc::strsignal(signal) };
    if text.is_null() {
        return format!("signal {signal}");
    }
    // SAFETY: see above, and it is not null.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A descriptor of the caller's, once more.
///
/// # Errors
/// EBADF if it is not open.
pub fn duplicate(fd: i32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: fcntl takes any number and says whether it is an open descriptor.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    match copy {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new, so nothing else owns it.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}

/// Takes ownership of a descriptor that the parent process passed on (socket activation).
///
/// # Errors
/// EBADF if it is not open.
pub fn inherited(fd: i32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: fcntl takes any number and says whether it is an open descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the rules of socket activation nothing else in this
    // process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
