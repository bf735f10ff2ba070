//! What the kernel knows of the process at the other end of a Unix socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::sockopt;

/// The longest security context that is taken: the size of a page, which is the kernel's limit.
const MAX_CONTEXT: usize = 4096;

/// The process at the other end.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Process, user and group id.
    pub(super) credentials: Option<(i64, i64, i64)>,
    /// SELinux, AppArmor.
    pub(super) security_context: Option<String>,
}

/// The process, user and group id. None if the kernel does not report them.
pub(super) fn credentials(socket: &impl AsFd) -> Option<(i64, i64, i64)> {
    let peer = sockopt::socket_peercred(socket).ok()?;
    Some((i64::from(peer.pid.as_raw_pid()), i64::from(peer.uid.as_raw()), i64::from(peer.gid.as_raw())))
}

/// The security context (SELinux, AppArmor). None if the kernel does not report one.
pub(super) fn security_context(socket: &impl AsFd) -> Option<String> {
    let mut context = vec![0; MAX_CONTEXT];
    let length = read_context(socket.as_fd(), &mut context)?;
    context.truncate(length);
    // Some security modules count the zero byte at the end, others do not.
    while context.last() == Some(&0) {
        context.pop();
    }
    String::from_utf8(context).ok().filter(|text| !text.is_empty())
}

#[allow(unsafe_code, reason = "rustix does not have this socket option")]
fn read_context(socket: BorrowedFd<'_>, context: &mut [u8]) -> Option<usize> {
    let mut length = libc::socklen_t::try_from(context.len()).ok()?;
    // SAFETY: the descriptor is open, `context` has `length` bytes that may be overwritten, and the
    // kernel writes no more than that.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            context.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    usize::try_from(length).ok().filter(|length| answer == 0 && *length <= context.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_end_of_a_socket_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(credentials(&one).unwrap().0, i64::from(std::process::id()));
        // With a security module, it is this process's context as well.
        let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        let own = own.trim_end_matches(['\0', '\n']);
        assert!(security_context(&one).is_none_or(|context| context == own));
    }

    #[test]
    fn a_file_has_neither() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!((credentials(&file), security_context(&file)), (None, None));
    }
}
