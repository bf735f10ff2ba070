//! What a filter may do to the server and to clients beyond serving requests, if the operator
//! allows it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rbdkit_plugin_api::Errno;

/// A power that a filter has only if the operator grants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// `server.shutdown`.
    Shutdown,
    /// `client.disconnect`.
    Disconnect,
}

impl Power {
    /// All powers.
    pub const ALL: [Power; 2] = [Power::Shutdown, Power::Disconnect];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Power::Shutdown => "shutdown",
            Power::Disconnect => "disconnect",
        }
    }

    /// The power with this word.
    pub fn parse(name: &str) -> Option<Power> {
        Power::ALL.into_iter().find(|power| power.name() == name)
    }

    /// What a filter does with it, for messages.
    fn use_of_it(self) -> &'static str {
        match self {
            Power::Shutdown => "end the server",
            Power::Disconnect => "disconnect a client",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Power::Shutdown => 1,
            Power::Disconnect => 2,
        }
    }
}

/// A set of powers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Powers(u8);

impl Powers {
    /// All of them.
    pub const ALL: Powers = Powers(3);

    /// This set and one more power.
    #[must_use]
    pub fn with(self, power: Power) -> Powers {
        Powers(self.0 | power.bit())
    }

    /// The powers of both sets.
    #[must_use]
    pub fn union(self, other: Powers) -> Powers {
        Powers(self.0 | other.0)
    }

    /// Whether this power is in the set.
    pub fn has(self, power: Power) -> bool {
        self.0 & power.bit() != 0
    }

    /// The words of its powers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Power::ALL.into_iter().filter(move |power| self.has(*power)).map(Power::name)
    }
}

/// The powers of one filter, and which refusals the log has told of.
#[derive(Debug, Default)]
pub(crate) struct GrantedPowers {
    granted: Powers,
    told: [AtomicBool; Power::ALL.len()],
}

impl GrantedPowers {
    pub(crate) fn new(granted: Powers) -> GrantedPowers {
        GrantedPowers { granted, told: Default::default() }
    }

    /// Checks a use of a power. The log tells the first refusal.
    ///
    /// # Errors
    /// EPERM: it was not granted.
    pub(crate) fn check(&self, filter: &str, power: Power) -> Result<(), Errno> {
        if self.granted.has(power) {
            return Ok(());
        }
        if !self.told[power as usize].swap(true, Relaxed) {
            let (wish, word) = (power.use_of_it(), power.name());
            tracing::warn!("{filter}: it asked to {wish} and may not (to allow it: --filter-allow {filter}:{word})");
        }
        Err(Errno::Eperm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_granted_may_be_used() {
        let granted = GrantedPowers::new(Powers::default().with(Power::Disconnect));
        assert_eq!(granted.check("f", Power::Disconnect), Ok(()));
        assert_eq!(granted.check("f", Power::Shutdown), Err(Errno::Eperm));
        assert!(Power::ALL.into_iter().all(|power| Powers::ALL.has(power)));
        assert!(Power::ALL.into_iter().all(|power| Power::parse(power.name()) == Some(power)));
        assert_eq!(Powers::ALL.names().collect::<Vec<_>>(), ["shutdown", "disconnect"]);
    }
}
