//! Descriptors that the parent process passed on (`fd=`, `socket-fd=`). Only this file of the crate
//! needs `unsafe`.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, FdFlags};

/// Duplicates an inherited descriptor, which stays open.
///
/// # Errors
/// EBADF: there is no such descriptor, or this process opened it itself.
#[allow(unsafe_code, reason = "a descriptor that was inherited is only a number")]
pub fn duplicate(number: i32) -> rustix::io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is not -1, and the descriptor is borrowed only for the two calls below,
    // which answer EBADF for a closed one. It is duplicated only if it is not close-on-exec.
    // Everything that this process opens is close-on-exec, so the descriptor was inherited: no Rust
    // value owns it, and nothing closes it between the calls.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(inherited)?.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF);
    }
    rustix::io::fcntl_dupfd_cloexec(inherited, 3)
}
