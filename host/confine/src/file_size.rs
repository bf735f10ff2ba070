//! Makes a write beyond the process's limit on file size (`ulimit -f`) fail without ending the
//! process.

/// From now on a write beyond the limit on file size (`ulimit -f`) fails with EFBIG. Without this,
/// a signal would end the server at a client's write or at a line in the log.
#[allow(unsafe_code, reason = "std and rustix have no safe way to set a signal handler")]
pub fn survive_the_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // A handler and not SIG_IGN, because programs that are started later do not inherit a handler.
    // SAFETY: the handler does nothing, which is safe at any time. All zeroes are an action without
    // flags and with an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // This cannot fail for a valid signal.
        let _ = libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut());
    }
}
