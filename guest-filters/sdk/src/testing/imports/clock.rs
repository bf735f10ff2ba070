//! Time, which the test sets, and random numbers, which are the same in every run.

use crate::testing::call::{ALL, with};

/// 2025-01-01, as nanoseconds since 1970.
const START: u64 = 1_735_689_600_000_000_000;

pub(crate) fn monotonic() -> u64 {
    with("clock.monotonic", &ALL, |call| call.world().time)
}

pub(crate) fn realtime() -> u64 {
    START + monotonic()
}

/// The generator splitmix64.
pub(crate) fn random() -> u64 {
    with("clock.random", &ALL, |call| {
        let mut world = call.world();
        world.random = world.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = world.random;
        n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    })
}
