//! How long each operation waits.

/// The delay of each operation in nanoseconds. A later parameter replaces an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
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

impl Delays {
    /// Applies one parameter. False if it does not name a delay.
    pub fn set(&mut self, name: &str, ns: u64) -> bool {
        match name {
            "delay-read" => self.read = ns,
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
    fn wdelay_sets_the_delays_of_write_zero_and_trim() {
        let mut delays = Delays::default();
        assert!(delays.set("wdelay", 5));
        assert_eq!(delays, Delays { write: 5, zero: 5, trim: 5, ..Delays::default() });
        assert!(delays.set("delay-zero", 7));
        assert_eq!((delays.write, delays.zero), (5, 7));
        assert!(!delays.set("delay-fast-zero", 7));
    }

    #[test]
    fn the_later_of_two_parameters_wins() {
        let mut delays = Delays::default();
        delays.set("delay-read", 1);
        delays.set("delay-read", 2);
        assert_eq!(delays.read, 2);
    }
}
