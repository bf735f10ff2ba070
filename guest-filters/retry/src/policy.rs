//! How often and when a request that failed is tried again.

/// What the parameters say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often an operation is repeated.
    pub retries: u64,
    /// Nanoseconds before the first repetition.
    pub delay: u64,
    /// Each wait is twice as long as the one before.
    pub exponential: bool,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<E> {
    /// It may go better another time.
    Again(E),
    /// It never will.
    Final(E),
}

impl Patience {
    /// Nanoseconds to wait before the `nth` repetition, which counts from 0.
    pub fn wait(&self, nth: u64) -> u64 {
        let factor = if self.exponential { 1u64.checked_shl(nth.min(64) as u32).unwrap_or(u64::MAX) } else { 1 };
        self.delay.saturating_mul(factor)
    }

    /// Tries, and after each failure waits, opens next anew and tries again. If opening fails that is one more failure. Answers the last
    /// error of an operation, or of opening if that is what failed last.
    pub fn run<T, E: Copy>(
        &self,
        mut operation: impl FnMut() -> Result<T, Verdict<E>>,
        mut sleep: impl FnMut(u64) -> Result<(), E>,
        mut reopen: impl FnMut() -> Result<(), E>,
    ) -> Result<T, E> {
        let mut failed = match operation() {
            Ok(value) => return Ok(value),
            Err(Verdict::Final(error)) => return Err(error),
            Err(Verdict::Again(error)) => error,
        };
        for nth in 0..self.retries {
            // Nobody waits for the answer any more.
            if sleep(self.wait(nth)).is_err() {
                return Err(failed);
            }
            if let Err(error) = reopen() {
                failed = error;
                continue;
            }
            match operation() {
                Ok(value) => return Ok(value),
                Err(Verdict::Final(error)) => return Err(error),
                Err(Verdict::Again(error)) => failed = error,
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const DEFAULT: Patience = Patience { retries: 5, delay: 2, exponential: true };

    /// What happened, in order: the numbers are waits.
    fn script(patience: Patience, operations: &str, opens: &str) -> (Result<char, char>, String) {
        let log = RefCell::new(String::new());
        let (mut operations, mut opens) = (operations.chars(), opens.chars());
        let result = patience.run(
            || {
                log.borrow_mut().push_str("op ");
                match operations.next().expect("an operation more") {
                    'y' => Ok('y'),
                    'f' => Err(Verdict::Final('f')),
                    other => Err(Verdict::Again(other)),
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
    fn what_succeeds_is_not_repeated() {
        assert_eq!(script(DEFAULT, "y", ""), (Ok('y'), "op".into()));
    }

    #[test]
    fn waits_double_and_next_is_opened_before_each_repetition() {
        let (result, log) = script(DEFAULT, "nnny", "");
        assert_eq!((result, log.as_str()), (Ok('y'), "op 2 open op 4 open op 8 open op"));
        let plain = Patience { exponential: false, ..DEFAULT };
        assert_eq!(script(plain, "nny", "").1, "op 2 open op 2 open op");
    }

    #[test]
    fn opening_that_fails_counts_as_a_failure() {
        let (result, log) = script(DEFAULT, "ny", "nn");
        assert_eq!((result, log.as_str()), (Ok('y'), "op 2 open 4 open 8 open op"));
        assert_eq!(script(DEFAULT, "n", "nnnnn"), (Err('o'), "op 2 open 4 open 8 open 16 open 32 open".into()));
    }

    #[test]
    fn after_so_many_repetitions_the_last_error_is_the_answer() {
        let (result, log) = script(Patience { retries: 2, ..DEFAULT }, "abc", "");
        assert_eq!((result, log.as_str()), (Err('c'), "op 2 open op 4 open op"));
        assert_eq!(script(Patience { retries: 0, ..DEFAULT }, "a", "").0, Err('a'));
    }

    #[test]
    fn what_never_will_succeed_is_not_repeated() {
        assert_eq!(script(DEFAULT, "f", ""), (Err('f'), "op".into()));
        assert_eq!(script(DEFAULT, "nf", ""), (Err('f'), "op 2 open op".into()));
    }

    #[test]
    fn without_anybody_who_waits_for_the_answer_it_ends() {
        assert_eq!(script(Patience { delay: 77, ..DEFAULT }, "n", ""), (Err('n'), "op 77".into()));
    }

    #[test]
    fn very_long_waits_do_not_overflow() {
        assert_eq!(DEFAULT.wait(1000), u64::MAX);
        assert_eq!(Patience { delay: 0, ..DEFAULT }.wait(1000), 0);
    }
}
