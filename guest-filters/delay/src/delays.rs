//! Which operation waits for how long.

/// Nanoseconds for each operation, as the parameters say. A later parameter replaces an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Before pread.
    pub read: u64,
    /// Before pwrite.
    pub write: u64,
    /// Before zero.
    pub zero: u64,
    /// Before trim.
    pub trim: u64,
    /// Before extents.
    pub extents: u64,
    /// Before cache.
    pub cache: u64,
    /// Before a connection is opened.
    pub open: u64,
    /// Before a connection is closed.
    pub close: u64,
}

impl Plan {
    /// Takes one parameter; false if it is none of these.
    pub fn set(&mut self, name: &str, ns: u64) -> bool {
        match name {
            "delay-read" | "rdelay" => self.read = ns,
            "delay-write" => self.write = ns,
            "delay-zero" => self.zero = ns,
            "delay-trim" => self.trim = ns,
            "delay-extents" => self.extents = ns,
            "delay-cache" => self.cache = ns,
            "delay-open" => self.open = ns,
            "delay-close" => self.close = ns,
            "wdelay" => (self.write, self.zero, self.trim) = (ns, ns, ns),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wdelay_stands_for_writes_zeroes_and_trims() {
        let mut plan = Plan::default();
        assert!(plan.set("wdelay", 5));
        assert_eq!(plan, Plan { write: 5, zero: 5, trim: 5, ..Plan::default() });
        assert!(plan.set("delay-zero", 7));
        assert_eq!((plan.write, plan.zero), (5, 7));
        assert!(!plan.set("delay-fast-zero", 7));
    }

    #[test]
    fn rdelay_and_delay_read_are_the_same() {
        let mut plan = Plan::default();
        plan.set("rdelay", 1);
        assert_eq!(plan.read, 1);
        plan.set("delay-read", 2);
        assert_eq!(plan.read, 2);
    }
}
