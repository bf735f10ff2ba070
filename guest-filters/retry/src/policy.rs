//! How often, and after which waits, a request that failed is repeated.

/// The parameters of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many times an operation is repeated.
    pub retries: u64,
    /// Nanoseconds before the first repetition.
    pub delay: u64,
    /// Whether each wait is twice as long as the one before.
    pub exponential: bool,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// A repetition may succeed.
    Retryable(E),
    /// A repetition cannot succeed.
    Permanent(E),
}

impl RetryPolicy {
    /// How many nanoseconds to wait before repetition `nth`, which counts from 0.
    pub fn wait(&self, nth: u64) -> u64 {
        let factor = if self.exponential { 1u64.checked_shl(nth.min(64) as u32).unwrap_or(u64::MAX) } else { 1 };
        self.delay.saturating_mul(factor)
    }

    /// Runs the operation. After each retryable failure it waits, reopens next and runs the
    /// operation again. A failure to reopen counts as one more failure. Returns the last error, of
    /// the operation or of reopening.
    pub fn run<T, E: Copy>(
        &self,
        mut operation: impl FnMut() -> Result<T, Failure<E>>,
        mut sleep: impl FnMut(u64) -> Result<(), E>,
        mut reopen: impl FnMut() -> Result<(), E>,
    ) -> Result<T, E> {
        let mut failed = match operation() {
            Ok(value) => return Ok(value),
            Err(Failure::Permanent(error)) => return Err(error),
            Err(Failure::Retryable(error)) => error,
        };
        for nth in 0..self.retries {
            // The client has gone or the server stops: nobody reads the answer.
            if sleep(self.wait(nth)).is_err() {
                return Err(failed);
            }
            if let Err(error) = reopen() {
                failed = error;
                continue;
            }
            match operation() {
                Ok(value) => return Ok(value),
                Err(Failure::Permanent(error)) => return Err(error),
                Err(Failure::Retryable(error)) => failed = error,
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const DEFAULT: RetryPolicy = RetryPolicy { retries: 5, delay: 2, exponential: true };

    /// Runs a script. Returns the result and what happened, in order; the numbers are waits.
    fn script(patience: RetryPolicy, operations: &str, opens: &str) -> (Result<char, char>, String) {
        let log = RefCell::new(String::new());
        let (mut operations, mut opens) = (operations.chars(), opens.chars());
        let result = patience.run(
            || {
                log.borrow_mut().push_str("op ");
                match operations.next().expect("the script has one more operation") {
                    'y' => Ok('y'),
                    'f' => Err(Failure::Permanent('f')),
                    other => Err(Failure::Retryable(other)),
                }
            },
            |ns| {
                log.borrow_mut().push_str(&format!("{ns} "));
                if ns == 77 { Err('s') } else { Ok(()) }
            },
            || {
                log.borrow_mut().push_str("open ");
                if opens.next() == Some('n') { Err('o') } else { Ok(()) }
            },
        );
        (result, log.into_inner().trim_end().to_string())
    }

    #[test]
    fn an_operation_that_succeeds_is_not_repeated() {
        assert_eq!(script(DEFAULT, "y", ""), (Ok('y'), "op".into()));
    }

    #[test]
    fn waits_double_and_next_is_reopened_before_each_repetition() {
        let (result, log) = script(DEFAULT, "nnny", "");
        assert_eq!((result, log.as_str()), (Ok('y'), "op 2 open op 4 open op 8 open op"));
        let plain = RetryPolicy { exponential: false, ..DEFAULT };
        assert_eq!(script(plain, "nny", "").1, "op 2 open op 2 open op");
    }

    #[test]
    fn a_failure_to_reopen_counts_as_a_failure() {
        let (result, log) = script(DEFAULT, "ny", "nn");
        assert_eq!((result, log.as_str()), (Ok('y'), "op 2 open 4 open 8 open op"));
        assert_eq!(script(DEFAULT, "n", "nnnnn"), (Err('o'), "op 2 open 4 open 8 open 16 open 32 open".into()));
    }

    #[test]
    fn after_the_last_repetition_the_last_error_is_returned() {
        let (result, log) = script(RetryPolicy { retries: 2, ..DEFAULT }, "abc", "");
        assert_eq!((result, log.as_str()), (Err('c'), "op 2 open op 4 open op"));
        assert_eq!(script(RetryPolicy { retries: 0, ..DEFAULT }, "a", "").0, Err('a'));
    }

    #[test]
    fn a_permanent_failure_is_not_repeated() {
        assert_eq!(script(DEFAULT, "f", ""), (Err('f'), "op".into()));
        assert_eq!(script(DEFAULT, "nf", ""), (Err('f'), "op 2 open op".into()));
    }

    #[test]
    fn it_ends_if_nobody_reads_the_answer() {
        assert_eq!(script(RetryPolicy { delay: 77, ..DEFAULT }, "n", ""), (Err('n'), "op 77".into()));
    }

    #[test]
    fn very_long_waits_do_not_overflow() {
        assert_eq!(DEFAULT.wait(1000), u64::MAX);
        assert_eq!(RetryPolicy { delay: 0, ..DEFAULT }.wait(1000), 0);
    }
}
