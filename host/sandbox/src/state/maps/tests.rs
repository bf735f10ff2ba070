use super::super::random::Random;
use super::super::{FilterState, Limits};
use super::*;

fn map(limit: u64) -> (Arc<Quota>, Map) {
    let quota = Arc::new(Quota::new(limit));
    (Arc::clone(&quota), Map::new(quota))
}

/// A range within `len`: short, long, and at the edges of words and chunks.
fn range(random: &mut Random, len: u64) -> (u64, u64) {
    let mut first = random.below(len);
    if random.below(3) == 0 {
        first = first / 32 * 32;
    }
    if random.below(8) == 0 {
        first = first / BLOCKS * BLOCKS;
    }
    let most = match random.below(4) {
        0 => 2,
        1 => 70,
        2 => 3 * BLOCKS,
        _ => len,
    };
    (first, random.below(most.min(len - first)) + 1)
}

/// What a map should do, on an array.
struct Model(Vec<u8>);

impl Model {
    fn get_run(&self, first: u64, limit: u64) -> Run {
        let rest = self.0.get(first as usize..).unwrap_or(&[]);
        let state = rest.first().copied().unwrap_or(0);
        let count = rest.iter().take(limit as usize).take_while(|block| **block == state).count() as u64;
        Run { state: if count == 0 { 0 } else { state }, count }
    }

    fn find(&self, first: u64, states: u8) -> Option<u64> {
        let rest = self.0.get(first as usize..)?;
        rest.iter().position(|block| states & (1 << block) != 0).map(|found| first + found as u64)
    }

    fn set(&mut self, first: u64, count: u64, states: u8, to: u8) -> u64 {
        let mut set = 0;
        for block in &mut self.0[first as usize..(first + count) as usize] {
            if states & (1 << *block) != 0 {
                *block = to;
                set += 1;
            }
        }
        set
    }

    fn count(&self, state: u8) -> u64 {
        self.0.iter().filter(|block| **block == state).count() as u64
    }
}

/// Every question has the same answer, and what is charged is what the chunks that are there cost.
fn assert_same(map: &Map, model: &Model, quota: &Quota) {
    let mut at = 0;
    while at < model.0.len() as u64 {
        let run = map.get_run(at, u64::MAX).unwrap();
        assert_eq!(run, model.get_run(at, u64::MAX), "the run at {at}");
        at += run.count;
    }
    for state in 1..4 {
        assert_eq!(map.count(state), Ok(model.count(state)), "state {state}");
    }
    let shape = map.shape().unwrap();
    let mut cost = shape.stripes.len() as u64 * STRIPE_BYTES;
    for index in 0..shape.stripes.len() {
        for chunk in shape.read(index).values() {
            assert!(!chunk.is_blank(), "a chunk without anything in it was kept");
            cost += PLACE_BYTES + if chunk.is_mixed() { WORDS_BYTES } else { 0 };
        }
    }
    assert_eq!(quota.used(), cost);
}

#[test]
fn a_map_does_what_an_array_does() {
    let mut random = Random::seeded("a_map_does_what_an_array_does");
    for blocks in [1, 31, 1000, 2 * BLOCKS, 40 * BLOCKS + 17, 150 * BLOCKS] {
        let (quota, map) = map(u64::MAX >> 1);
        map.resize(512, blocks * 512 - 1).unwrap();
        let mut model = Model(vec![0; blocks as usize]);
        for step in 0..1500 {
            let (first, count) = range(&mut random, blocks);
            let states = random.below(16) as u8;
            match random.below(4) {
                0 => assert_eq!(map.get_run(first, count).unwrap(), model.get_run(first, count), "step {step}"),
                1 => assert_eq!(map.find(first, states).unwrap(), model.find(first, states), "step {step}"),
                _ => {
                    let to = random.below(4) as u8;
                    let set = map.set(first, count, states, to).unwrap();
                    assert_eq!(set, model.set(first, count, states, to), "step {step}: {first}+{count}");
                }
            }
            if step % 250 == 249 {
                assert_same(&map, &model, &quota);
            }
        }
        assert_same(&map, &model, &quota);
        map.set(0, blocks, 0b1111, 0).unwrap();
        assert!(map.is_blank());
        drop(map);
        assert_eq!(quota.used(), 0);
    }
}

