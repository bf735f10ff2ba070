//! Descriptors that the parent process left open for us (`fd=`, `socket-fd=`): the one thing here that needs `unsafe`.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, FdFlags};

/// A descriptor of our own for what an inherited one stands for. The inherited one stays open.
///
/// # Errors
/// EBADF if there is no such descriptor, or if it was not inherited but opened by this process.
#[allow(unsafe_code)]
pub fn duplicate(number: i32) -> rustix::io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is not -1, and the descriptor is only borrowed for the two calls below: both tell a closed one by EBADF.
    // It is duplicated only if it is not close-on-exec, as all that this process opens itself is: so it is one that came with the process,
    // which no Rust value owns, and nobody closes it between the calls.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(inherited)?.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF);
    }
    rustix::io::fcntl_dupfd_cloexec(inherited, 3)
}
