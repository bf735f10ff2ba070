//! Which operations fail, with which error, how often and when.

/// The operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Pread,
    Pwrite,
    Trim,
    Zero,
    Extents,
    Cache,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 6] = [Op::Pread, Op::Pwrite, Op::Trim, Op::Zero, Op::Extents, Op::Cache];

    /// The name in the parameters.
    pub fn name(self) -> &'static str {
        match self {
            Op::Pread => "pread",
            Op::Pwrite => "pwrite",
            Op::Trim => "trim",
            Op::Zero => "zero",
            Op::Extents => "extents",
            Op::Cache => "cache",
        }
    }
}

/// A probability of 100%, in parts of 10^9.
pub const CERTAIN: u32 = 1_000_000_000;

/// When and how one operation fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The error's C name.
    pub error: String,
    /// The probability in parts of 10^9.
    pub rate: u32,
    /// The parameter with the file that must exist.
    pub file: Option<String>,
}

/// A rule for each operation. A later parameter replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules([Rule; 6]);

impl Rules {
    /// Makes the rules from the parameters, which are in the order of the command line.
    ///
    /// # Errors
    /// One line for the user.
    pub fn new<'a>(params: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Rules, String> {
        let never = Rule { error: "EIO".into(), rate: 0, file: None };
        let mut rules = Rules(std::array::from_fn(|_| never.clone()));
        for (name, value) in params {
            let which = name.strip_prefix("error").unwrap_or(name);
            let (op, what) = match Op::ALL.iter().find_map(|op| {
                let rest = which.strip_prefix('-')?.strip_prefix(op.name())?;
                Some((*op, rest))
            }) {
                Some((op, rest)) => (Some(op), rest),
                None => (None, which),
            };
            let wrong = || format!("{name}={value}: this filter has no such parameter or value");
            for rule in rules.select(op) {
                match what {
                    "" => rule.error = value.to_string(),
                    "-rate" => rule.rate = value.parse().map_err(|_| wrong())?,
                    "-file" => rule.file = Some(name.to_string()),
                    _ => return Err(wrong()),
                }
            }
        }
        Ok(rules)
    }

    /// The rule for `op`.
    pub fn of(&self, op: Op) -> &Rule {
        &self.0[op as usize]
    }

    /// The rule for `op`, or all rules.
    fn select(&mut self, op: Option<Op>) -> &mut [Rule] {
        match op {
            Some(op) => std::slice::from_mut(&mut self.0[op as usize]),
            None => &mut self.0,
        }
    }
}

impl Rule {
    /// Whether the operation fails this time. Calls `exists` only if a file was named, and `random`
    /// only if the rate is between 0% and 100%.
    pub fn fails(&self, random: impl FnOnce() -> u64, exists: impl FnOnce(&str) -> bool) -> bool {
        if self.rate == 0 || !self.file.as_deref().is_none_or(exists) {
            return false;
        }
        self.rate >= CERTAIN || random() % u64::from(CERTAIN) < u64::from(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(params: &[(&str, &str)]) -> Rules {
        Rules::new(params.iter().copied()).unwrap()
    }

    #[test]
    fn without_a_rate_nothing_fails() {
        let rules = rules(&[("error", "ENOSPC")]);
        for op in Op::ALL {
            assert!(!rules.of(op).fails(|| 0, |_| true));
        }
    }

    #[test]
    fn a_parameter_for_one_operation_changes_only_that_and_the_later_parameter_wins() {
        let rules = rules(&[("error", "ENOSPC"), ("error-pwrite-rate", "1000000000"), ("error-trim", "EPERM")]);
        assert_eq!(rules.of(Op::Pwrite), &Rule { error: "ENOSPC".into(), rate: CERTAIN, file: None });
        assert_eq!(rules.of(Op::Pread).rate, 0);
        assert_eq!(rules.of(Op::Trim).error, "EPERM");
        let rules = super::Rules::new([("error-trim", "EPERM"), ("error", "EINVAL")].into_iter()).unwrap();
        assert_eq!(rules.of(Op::Trim).error, "EINVAL");
    }

    #[test]
    fn with_a_file_requests_fail_only_while_the_file_exists() {
        let rules = rules(&[("error-rate", "1000000000"), ("error-file", "set"), ("error-zero-file", "set")]);
        assert!(rules.of(Op::Pread).fails(|| 0, |name| name == "error-file"));
        assert!(!rules.of(Op::Pread).fails(|| 0, |_| false));
        assert!(rules.of(Op::Zero).fails(|| 0, |name| name == "error-zero-file"));
    }

    #[test]
    fn a_random_number_is_compared_with_the_rate() {
        let rules = rules(&[("error-cache-rate", "100000000")]);
        let rule = rules.of(Op::Cache);
        assert!(rule.fails(|| 99_999_999, |_| true));
        assert!(!rule.fails(|| 100_000_000, |_| true));
        assert!(rule.fails(|| 1_000_000_000, |_| true), "the random number is taken modulo 10^9");
    }

    #[test]
    fn an_unknown_parameter_or_value_is_refused() {
        assert!(Rules::new([("error-flush-rate", "1")].into_iter()).is_err());
        assert!(Rules::new([("error-rate", "often")].into_iter()).is_err());
    }
}