#[test]
fn the_largest_export_costs_what_is_used_of_it() {
    let (quota, map) = map(1 << 20);
    map.resize(4096, i64::MAX as u64).unwrap();
    let blocks = map.blocks();
    assert_eq!(blocks, 1 << 51);
    assert_eq!(map.get_run(0, u64::MAX), Ok(Run { state: 0, count: blocks }));
    assert_eq!(map.set(blocks - 3, 3, 0b0001, 2), Ok(3));
    assert_eq!(map.set(1 << 40, 5000, 0b0001, 1), Ok(5000));
    assert_eq!(map.get_run(7, u64::MAX), Ok(Run { state: 0, count: (1 << 40) - 7 }));
    assert_eq!(map.find(0, 0b1110), Ok(Some(1 << 40)));
    assert_eq!(map.find(0, 0b0100), Ok(Some(blocks - 3)));
    assert_eq!(map.find(blocks, 0b0100), Ok(None));
    assert_eq!(map.get_run(blocks, 1), Ok(Run { state: 0, count: 0 }));
    // A whole clear looks only at what is there.
    assert_eq!(map.set(0, blocks, 0b1111, 0), Ok(blocks));
    assert_eq!(quota.used(), STRIPES * STRIPE_BYTES);
}

#[test]
fn a_set_without_memory_changes_nothing_and_traps() {
    let (quota, map) = map(STRIPES * STRIPE_BYTES + 3 * (PLACE_BYTES + WORDS_BYTES));
    map.resize(4096, 1 << 40).unwrap();
    for chunk in 0..3 {
        assert_eq!(map.set(chunk * BLOCKS + 5, 1, 0b1111, 1), Ok(1));
    }
    assert_eq!(map.set(9 * BLOCKS, 1, 0b1111, 1), Err(NO_MEMORY));
    assert_eq!(map.set(5, 8 * BLOCKS, 0b1111, 2), Err(NO_MEMORY));
    assert_eq!((map.count(1), map.count(2)), (Ok(3), Ok(0)));
    // What is there can still be changed and freed, and then there is memory again.
    assert_eq!(map.set(5, 1, 0b0010, 2), Ok(1));
    assert_eq!(map.set(0, BLOCKS, 0b1111, 0), Ok(BLOCKS));
    assert_eq!(map.set(9 * BLOCKS, 1, 0b1111, 1), Ok(1));
    assert!(quota.used() <= quota.limit());
}

#[test]
fn a_mistake_traps() {
    let (_quota, map) = map(1 << 20);
    assert_eq!(map.get_run(0, 1), Err(NOT_SIZED));
    assert_eq!(map.set(0, 0, 1, 1), Err(NOT_SIZED));
    assert_eq!(map.resize(0, 1), Err(Errno::Einval));
    map.resize(4096, 10 * 4096).unwrap();
    assert_eq!(map.resize(512, 10 * 4096), Err(Errno::Einval));
    assert_eq!(map.set(9, 2, 0b1111, 1), Err(OUTSIDE));
    assert_eq!(map.set(1, u64::MAX, 0b1111, 1), Err(OUTSIDE));
    assert_eq!(map.set(0, 1, 0b1111, 4), Err(NO_STATE));
    assert_eq!(map.set(0, 1, 16, 1), Err(NO_STATE));
    assert_eq!(map.find(0, 255), Err(NO_STATE));
    assert!(map.count(0).is_err() && map.count(4).is_err());
    map.resize(4096, 1).unwrap();
    assert_eq!(map.blocks(), 10);
    map.resize(4096, 11 * 4096).unwrap();
    assert_eq!(map.set(10, 1, 0b1111, 3), Ok(1));
}

#[test]
fn eight_threads_at_one_map_count_every_block_once() {
    let (_quota, map) = map(1 << 24);
    let blocks = 70 * BLOCKS + 5;
    map.resize(4096, blocks * 4096).unwrap();
    for (states, to) in [(0b0001, 1), (0b0010, 2), (0b0100, 3), (0b1000, 0)] {
        let claimed = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for thread in 0..8u64 {
                let (map, claimed) = (&map, &claimed);
                threads.spawn(move || {
                    // Each covers the whole map, in steps of its own that cross the edges of chunks.
                    let step = [1000, 77, 4096, 333, 2048, 9001, 64, 5][thread as usize];
                    let mut at = thread * 7919 % blocks;
                    let mut left = blocks;
                    while left > 0 {
                        let count = step.min(blocks - at).min(left);
                        claimed.fetch_add(map.set(at, count, states, to).unwrap(), Ordering::Relaxed);
                        left -= count;
                        at = (at + count) % blocks;
                    }
                });
            }
        });
        assert_eq!(claimed.into_inner(), blocks);
        assert_eq!(map.get_run(0, u64::MAX), Ok(Run { state: to, count: blocks }));
        for state in 1..4 {
            assert_eq!(map.count(state), Ok(if state == to { blocks } else { 0 }));
        }
    }
}

