//! Repeating an operation that fails.

/// Runs the operation, and repeats it up to `retries` times while it fails and `wait` returns true.
/// `wait` receives the error.
pub fn repeat<T, E: Copy>(
    retries: u64,
    operation: impl Fn() -> Result<T, E>,
    wait: impl Fn(E) -> bool,
) -> Result<T, E> {
    let mut left = retries;
    loop {
        match operation() {
            Err(error) if left > 0 && wait(error) => left -= 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// An operation that fails `failures` times. Returns the result and how many times it ran.
    fn tries(retries: u64, failures: u32, waits: bool) -> (Result<(), u32>, u32) {
        let tried = Cell::new(0);
        let operation = || {
            tried.set(tried.get() + 1);
            if tried.get() <= failures { Err(tried.get()) } else { Ok(()) }
        };
        (repeat(retries, operation, |_| waits), tried.get())
    }

    #[test]
    fn an_operation_that_fails_is_repeated_and_then_its_last_error_is_returned() {
        assert_eq!(tries(2, 0, true), (Ok(()), 1));
        assert_eq!(tries(2, 2, true), (Ok(()), 3));
        assert_eq!(tries(2, 3, true), (Err(3), 3));
        assert_eq!(tries(0, 1, true), (Err(1), 1));
    }

    #[test]
    fn without_a_wait_nothing_is_repeated() {
        assert_eq!(tries(2, 1, false), (Err(1), 1));
    }
}
