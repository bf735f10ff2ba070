//! What happens at the process's file size limit (`ulimit -f`): the write fails, and the process goes on.

/// From now on a write to a file that has grown to the most that the process may write (`ulimit -f`) fails, with EFBIG. As it is
/// otherwise the signal would end the server: a client's write would, or a line in the log.
pub fn survive_the_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // A handler, and not SIG_IGN: programs that are started later do not inherit it.
    // SAFETY: the handler does nothing, which is safe wherever a signal comes; all zeroes are an action without flags and with an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // Fails for no signal that exists.
        let _ = libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut());
    }
}
