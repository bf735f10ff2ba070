//! What the filter's layer offers. The rules are the server's.

use crate::{Capabilities, Support};

/// What a filter exports, as far as the offers depend on it.
#[derive(Clone, Copy)]
pub(super) struct Nature {
    pub(super) interfaces: &'static [&'static str],
    pub(super) transparent: bool,
}

impl Nature {
    pub(super) fn exports(self, interface: &str) -> bool {
        self.interfaces.contains(&interface)
    }

    /// What a filter offers that does not export `features`.
    fn by_default(self, below: Capabilities) -> Capabilities {
        let support = |interface: &str, below: Support| match below {
            Support::None => Support::None,
            _ if self.transparent || self.exports(interface) => Support::Native,
            _ => Support::Emulate,
        };
        let (zero, cache) = (support("zeroes", below.zero), support("caching", below.cache));
        if self.transparent {
            return Capabilities { zero, cache, ..below };
        }
        Capabilities {
            write: self.exports("writes") && below.write,
            trim: self.exports("trims") && below.trim,
            fast_zero: self.exports("zeroes") && below.fast_zero,
            extents: self.exports("mapping") && below.extents,
            fua: if below.fua == Support::None { Support::None } else { Support::Emulate },
            zero,
            cache,
            ..below
        }
    }

    /// What the layer offers, and which claims of the filter are false.
    pub(super) fn offers(
        self,
        below: Capabilities,
        claimed: Option<Capabilities>,
    ) -> (Capabilities, Vec<&'static str>) {
        let Some(mut can) = claimed else { return (self.by_default(below), Vec::new()) };
        let mut wrong = Vec::new();
        let mut withdraw = |offered: &mut bool, interface: &str, passed_on: bool, claim: &'static str| {
            if *offered && !self.exports(interface) && !passed_on {
                *offered = false;
                wrong.push(claim);
            }
        };
        let passes = self.transparent;
        withdraw(&mut can.write, "writes", passes && below.write, "it says that it can write, and cannot");
        withdraw(&mut can.flush, "flushes", below.flush, "it says that it can flush, and cannot");
        withdraw(&mut can.trim, "trims", passes && below.trim, "it says that it can trim, and cannot");
        withdraw(&mut can.extents, "mapping", passes && below.extents, "it says that it has extents, and has not");
        let mut native = |offered: &mut Support, interface: &str, below: Support, claim: &'static str| {
            if *offered != Support::None && passes && !self.exports(interface) && below != Support::None {
                *offered = Support::Native;
            } else if *offered == Support::Native && !self.exports(interface) {
                *offered = Support::Emulate;
                wrong.push(claim);
            }
        };
        native(&mut can.zero, "zeroes", below.zero, "it says that zero is native, and cannot zero");
        native(&mut can.cache, "caching", below.cache, "it says that cache is native, and cannot cache");
        can.fast_zero &= can.zero == Support::Native && (self.exports("zeroes") || below.fast_zero);
        if can.fua == Support::Native && !self.exports("writes") && !(passes && below.fua != Support::None) {
            can.fua = Support::Emulate;
            wrong.push("it says that FUA is native, and cannot write");
        }
        (can, wrong)
    }
}

/// Withdraws what makes no sense: without write there is no trim, zero or FUA.
pub(super) fn sensible(can: Capabilities) -> Capabilities {
    match can.write {
        true => can,
        false => Capabilities { trim: false, fast_zero: false, zero: Support::None, fua: Support::None, ..can },
    }
}
