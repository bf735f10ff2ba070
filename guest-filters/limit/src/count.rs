//! How many clients there are, and whether one more may come.

/// How many clients may be connected at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Any number.
    Unlimited,
    /// At most this many, at least one.
    AtMost(u32),
}

impl Limit {
    /// The limit that the parameter says, where 0 means any number.
    pub fn new(limit: u32) -> Limit {
        match limit {
            0 => Limit::Unlimited,
            limit => Limit::AtMost(limit),
        }
    }

    /// Whether one more client may come when `connected` are there.
    pub fn admits_another(self, connected: u64) -> bool {
        match self {
            Limit::Unlimited => true,
            Limit::AtMost(limit) => connected < limit.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_clients_may_come_as_the_limit_says() {
        let limit = Limit::new(3);
        assert!(limit.admits_another(0) && limit.admits_another(2));
        assert!(!limit.admits_another(3) && !limit.admits_another(u64::MAX));
        assert!(!Limit::new(1).admits_another(1));
        assert!(Limit::new(u32::MAX).admits_another(u64::from(u32::MAX) - 1));
    }

    #[test]
    fn with_0_any_number_may_come() {
        assert!(Limit::new(0).admits_another(u64::MAX));
    }
}
