use super::super::map::model::{Model, assert_same, range};
use super::super::map::{BlockRun, CHUNK_BLOCKS, STRIPE_BYTES};
use super::super::random::Random;
use super::super::{FilterState, StateLimits};
use super::*;

/// A scope with map 0 of this many blocks.
fn scope(blocks: u64) -> (Arc<FilterState>, Arc<ScopeState>) {
    let state = FilterState::new(StateLimits::default());
    let scope = state.connection();
    scope.map(0).unwrap().resize(4096, blocks * 4096).unwrap();
    (state, scope)
}

#[test]
fn what_is_held_back_is_seen_when_the_call_succeeds_and_not_before() {
    let (state, scope) = scope(3 * CHUNK_BLOCKS);
    let map = scope.map(0).unwrap();
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(changes.set(&scope, 0, 10, 5, 0b0001, 1, ChangeTiming::OnSuccess), Ok(0));
    assert_eq!(map.count(1), Ok(0));
    changes.publish();
    assert_eq!(map.count(1), Ok(5));
    changes.set(&scope, 0, 10, 1, 0b0010, 2, ChangeTiming::OnSuccess).unwrap();
    drop(changes);
    assert_eq!((map.count(1), map.count(2)), (Ok(5), Ok(0)), "dropped is failed");
    let mut changes = Changes::default();
    changes.set(&scope, 0, 0, 3 * CHUNK_BLOCKS, 0b0011, 0, ChangeTiming::OnSuccess).unwrap();
    changes.succeed();
    assert!(map.is_blank());
    assert_eq!(state.map_bytes(), before);
    assert_eq!(
        Changes::default().set(&scope, 0, 3 * CHUNK_BLOCKS, 1, 1, 1, ChangeTiming::OnSuccess),
        Err(Misuse("a range of blocks ends outside of its map"))
    );
    assert!(Changes::default().set(&scope, 8, 0, 1, 1, 1, ChangeTiming::Now).is_err());
}

#[test]
fn what_fails_is_undone_but_for_what_others_have_moved_on() {
    let (state, scope) = scope(4 * CHUNK_BLOCKS);
    let map = scope.map(0).unwrap();
    map.set(0, 10, 0b0001, 2).unwrap();
    map.set(5, 1, 0b0100, 3).unwrap();
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(
        changes.set(&scope, 0, 0, 3 * CHUNK_BLOCKS, 0b0111, 1, ChangeTiming::UndoOnFailure),
        Ok(3 * CHUNK_BLOCKS - 1)
    );
    // The same blocks again in the same call, and another call changes one of them.
    assert_eq!(changes.set(&scope, 0, 0, 4, 0b0010, 3, ChangeTiming::UndoOnFailure), Ok(4));
    map.set(1, 1, 0b1000, 2).unwrap();
    map.set(20, 1, 0b0010, 3).unwrap();
    changes.fail();
    let expected = [2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 0];
    for (block, state) in expected.into_iter().enumerate() {
        assert_eq!(map.get_run(block as u64, 1).unwrap().state, state, "block {block}");
    }
    assert_eq!(map.get_run(11, u64::MAX), Ok(BlockRun { state: 0, count: 9 }));
    assert_eq!(map.get_run(20, u64::MAX), Ok(BlockRun { state: 3, count: 1 }));
    assert_eq!(map.get_run(21, u64::MAX).unwrap().state, 0);
    assert_eq!(state.map_bytes(), before, "the logs gave back what they took");
    let mut changes = Changes::default();
    changes.set(&scope, 0, 0, 4, 0b1111, 1, ChangeTiming::UndoOnFailure).unwrap();
    changes.succeed();
    assert_eq!(map.get_run(0, 4), Ok(BlockRun { state: 1, count: 4 }));
    assert_eq!(state.map_bytes(), before);
}

