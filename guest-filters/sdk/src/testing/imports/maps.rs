//! Shared maps of blocks.

use crate::host::maps::{Run, When};
use crate::testing::call::{MapChange, REQUESTS, Undo, attempt, with};
use crate::testing::shared_state::BlockMap;
use crate::{Errno, Scope};

/// The map with this number, which has to have a size.
fn sized(maps: &mut [BlockMap; 8], id: u32) -> &mut BlockMap {
    let map = maps.get_mut(id as usize).unwrap_or_else(|| panic!("maps: there is no map {id}, only 0 to 7"));
    assert!(map.is_sized(), "maps: map {id} was not sized: call resize first");
    map
}

pub(crate) fn resize(s: Scope, id: u32, block: u32, bytes: u64) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let owner = call.owner(s);
        let mut world = call.world();
        world.state(owner).maps.get_mut(id as usize).ok_or(Errno::Einval)?.resize(block, bytes)
    })
}

pub(crate) fn get_run(s: Scope, id: u32, first: u64, limit: u64) -> Run {
    with("maps.get-run", &REQUESTS, |call| {
        let owner = call.owner(s);
        sized(&mut call.world().state(owner).maps, id).run(first, limit)
    })
}

pub(crate) fn find(s: Scope, id: u32, first: u64, states: u8) -> Option<u64> {
    with("maps.find", &REQUESTS, |call| {
        let owner = call.owner(s);
        sized(&mut call.world().state(owner).maps, id).find(first, states)
    })
}

pub(crate) fn set(s: Scope, id: u32, first: u64, count: u64, if_states: u8, to: u8, w: When) -> u64 {
    with("maps.set", &REQUESTS, |call| {
        assert!(to < 4, "maps: there is no state {to}, only 0 to 3");
        let owner = call.owner(s);
        let (matched, undo) = {
            let mut world = call.world();
            let states = sized(&mut world.state(owner).maps, id).range(first, count);
            let mut undo = Vec::new();
            for (block, state) in (first..).zip(states) {
                if if_states >> *state & 1 == 1 {
                    undo.push(Undo { owner, map: id as usize, block, from: *state, to });
                    if w != When::OnSuccess {
                        *state = to;
                    }
                }
            }
            (undo.len() as u64, undo)
        };
        match w {
            When::Now => matched,
            When::UndoOnFailure => {
                call.undo.extend(undo);
                matched
            }
            When::OnSuccess => {
                call.on_success.push(MapChange { owner, map: id as usize, first, count, states: if_states, to });
                0
            }
        }
    })
}

pub(crate) fn count(s: Scope, id: u32, state: u8) -> u64 {
    with("maps.count", &REQUESTS, |call| {
        assert!((1..4).contains(&state), "maps: the host counts the states 1 to 3, not {state}");
        let owner = call.owner(s);
        sized(&mut call.world().state(owner).maps, id).count(state)
    })
}