#[test]
fn a_range_is_seen_before_or_after_a_change_never_between() {
    let (_quota, map) = map(1 << 24);
    let blocks = 5 * BLOCKS;
    map.resize(4096, blocks * 4096).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..2000u32 {
                map.set(0, blocks, 0b1111, (round % 4) as u8).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        for _ in 0..3 {
            threads.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    assert_eq!(map.get_run(0, blocks).unwrap().count, blocks);
                    // Whoever claims gets all of it or nothing.
                    let claimed = map.set(0, blocks, 0b0010, 2).unwrap();
                    assert!(claimed == 0 || claimed == blocks, "{claimed}");
                }
            });
        }
    });
}

/// A scope with map 0 of as many blocks.
fn scope(blocks: u64) -> (Arc<FilterState>, Arc<ScopeState>) {
    let state = FilterState::new(Limits::default());
    let scope = state.connection();
    scope.map(0).unwrap().resize(4096, blocks * 4096).unwrap();
    (state, scope)
}

#[test]
fn what_is_held_back_is_seen_when_the_call_succeeds_and_not_before() {
    let (state, scope) = scope(3 * BLOCKS);
    let map = scope.map(0).unwrap();
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(changes.set(&scope, 0, 10, 5, 0b0001, 1, When::OnSuccess), Ok(0));
    assert_eq!(map.count(1), Ok(0));
    changes.publish();
    assert_eq!(map.count(1), Ok(5));
    changes.set(&scope, 0, 10, 1, 0b0010, 2, When::OnSuccess).unwrap();
    drop(changes);
    assert_eq!((map.count(1), map.count(2)), (Ok(5), Ok(0)), "dropped is failed");
    let mut changes = Changes::default();
    changes.set(&scope, 0, 0, 3 * BLOCKS, 0b0011, 0, When::OnSuccess).unwrap();
    changes.succeed();
    assert!(map.is_blank());
    assert_eq!(state.map_bytes(), before);
    assert_eq!(Changes::default().set(&scope, 0, 3 * BLOCKS, 1, 1, 1, When::OnSuccess), Err(OUTSIDE));
    assert!(Changes::default().set(&scope, 8, 0, 1, 1, 1, When::Now).is_err());
}

#[test]
fn what_fails_is_undone_but_for_what_others_have_moved_on() {
    let (state, scope) = scope(4 * BLOCKS);
    let map = scope.map(0).unwrap();
    map.set(0, 10, 0b0001, 2).unwrap();
    map.set(5, 1, 0b0100, 3).unwrap();
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(changes.set(&scope, 0, 0, 3 * BLOCKS, 0b0111, 1, When::UndoOnFailure), Ok(3 * BLOCKS - 1));
    // The same blocks once more in the same call, and somebody else on one of them.
    assert_eq!(changes.set(&scope, 0, 0, 4, 0b0010, 3, When::UndoOnFailure), Ok(4));
    map.set(1, 1, 0b1000, 2).unwrap();
    map.set(20, 1, 0b0010, 3).unwrap();
    changes.fail();
    let expected = [2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 0];
    for (block, state) in expected.into_iter().enumerate() {
        assert_eq!(map.get_run(block as u64, 1).unwrap().state, state, "block {block}");
    }
    assert_eq!(map.get_run(11, u64::MAX), Ok(Run { state: 0, count: 9 }));
    assert_eq!(map.get_run(20, u64::MAX), Ok(Run { state: 3, count: 1 }));
    assert_eq!(map.get_run(21, u64::MAX).unwrap().state, 0);
    assert_eq!(state.map_bytes(), before, "the logs gave back what they took");
    let mut changes = Changes::default();
    changes.set(&scope, 0, 0, 4, 0b1111, 1, When::UndoOnFailure).unwrap();
    changes.succeed();
    assert_eq!(map.get_run(0, 4), Ok(Run { state: 1, count: 4 }));
    assert_eq!(state.map_bytes(), before);
}

