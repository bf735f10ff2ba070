//! Decides what a layer offers, from what the layer below offers, what the filter exports and what
//! the filter claims.
//!
//! The gate above acts on this answer, so the answer decides where an operation goes. `native`
//! sends it to this layer's handle: to the guest if it exports the operation, to the layer below if
//! the filter is transparent. `emulate` makes the gate replace it by other operations on this
//! layer. If the gate below emulates an operation and a transparent filter passes it on, this layer
//! has to say `native`. If it said `emulate`, the gate above would replace the operation here, and
//! the guest would see writes that the client did not send.

use rbdkit_plugin_api::{Capabilities, Support};

use crate::guest::exported::Exported;

/// What the layer offers, and which claims of the guest are false.
pub(crate) fn settle(
    exported: &Exported,
    below: Capabilities,
    claimed: Option<Capabilities>,
) -> (Capabilities, Vec<&'static str>) {
    match claimed {
        None => (by_default(exported, below), Vec::new()),
        Some(claimed) => checked(exported, below, claimed),
    }
}

/// An operation that a layer may do itself, leave to the layer below, or have emulated.
#[derive(Clone, Copy)]
struct Operation {
    /// The filter exports it.
    exported: bool,
    /// The filter leaves what it does not export to the layer below.
    transparent: bool,
    below: Support,
}

impl Operation {
    /// What a filter without a claim offers. A transparent filter passes the operation on, even if
    /// the gate below emulates it.
    fn default_support(self) -> Support {
        match self.below {
            Support::None => Support::None,
            _ if self.transparent || self.exported => Support::Native,
            _ => Support::Emulate,
        }
    }

    /// What a filter with this claim offers. None: the claim is false, and the operation is
    /// emulated.
    fn claimed_support(self, claimed: Support) -> Option<Support> {
        match claimed {
            Support::None => Some(Support::None),
            // It is passed on, so this layer's gate must not replace it.
            _ if self.transparent && !self.exported && self.below != Support::None => Some(Support::Native),
            Support::Native if !self.exported => None,
            claimed => Some(claimed),
        }
    }
}

fn by_default(exported: &Exported, below: Capabilities) -> Capabilities {
    let zero = Operation { exported: exported.zeroes, transparent: exported.transparent, below: below.zero };
    let cache = Operation { exported: exported.caching, below: below.cache, ..zero };
    let (zero, cache) = (zero.default_support(), cache.default_support());
    if exported.transparent {
        return Capabilities { zero, cache, ..below };
    }
    Capabilities {
        write: exported.writes && below.write,
        flush: below.flush,
        rotational: below.rotational,
        multi_conn: below.multi_conn,
        trim: exported.trims && below.trim,
        fast_zero: exported.zeroes && below.fast_zero,
        extents: exported.mapping && below.extents,
        fua: if below.fua == Support::None { Support::None } else { Support::Emulate },
        zero,
        cache,
    }
}

fn checked(exported: &Exported, below: Capabilities, claimed: Capabilities) -> (Capabilities, Vec<&'static str>) {
    let mut false_claims = Vec::new();
    let transparent = exported.transparent;
    let mut can = claimed;
    let mut withdraw = |offered: &mut bool, exported: bool, passed_on: bool, claim: &'static str| {
        if *offered && !exported && !passed_on {
            *offered = false;
            false_claims.push(claim);
        }
    };
    withdraw(&mut can.write, exported.writes, transparent && below.write, "it says that it can write, and cannot");
    withdraw(&mut can.flush, exported.flushes, below.flush, "it says that it can flush, and cannot");
    withdraw(&mut can.trim, exported.trims, transparent && below.trim, "it says that it can trim, and cannot");
    let extents_below = transparent && below.extents;
    withdraw(&mut can.extents, exported.mapping, extents_below, "it says that it has extents, and has not");

    let zero = Operation { exported: exported.zeroes, transparent, below: below.zero };
    can.zero = zero.claimed_support(claimed.zero).unwrap_or_else(|| {
        false_claims.push("it says that zero is native, and cannot zero: the host writes zeroes");
        Support::Emulate
    });
    let cache = Operation { exported: exported.caching, transparent, below: below.cache };
    can.cache = cache.claimed_support(claimed.cache).unwrap_or_else(|| {
        false_claims.push("it says that cache is native, and cannot cache: the host reads");
        Support::Emulate
    });
    if can.fast_zero && can.zero != Support::Native {
        can.fast_zero = false;
    }
    if can.fast_zero && !exported.zeroes && !below.fast_zero {
        can.fast_zero = false;
    }
    let writes = exported.writes || (transparent && below.fua != Support::None);
    if claimed.fua == Support::Native && !writes {
        false_claims.push("it says that FUA is native, and cannot write: the host flushes");
        can.fua = Support::Emulate;
    }
    (can, false_claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Capabilities = Capabilities {
        write: true,
        flush: true,
        rotational: true,
        trim: true,
        fast_zero: true,
        extents: true,
        multi_conn: true,
        zero: Support::Native,
        fua: Support::Native,
        cache: Support::Native,
    };

    fn exported(transparent: bool) -> Exported {
        Exported { transparent, reads: true, ..Exported::default() }
    }

    #[test]
    fn an_opaque_filter_is_never_routed_around() {
        let (can, _) = settle(&exported(false), ALL, None);
        assert!(!can.write && !can.trim && !can.extents && can.flush);
        let (can, _) = settle(&Exported { writes: true, ..exported(false) }, ALL, None);
        assert!(can.write && !can.trim && !can.extents && !can.fast_zero);
        assert_eq!((can.zero, can.fua, can.cache), (Support::Emulate, Support::Emulate, Support::Emulate));
    }

    #[test]
    fn a_transparent_filter_offers_what_is_below() {
        let (can, _) = settle(&exported(true), ALL, None);
        assert_eq!(can, ALL);
        let emulated = Capabilities { zero: Support::Emulate, cache: Support::Emulate, ..ALL };
        let (can, _) = settle(&exported(true), emulated, None);
        assert_eq!((can.zero, can.cache), (Support::Native, Support::Native));
        let (can, _) = settle(&exported(true), Capabilities { cache: Support::None, ..ALL }, None);
        assert_eq!(can.cache, Support::None);
    }

    #[test]
    fn a_false_claim_is_withdrawn() {
        let writes = Exported { writes: true, ..exported(false) };
        let (can, false_claims) = settle(&writes, ALL, Some(ALL));
        assert!(!can.trim && !can.extents && !can.fast_zero);
        assert_eq!((can.zero, can.fua, can.cache), (Support::Emulate, Support::Native, Support::Emulate));
        assert_eq!(false_claims.len(), 4, "{false_claims:?}");
        let (can, false_claims) = settle(&exported(true), Capabilities::READ_ONLY, Some(ALL));
        assert!(!can.write && !can.flush);
        assert_eq!(can.normalized().zero, Support::None);
        assert!(!false_claims.is_empty());
    }
}
