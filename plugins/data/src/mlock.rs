//! The one call that needs `unsafe`: mlock(2) takes a pointer.

/// Locks the pages that these bytes lie on into memory, until they are unmapped.
pub(crate) fn lock(bytes: &[u8]) -> std::io::Result<()> {
    let start = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the range is one live allocation, and the kernel neither reads nor writes it through this call: it only makes its pages
    // resident. Whatever becomes of the allocation later, a lock on pages has no effect on the validity of memory.
    #[allow(unsafe_code)]
    unsafe {
        rustix::mm::mlock(start, bytes.len())?;
    }
    Ok(())
}