#[test]
fn undoing_at_random_restores_what_was_there() {
    let mut random = Random::seeded("undoing_at_random_restores_what_was_there");
    let blocks = 10 * BLOCKS + 3;
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
            let when = if random.below(3) == 0 { When::OnSuccess } else { When::UndoOnFailure };
            changes.set(&scope, 0, first, count, states, to, when).unwrap();
        }
        changes.fail();
        assert_same(map, &model, &state.shared.memory);
    }
}

#[test]
fn an_undo_log_has_bounds() {
    let state = FilterState::new(Limits { map_bytes: 40_000, ..Limits::default() });
    let scope = state.connection();
    let map = scope.map(0).unwrap();
    map.resize(4096, BLOCKS * 4096).unwrap();
    for block in (0..BLOCKS).step_by(2) {
        map.set(block, 1, 0b0001, 1).unwrap();
    }
    let before = state.map_bytes();
    let mut changes = Changes::default();
    assert_eq!(changes.set(&scope, 0, 0, BLOCKS, 0b0011, 2, When::UndoOnFailure), Err(NO_MEMORY));
    assert_eq!((map.count(1), map.count(2)), (Ok(BLOCKS / 2), Ok(0)));
    assert_eq!(state.map_bytes(), before);
}

#[test]
fn what_a_call_holds_back_can_be_published_in_a_moment() {
    let state = FilterState::new(Limits::default());
    let scope = state.connection();
    let all = HELD_CHUNKS / 2 * BLOCKS;
    scope.map(0).unwrap().resize(1, all).unwrap();
    let mut changes = Changes::default();
    let mut set = |first, count| changes.set(&scope, 0, first, count, 0b1110, 1, When::OnSuccess);
    assert_eq!([set(0, all), set(0, all)], [Ok(0), Ok(0)]);
    assert_eq!([set(0, all), set(0, 1)], [Err(TOO_MUCH), Err(TOO_MUCH)]);
    // What is published counts no more, and what an honest call holds back is far from it.
    changes.publish();
    let mut set = |first, count| changes.set(&scope, 0, first, count, 0b1110, 1, When::OnSuccess);
    assert!((0..10_000).all(|n| set(n * BLOCKS, BLOCKS + 7) == Ok(0)));
    changes.fail();
    assert_eq!(state.map_bytes(), STRIPES * STRIPE_BYTES);
}

#[test]
fn a_map_may_reach_to_the_end_of_what_can_be_counted() {
    for first_sized in [10, u64::MAX] {
        let (_, map) = map(u64::MAX >> 1);
        map.resize(1, first_sized).unwrap();
        map.resize(1, u64::MAX).unwrap();
        let last = u64::MAX - BLOCKS - 10;
        assert_eq!(map.set(last, u64::MAX - last, 0b1111, 1), Ok(u64::MAX - last));
        assert_eq!(map.get_run(last, u64::MAX), Ok(Run { state: 1, count: u64::MAX - last }));
        assert_eq!(map.get_run(0, u64::MAX), Ok(Run { state: 0, count: last }));
        assert_eq!((map.find(0, 0b0010), map.find(last, 0b1101)), (Ok(Some(last)), Ok(None)));
        assert_eq!(map.set(0, u64::MAX, 0b1111, 0), Ok(u64::MAX));
        assert_eq!(map.count(1), Ok(0));
    }
}

#[test]
fn what_may_be_undone_has_its_memory() {
    let state = FilterState::new(Limits { map_bytes: 64 << 10, ..Limits::default() });
    let scope = state.connection();
    let all = 500 * BLOCKS;
    let (one, two) = (scope.map(0).unwrap(), scope.map(1).unwrap());
    one.resize(1, all).unwrap();
    two.resize(1, all).unwrap();
    // Most of the memory, which looks as if it were free again.
    one.set(0, all, 0b0001, 1).unwrap();
    let mut call = Changes::default();
    assert_eq!(call.set(&scope, 0, 0, all, 0b0010, 0, When::UndoOnFailure), Ok(all));
    assert_eq!(two.set(0, all, 0b0001, 1), Err(NO_MEMORY));
    call.fail();
    assert_eq!(one.count(1), Ok(all));
    assert!(state.map_bytes() <= 64 << 10, "{}", state.map_bytes());
    // A call that succeeds gives it away.
    call.set(&scope, 0, 0, all, 0b0010, 0, When::UndoOnFailure).unwrap();
    call.succeed();
    assert_eq!(two.set(0, all, 0b0001, 1), Ok(all));
}
