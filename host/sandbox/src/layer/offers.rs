//! What a layer offers, from what is below it, what the filter exports, and what the filter claims.
//!
//! The gate above acts on this answer, so it decides where an operation goes. `native` sends it to
//! this layer's handle: to the guest if it exports the operation, to the layer below if the filter
//! is transparent. `emulate` makes the gate replace it by other operations on this layer. So where
//! a transparent filter passes on an operation that the gate below emulates, this layer has to say
//! `native`: if it said `emulate`, the gate above would replace the operation here, and the guest
//! would see writes that nobody sent.

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

/// An operation that a transparent filter does not export. It is passed on, also where it is
/// emulated below.
fn passed_on(below: Support) -> Support {
    match below {
        Support::None => Support::None,
        _ => Support::Native,
    }
}

/// An operation of an opaque filter: native if the filter exports it, otherwise emulated. None if
/// there is none below.
fn or_emulated(exported: bool, below: Support) -> Support {
    match (exported, below) {
        (_, Support::None) => Support::None,
        (true, _) => Support::Native,
        (false, _) => Support::Emulate,
    }
}

fn by_default(exported: &Exported, below: Capabilities) -> Capabilities {
    if exported.transparent {
        return Capabilities { zero: passed_on(below.zero), cache: passed_on(below.cache), ..below };
    }
    Capabilities {
        write: exported.writes && below.write,
        flush: below.flush,
        rotational: below.rotational,
        multi_conn: below.multi_conn,
        trim: exported.trims && below.trim,
        fast_zero: exported.zeroes && below.fast_zero,
        extents: exported.mapping && below.extents,
        zero: or_emulated(exported.zeroes, below.zero),
        fua: or_emulated(false, below.fua),
        cache: or_emulated(exported.caching, below.cache),
    }
}

fn checked(exported: &Exported, below: Capabilities, claimed: Capabilities) -> (Capabilities, Vec<&'static str>) {
    let mut false_claims = Vec::new();
    let transparent = exported.transparent;
    let mut can = claimed;
    let mut withdraw = |offered: &mut bool, here: bool, there: bool, claim: &'static str| {
        if *offered && !here && !there {
            *offered = false;
            false_claims.push(claim);
        }
    };
    withdraw(&mut can.write, exported.writes, transparent && below.write, "it says that it can write, and cannot");
    withdraw(&mut can.flush, exported.flushes, below.flush, "it says that it can flush, and cannot");
    withdraw(&mut can.trim, exported.trims, transparent && below.trim, "it says that it can trim, and cannot");
    let extents_below = transparent && below.extents;
    withdraw(&mut can.extents, exported.mapping, extents_below, "it says that it has extents, and has not");

    let zero_claim = "it says that zero is native, and cannot zero: the host writes zeroes";
    can.zero = support(claimed.zero, exported.zeroes, transparent, below.zero, zero_claim, &mut false_claims);
    let cache_claim = "it says that cache is native, and cannot cache: the host reads";
    can.cache = support(claimed.cache, exported.caching, transparent, below.cache, cache_claim, &mut false_claims);
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

fn support(
    claimed: Support,
    exported: bool,
    transparent: bool,
    below: Support,
    claim: &'static str,
    false_claims: &mut Vec<&'static str>,
) -> Support {
    match claimed {
        Support::None => Support::None,
        // It is passed on, so it is not replaced here.
        _ if transparent && !exported && below != Support::None => Support::Native,
        Support::Native if !exported => {
            false_claims.push(claim);
            Support::Emulate
        }
        claimed => claimed,
    }
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
    fn a_lie_is_withdrawn() {
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
