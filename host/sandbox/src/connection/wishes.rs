//! The limits that a filter asks for (`wishes.limits`), and what it gets.

use std::time::Duration;

use rbdkit_plugin_api::units;

use super::limits::FilterLimits;

/// The most bytes of memory that an instance gets for a wish.
const MEMORY: u64 = 1 << 30;

/// The most bytes of buffers that one call gets for a wish.
const BUFFERS: u64 = 1 << 30;

/// The most bytes of a scratch file that a filter gets for a wish.
const SCRATCH: u64 = 64 << 30;

/// The most time for opening and the like that a filter gets for a wish.
const SETUP: Duration = Duration::from_secs(600);

/// The most waits of a request that a filter gets for a wish.
const WAITS: u32 = 1 << 24;

/// A limit that a filter asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The limit's name in `--filter-limit`.
    pub limit: &'static str,
    /// Bytes, nanoseconds or a number.
    pub wanted: u64,
    /// What it gets if the operator does not set the limit.
    pub granted: u64,
}

impl Wish {
    /// The value as `--filter-limit` takes it.
    pub fn shown(&self, value: u64) -> String {
        match self.limit {
            "waits" => value.to_string(),
            "setup" => format!("{:?}", Duration::from_nanos(value)),
            _ => units::format_size(value),
        }
    }
}

/// Checks the wishes of a filter.
///
/// # Errors
/// What is wrong with them, in one line.
pub(crate) fn checked(told: &[(String, u64)], memory_all: u64) -> Result<Vec<Wish>, String> {
    const KNOWN: [&str; 5] = ["memory", "buffers", "scratch", "setup", "waits"];
    let mut wishes: Vec<Wish> = Vec::new();
    for (name, wanted) in told {
        let Some(limit) = KNOWN.into_iter().find(|known| known == name) else {
            let name = rbdkit_plugin_api::text::one_line_within(name, 64);
            return Err(format!("it asks for a limit \"{name}\": there are {}", KNOWN.join(", ")));
        };
        if wishes.iter().any(|wish| wish.limit == limit) {
            return Err(format!("it asks for the limit {limit} twice"));
        }
        let most = match limit {
            "memory" => MEMORY.min(memory_all / 2),
            "buffers" => BUFFERS,
            "scratch" => SCRATCH,
            "setup" => SETUP.as_nanos() as u64,
            _ => u64::from(WAITS),
        };
        wishes.push(Wish { limit, wanted: *wanted, granted: (*wanted).clamp(1, most) });
    }
    Ok(wishes)
}

impl FilterLimits {
    /// Grants wishes for limits that the operator has not set. Returns those that were granted.
    pub(crate) fn grant<'a>(&mut self, wishes: &'a [Wish]) -> Vec<&'a Wish> {
        let open: Vec<&Wish> = wishes.iter().filter(|wish| !self.set_by_operator.contains(wish.limit)).collect();
        for wish in &open {
            match wish.limit {
                "memory" => self.memory = wish.granted,
                "buffers" => {
                    self.buffers = wish.granted;
                    self.buffers_total = self.buffers_total.max(wish.granted);
                }
                "scratch" => self.scratch = Some(wish.granted),
                "setup" => self.setup = Duration::from_nanos(wish.granted),
                _ => self.waits = wish.granted as u32,
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::limit_options::Limits;

    fn told(wishes: &[(&str, u64)]) -> Vec<(String, u64)> {
        wishes.iter().map(|(name, value)| ((*name).to_string(), *value)).collect()
    }

    #[test]
    fn wishes_are_granted_up_to_a_bound_and_below_the_default() {
        let all = [("memory", u64::MAX), ("setup", 1), ("waits", u64::MAX), ("scratch", 1 << 40), ("buffers", 5)];
        let wishes = checked(&told(&all), 1 << 30).unwrap();
        let mut limits = FilterLimits::default();
        assert_eq!(limits.grant(&wishes).len(), 5);
        assert_eq!((limits.memory, limits.scratch, limits.buffers), (512 << 20, Some(64 << 30), 5));
        assert_eq!((limits.setup, limits.waits), (Duration::from_nanos(1), 1 << 24));
        assert_eq!(limits.buffers_total, FilterLimits::default().buffers_total);
    }

    #[test]
    fn what_the_operator_has_set_stays() {
        let wishes = checked(&told(&[("memory", 7 << 20), ("waits", 9)]), 4 << 30).unwrap();
        let mut limits = Limits::default();
        limits.set(None, "memory", "16M").unwrap();
        assert_eq!(limits.filter.grant(&wishes), [&wishes[1]]);
        assert_eq!((limits.filter.memory, limits.filter.waits), (16 << 20, 9));
    }

    #[test]
    fn wishes_for_other_limits_are_refused_in_one_line() {
        let refused = |wishes: &[(&str, u64)]| checked(&told(wishes), 1 << 30).unwrap_err();
        assert_eq!(
            refused(&[("cpu", 1)]),
            "it asks for a limit \"cpu\": there are memory, buffers, scratch, setup, waits"
        );
        assert_eq!(refused(&[("memory", 1), ("memory", 2)]), "it asks for the limit memory twice");
    }
}
