//! Which operation fails with what, how often, and when.

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

    /// As in the parameters' names.
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

/// A chance of 100%.
pub const CERTAIN: u32 = 1_000_000_000;

/// What one operation is up against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The error's C name.
    pub error: String,
    /// Parts of 10^9.
    pub rate: u32,
    /// The watched parameter that has to hold.
    pub file: Option<String>,
}

/// A setting for each operation. A later parameter replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan([Setting; 6]);

impl Plan {
    /// Takes the parameters in the order in which they were given.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new<'a>(params: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Plan, String> {
        let nothing = Setting { error: "EIO".into(), rate: 0, file: None };
        let mut plan = Plan(std::array::from_fn(|_| nothing.clone()));
        for (name, value) in params {
            let which = name.strip_prefix("error").unwrap_or(name);
            let (op, what) = match Op::ALL.iter().find_map(|op| {
                let rest = which.strip_prefix('-')?.strip_prefix(op.name())?;
                Some((*op, rest))
            }) {
                Some((op, rest)) => (Some(op), rest),
                None => (None, which),
            };
            let wrong = || format!("{name}={value}: not understood");
            for setting in plan.settings(op) {
                match what {
                    "" => setting.error = value.to_string(),
                    "-rate" => setting.rate = value.parse().map_err(|_| wrong())?,
                    "-file" => setting.file = Some(name.to_string()),
                    _ => return Err(wrong()),
                }
            }
        }
        Ok(plan)
    }

    /// What `op` is up against.
    pub fn of(&self, op: Op) -> &Setting {
        &self.0[op as usize]
    }

    fn settings(&mut self, op: Option<Op>) -> &mut [Setting] {
        match op {
            Some(op) => std::slice::from_mut(&mut self.0[op as usize]),
            None => &mut self.0,
        }
    }
}

impl Setting {
    /// Whether it fails this time; `random` is only asked where chance decides, and `holds` only where a file was named.
    pub fn strikes(&self, random: impl FnOnce() -> u64, holds: impl FnOnce(&str) -> bool) -> bool {
        if self.rate == 0 || !self.file.as_deref().is_none_or(holds) {
            return false;
        }
        self.rate >= CERTAIN || random() % u64::from(CERTAIN) < u64::from(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(params: &[(&str, &str)]) -> Plan {
        Plan::new(params.iter().copied()).unwrap()
    }

    #[test]
    fn without_a_rate_nothing_fails() {
        let plan = plan(&[("error", "ENOSPC")]);
        for op in Op::ALL {
            assert!(!plan.of(op).strikes(|| 0, |_| true));
        }
    }

    #[test]
    fn one_operation_can_be_set_apart_and_the_later_parameter_holds() {
        let plan = plan(&[("error", "ENOSPC"), ("error-pwrite-rate", "1000000000"), ("error-trim", "EPERM")]);
        assert_eq!(plan.of(Op::Pwrite), &Setting { error: "ENOSPC".into(), rate: CERTAIN, file: None });
        assert_eq!(plan.of(Op::Pread).rate, 0);
        assert_eq!(plan.of(Op::Trim).error, "EPERM");
        let plan = super::Plan::new([("error-trim", "EPERM"), ("error", "EINVAL")].into_iter()).unwrap();
        assert_eq!(plan.of(Op::Trim).error, "EINVAL");
    }

    #[test]
    fn with_a_file_it_only_fails_while_the_file_exists() {
        let plan = plan(&[("error-rate", "1000000000"), ("error-file", "set"), ("error-zero-file", "set")]);
        assert!(plan.of(Op::Pread).strikes(|| 0, |name| name == "error-file"));
        assert!(!plan.of(Op::Pread).strikes(|| 0, |_| false));
        assert!(plan.of(Op::Zero).strikes(|| 0, |name| name == "error-zero-file"));
    }

    #[test]
    fn chance_is_compared_with_the_rate() {
        let plan = plan(&[("error-cache-rate", "100000000")]);
        let setting = plan.of(Op::Cache);
        assert!(setting.strikes(|| 99_999_999, |_| true));
        assert!(!setting.strikes(|| 100_000_000, |_| true));
        assert!(setting.strikes(|| 1_000_000_000, |_| true), "10^9 is as good as 0");
    }

    #[test]
    fn what_is_no_parameter_of_the_filter_is_refused() {
        assert!(Plan::new([("error-flush-rate", "1")].into_iter()).is_err());
        assert!(Plan::new([("error-rate", "often")].into_iter()).is_err());
    }
}
