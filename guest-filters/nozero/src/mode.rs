//! What each mode does with a zero request.

/// `zeromode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Zero requests are not offered.
    None,
    /// The filter writes zeroes.
    Emulate,
    /// Zero requests go down, and never leave a hole.
    Notrim,
    /// Zero requests go down as they are.
    Plugin,
}

/// `fastzeromode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastMode {
    /// Fast zero requests are not offered.
    None,
    /// They are offered and fail.
    Slow,
    /// They are offered and may be slow.
    Ignore,
    /// They fail where the filter writes zeroes, and go down elsewhere.
    Default,
}

/// What is done with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// ENOTSUP: it would not be faster than writing.
    Refuse,
    /// Zeroes are written.
    Write,
    /// It goes down.
    Pass {
        /// Whether it may leave a hole.
        may_trim: bool,
        /// Whether it fails if it is slow.
        fast: bool,
    },
}

/// Both modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub zero: ZeroMode,
    pub fast: FastMode,
}

impl Modes {
    /// Whether zero requests have to be native below.
    pub fn needs_native(self) -> bool {
        matches!(self.zero, ZeroMode::Notrim | ZeroMode::Plugin)
    }

    /// Whether zero requests are offered.
    pub fn offers_zero(self) -> bool {
        self.zero != ZeroMode::None
    }

    /// Whether fast zero requests are offered, over a layer that offers them or not.
    pub fn offers_fast(self, below: bool) -> bool {
        match self.fast {
            _ if !self.offers_zero() => false,
            FastMode::None => false,
            FastMode::Slow | FastMode::Ignore => true,
            FastMode::Default => self.zero == ZeroMode::Emulate || below,
        }
    }

    /// What is done with a request that has these flags.
    pub fn action(self, may_trim: bool, fast: bool) -> Action {
        let writes = self.zero == ZeroMode::Emulate;
        let refuses = self.fast == FastMode::Slow || writes && self.fast != FastMode::Ignore;
        match self.zero {
            _ if fast && refuses => Action::Refuse,
            ZeroMode::None | ZeroMode::Emulate => Action::Write,
            ZeroMode::Notrim | ZeroMode::Plugin => Action::Pass {
                may_trim: may_trim && self.zero == ZeroMode::Plugin,
                fast: fast && self.fast != FastMode::Ignore,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: [ZeroMode; 4] = [ZeroMode::None, ZeroMode::Emulate, ZeroMode::Notrim, ZeroMode::Plugin];
    const FAST: [FastMode; 4] = [FastMode::None, FastMode::Slow, FastMode::Ignore, FastMode::Default];

    #[test]
    fn fast_zero_requests_are_offered_as_the_modes_say() {
        let offered = |below| {
            let one = |modes: Modes| if modes.offers_fast(below) { 'y' } else { '.' };
            ZERO.map(|zero| FAST.map(|fast| one(Modes { zero, fast })).iter().collect::<String>())
        };
        assert_eq!(offered(true), ["....", ".yyy", ".yyy", ".yyy"]);
        assert_eq!(offered(false), ["....", ".yyy", ".yy.", ".yy."]);
    }

    #[test]
    fn a_fast_request_is_refused_written_or_passed_on() {
        let action = |zero, fast| Modes { zero, fast }.action(true, true);
        assert_eq!(action(ZeroMode::Emulate, FastMode::Default), Action::Refuse);
        assert_eq!(action(ZeroMode::Emulate, FastMode::Slow), Action::Refuse);
        assert_eq!(action(ZeroMode::Emulate, FastMode::Ignore), Action::Write);
        assert_eq!(action(ZeroMode::Plugin, FastMode::Slow), Action::Refuse);
        assert_eq!(action(ZeroMode::Plugin, FastMode::Ignore), Action::Pass { may_trim: true, fast: false });
        assert_eq!(action(ZeroMode::Notrim, FastMode::Default), Action::Pass { may_trim: false, fast: true });
    }

    #[test]
    fn other_requests_never_fail() {
        for fast in FAST {
            let action = |zero| Modes { zero, fast }.action(true, false);
            assert_eq!(action(ZeroMode::Emulate), Action::Write);
            assert_eq!(action(ZeroMode::Notrim), Action::Pass { may_trim: false, fast: false });
            assert_eq!(action(ZeroMode::Plugin), Action::Pass { may_trim: true, fast: false });
        }
    }
}
