//! The one call that needs `unsafe`: mlock(2) takes a pointer.

/// Locks the pages that contain `bytes` into memory, until they are unmapped.
pub(crate) fn mlock(bytes: &[u8]) -> std::io::Result<()> {
    let start = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the range is one live allocation. The call makes its pages resident; the kernel
    // neither reads nor writes them. A lock on pages has no effect on the validity of memory,
    // whatever happens to the allocation later.
    #[allow(unsafe_code, reason = "mlock takes a pointer")]
    unsafe {
        rustix::mm::mlock(start, bytes.len())?;
    }
    Ok(())
}
