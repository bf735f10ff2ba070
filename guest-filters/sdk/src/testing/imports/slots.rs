//! Small shared numbers.

use crate::Scope;
use crate::host::slots::Words;
use crate::testing::call::{Phase, REQUESTS, RUNNING, with};
use crate::testing::world::UntilClose;

fn checked(slot: u32) -> usize {
    assert!(slot < 16, "slots: there is no slot {slot}, only 0 to 15");
    slot as usize
}

/// The phases in which the slots of a scope may be used.
fn phases(s: Scope) -> &'static [Phase] {
    if s == Scope::Server { &RUNNING } else { &REQUESTS }
}

pub(crate) fn get(s: Scope, slot: u32) -> Words {
    with("slots.get", phases(s), |call| {
        let owner = call.owner(s);
        call.world().state(owner).slots[checked(slot)]
    })
}

pub(crate) fn replace(s: Scope, slot: u32, version: u64, a: u64, b: u64, c: u64, d: u64) -> bool {
    with("slots.replace", phases(s), |call| {
        let owner = call.owner(s);
        let mut world = call.world();
        let words = &mut world.state(owner).slots[checked(slot)];
        let same = words.version == version;
        if same {
            *words = Words { version: version + 1, a, b, c, d };
        }
        same
    })
}

pub(crate) fn add(s: Scope, slot: u32, delta: i64) -> u64 {
    with("slots.add", phases(s), |call| {
        let owner = call.owner(s);
        call.world().add(owner, checked(slot), delta)
    })
}

pub(crate) fn add_until_close(s: Scope, slot: u32, delta: i64) -> u64 {
    with("slots.add-until-close", &REQUESTS, |call| {
        let (owner, connection, slot) = (call.owner(s), call.connection().id, checked(slot));
        let mut world = call.world();
        world.until_close.push(UntilClose { connection, owner, slot, delta });
        world.add(owner, slot, delta)
    })
}
