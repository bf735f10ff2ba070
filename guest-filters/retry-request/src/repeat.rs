//! Repeating what fails.

/// Tries, and as long as it fails and `wait` (which is told the error) says so tries again, at most `retries` times.
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

    /// Fails so often; answers the result and how often it was tried.
    fn tries(retries: u64, failures: u32, patient: bool) -> (Result<(), u32>, u32) {
        let tried = Cell::new(0);
        let operation = || {
            tried.set(tried.get() + 1);
            if tried.get() <= failures { Err(tried.get()) } else { Ok(()) }
        };
        (repeat(retries, operation, |_| patient), tried.get())
    }

    #[test]
    fn what_fails_is_repeated_so_often_and_then_its_last_error_is_the_answer() {
        assert_eq!(tries(2, 0, true), (Ok(()), 1));
        assert_eq!(tries(2, 2, true), (Ok(()), 3));
        assert_eq!(tries(2, 3, true), (Err(3), 3));
        assert_eq!(tries(0, 1, true), (Err(1), 1));
    }

    #[test]
    fn what_is_not_waited_for_is_not_repeated() {
        assert_eq!(tries(2, 1, false), (Err(1), 1));
    }
}
