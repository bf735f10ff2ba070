use super::super::random::Random;
use super::change::{ENTRY_BYTES, WORDS_BYTES};
use super::model::{Model, assert_same, range};
use super::stripes::MAX_STRIPES;
use super::*;

fn map(limit: u64) -> (Arc<Quota>, Map) {
    let quota = Arc::new(Quota::new(limit));
    (Arc::clone(&quota), Map::new(quota))
}

#[test]
fn a_map_does_what_an_array_does() {
    let mut random = Random::seeded("a_map_does_what_an_array_does");
    for blocks in [1, 31, 1000, 2 * CHUNK_BLOCKS, 40 * CHUNK_BLOCKS + 17, 150 * CHUNK_BLOCKS] {
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
    assert_eq!(map.get_run(0, u64::MAX), Ok(BlockRun { state: 0, count: blocks }));
    assert_eq!(map.set(blocks - 3, 3, 0b0001, 2), Ok(3));
    assert_eq!(map.set(1 << 40, 5000, 0b0001, 1), Ok(5000));
    assert_eq!(map.get_run(7, u64::MAX), Ok(BlockRun { state: 0, count: (1 << 40) - 7 }));
    assert_eq!(map.find(0, 0b1110), Ok(Some(1 << 40)));
    assert_eq!(map.find(0, 0b0100), Ok(Some(blocks - 3)));
    assert_eq!(map.find(blocks, 0b0100), Ok(None));
    assert_eq!(map.get_run(blocks, 1), Ok(BlockRun { state: 0, count: 0 }));
    // Clearing the whole map visits only existing chunks.
    assert_eq!(map.set(0, blocks, 0b1111, 0), Ok(blocks));
    assert_eq!(quota.used(), MAX_STRIPES * STRIPE_BYTES);
}

#[test]
fn a_set_without_memory_changes_nothing_and_traps() {
    let (quota, map) = map(MAX_STRIPES * STRIPE_BYTES + 3 * (ENTRY_BYTES + WORDS_BYTES));
    map.resize(4096, 1 << 40).unwrap();
    for chunk in 0..3 {
        assert_eq!(map.set(chunk * CHUNK_BLOCKS + 5, 1, 0b1111, 1), Ok(1));
    }
    assert_eq!(map.set(9 * CHUNK_BLOCKS, 1, 0b1111, 1), Err(NO_MEMORY));
    assert_eq!(map.set(5, 8 * CHUNK_BLOCKS, 0b1111, 2), Err(NO_MEMORY));
    assert_eq!((map.count(1), map.count(2)), (Ok(3), Ok(0)));
    // Existing chunks can still be changed and freed, and that frees memory.
    assert_eq!(map.set(5, 1, 0b0010, 2), Ok(1));
    assert_eq!(map.set(0, CHUNK_BLOCKS, 0b1111, 0), Ok(CHUNK_BLOCKS));
    assert_eq!(map.set(9 * CHUNK_BLOCKS, 1, 0b1111, 1), Ok(1));
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
    let blocks = 70 * CHUNK_BLOCKS + 5;
    map.resize(4096, blocks * 4096).unwrap();
    for (states, to) in [(0b0001, 1), (0b0010, 2), (0b0100, 3), (0b1000, 0)] {
        let claimed = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for thread in 0..8u64 {
                let (map, claimed) = (&map, &claimed);
                threads.spawn(move || {
                    // Each covers the whole map, in its own steps, which cross the edges of chunks.
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
        assert_eq!(map.get_run(0, u64::MAX), Ok(BlockRun { state: to, count: blocks }));
        for state in 1..4 {
            assert_eq!(map.count(state), Ok(if state == to { blocks } else { 0 }));
        }
    }
}

#[test]
fn a_range_is_seen_before_or_after_a_change_never_between() {
    let (_quota, map) = map(1 << 24);
    let blocks = 5 * CHUNK_BLOCKS;
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
                    // A caller claims the whole range or nothing.
                    let claimed = map.set(0, blocks, 0b0010, 2).unwrap();
                    assert!(claimed == 0 || claimed == blocks, "{claimed}");
                }
            });
        }
    });
}

#[test]
fn a_map_may_reach_to_the_end_of_what_can_be_counted() {
    for first_sized in [10, u64::MAX] {
        let (_, map) = map(u64::MAX >> 1);
        map.resize(1, first_sized).unwrap();
        map.resize(1, u64::MAX).unwrap();
        let last = u64::MAX - CHUNK_BLOCKS - 10;
        assert_eq!(map.set(last, u64::MAX - last, 0b1111, 1), Ok(u64::MAX - last));
        assert_eq!(map.get_run(last, u64::MAX), Ok(BlockRun { state: 1, count: u64::MAX - last }));
        assert_eq!(map.get_run(0, u64::MAX), Ok(BlockRun { state: 0, count: last }));
        assert_eq!((map.find(0, 0b0010), map.find(last, 0b1101)), (Ok(Some(last)), Ok(None)));
        assert_eq!(map.set(0, u64::MAX, 0b1111, 0), Ok(u64::MAX));
        assert_eq!(map.count(1), Ok(0));
    }
}
