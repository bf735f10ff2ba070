//! Random numbers, for guests and for the key of the cache, from the operating system's generator.

/// What is said where there are none.
pub(crate) const NONE: &str = "the operating system gave no random numbers";

/// The system call gives so much without being interrupted, once its generator was seeded, which is long before any server starts.
const AT_ONCE: usize = 256;

/// Fills `bytes`. False if the operating system has none to give.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    bytes.chunks_mut(AT_ONCE).all(|chunk| {
        // SAFETY: the pointer and the length are those of `chunk`, which nothing else uses meanwhile.
        #[allow(unsafe_code)]
        let got = unsafe { libc::getrandom(chunk.as_mut_ptr().cast(), chunk.len(), 0) };
        usize::try_from(got) == Ok(chunk.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_filled() {
        // That one of so many words stays zero by chance happens once in ten million years of testing.
        let mut bytes = vec![0; 10_000];
        assert!(fill(&mut bytes));
        assert!(bytes.chunks_exact(8).all(|word| word != [0; 8]));
    }
}