#[test]
fn undoing_at_random_restores_what_was_there() {
    let mut random = Random::seeded("undoing_at_random_restores_what_was_there");
    let blocks = 10 * CHUNK_BLOCKS + 3;
    let (state, scope) = scope(blocks);
    let map = scope.map(0).unwrap();
    let mut model = Model(vec![0; blocks as usize]);
    for _ in 0..60 {
        for _ in 0..5 {
            let (first, count) = range(&mut random, blocks);
            let (states, to) = (random.below(16) as u8, random.below(4) as u8);
            map.set(first, count, states, to).unwrap();
            model.set(first, count, states, to);
        }
        let mut changes = Changes::default();
        for _ in 0..random.below(8) {
            let (first, count) = range(&mut random, blocks);
            let (states, to) = (random.below(16) as u8, random.below(4) as u8);
            let timing = if random.below(3) == 0 { ChangeTiming::OnSuccess } else { ChangeTiming::UndoOnFailure };
            changes.set(&scope, 0, first, count, states, to, timing).unwrap();
        }
        changes.fail();
        assert_same(map, &model, state.memory());
    }
}

#[test]
fn an_undo_log_has_bounds() {
    let state = FilterState::new(StateLimits { map_bytes: 40_000, ..StateLimits::default() });
    let scope = state.connection();
    let map = scope.map(0).unwrap();
    map.resize(4096, CHUNK_BLOCKS * 4096).unwrap();
    for block in (0..CHUNK_BLOCKS).step_by(2) {
        map.set(block, 1, 0b0001, 1).unwrap();
    }
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(changes.set(&scope, 0, 0, CHUNK_BLOCKS, 0b0011, 2, ChangeTiming::UndoOnFailure), Err(NO_MEMORY));
    assert_eq!((map.count(1), map.count(2)), (Ok(CHUNK_BLOCKS / 2), Ok(0)));
    assert_eq!(state.map_bytes(), before);
}

#[test]
fn what_a_call_holds_back_can_be_published_in_a_moment() {
    let state = FilterState::new(StateLimits::default());
    let scope = state.connection();
    let all = MAX_HELD_CHUNKS / 2 * CHUNK_BLOCKS;
    scope.map(0).unwrap().resize(1, all).unwrap();
    let mut changes = Changes::default();
    let mut set = |first, count| changes.set(&scope, 0, first, count, 0b1110, 1, ChangeTiming::OnSuccess);
    assert_eq!([set(0, all), set(0, all)], [Ok(0), Ok(0)]);
    assert_eq!([set(0, all), set(0, 1)], [Err(TOO_MUCH), Err(TOO_MUCH)]);
    // Published changes no longer count, and an honest call holds back far fewer.
    changes.publish();
    let mut set = |first, count| changes.set(&scope, 0, first, count, 0b1110, 1, ChangeTiming::OnSuccess);
    assert!((0..10_000).all(|n| set(n * CHUNK_BLOCKS, CHUNK_BLOCKS + 7) == Ok(0)));
    changes.fail();
    assert_eq!(state.map_bytes(), 64 * STRIPE_BYTES);
}

#[test]
fn what_may_be_undone_has_its_memory() {
    let state = FilterState::new(StateLimits { map_bytes: 64 << 10, ..StateLimits::default() });
    let scope = state.connection();
    let all = 500 * CHUNK_BLOCKS;
    let (one, two) = (scope.map(0).unwrap(), scope.map(1).unwrap());
    one.resize(1, all).unwrap();
    two.resize(1, all).unwrap();
    // Takes most of the memory, which seems to be free again.
    one.set(0, all, 0b0001, 1).unwrap();
    let mut call = Changes::default();
    assert_eq!(call.set(&scope, 0, 0, all, 0b0010, 0, ChangeTiming::UndoOnFailure), Ok(all));
    assert_eq!(two.set(0, all, 0b0001, 1), Err(NO_MEMORY));
    call.fail();
    assert_eq!(one.count(1), Ok(all));
    assert!(state.map_bytes() <= 64 << 10, "{}", state.map_bytes());
    // A call that succeeds gives it back.
    call.set(&scope, 0, 0, all, 0b0010, 0, ChangeTiming::UndoOnFailure).unwrap();
    call.succeed();
    assert_eq!(two.set(0, all, 0b0001, 1), Ok(all));
}
