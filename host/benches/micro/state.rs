//! The state that filters share in the host: maps of blocks, held-back changes, range locks. The
//! disk has 1 TiB in blocks of 64 KiB.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use divan::{Bencher, black_box};
use rbdkit_plugin_api::DiskId;
use rbdkit_sandbox::state::{
    ChangeTiming, Changes, FilterState, HeldLock, LockMode, Locks, Map, OnShutdown, Quota, ScopeState, StateLimits,
};

const BLOCK: u32 = 64 << 10;
const BLOCKS: u64 = (1 << 40) / BLOCK as u64;
/// All four states of a map.
const ANY: u8 = 0b1111;

/// Blocks far from one another, the same sequence every time.
struct Walk(AtomicU64);

impl Walk {
    const fn new() -> Walk {
        Walk(AtomicU64::new(0))
    }

    fn next(&self, below: u64) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) % below
    }
}

/// A map in which the first 16 GiB change from block to block.
fn mixed() -> Map {
    let map = Map::new(Arc::new(Quota::new(u64::MAX)));
    map.resize(BLOCK, 1 << 40).expect("memory");
    for block in (0..MIXED).step_by(2) {
        map.set(block, 1, ANY, 1).expect("a block of the map");
    }
    map
}

const MIXED: u64 = (16 << 30) / BLOCK as u64;

/// Looks up the state of one request's block.
#[divan::bench(threads = [1, 2])]
fn map_get_run_of_one_block(bencher: Bencher<'_, '_>) {
    let (map, walk) = (mixed(), Walk::new());
    bencher.with_inputs(|| walk.next(MIXED)).bench_values(|at| map.get_run(at, 1).expect("a run"));
}

/// Finds the length of a run: 1 GiB in one state.
#[divan::bench]
fn map_get_run_of_a_gibibyte(bencher: Bencher<'_, '_>) {
    let (map, walk) = (mixed(), Walk::new());
    map.set(BLOCKS / 2, BLOCKS / 2, ANY, 1).expect("a range of the map");
    let far = || BLOCKS / 2 + walk.next(BLOCKS / 4);
    bencher.with_inputs(far).bench_values(|at| map.get_run(at, 16384).expect("a run"));
}

#[divan::bench(threads = [1, 2])]
fn map_set_one_block(bencher: Bencher<'_, '_>) {
    let (map, walk) = (mixed(), Walk::new());
    let input = || walk.next(MIXED);
    bencher.with_inputs(input).bench_values(|at| map.set(at, 1, ANY, (at % 4) as u8).expect("a block of the map"));
}

#[divan::bench]
fn map_find_far_away(bencher: Bencher<'_, '_>) {
    let map = mixed();
    map.set(BLOCKS - 1, 1, ANY, 2).expect("a block of the map");
    bencher.bench(|| map.find(black_box(0), 0b100).expect("a sized map"));
}

fn scope() -> Arc<ScopeState> {
    let export = FilterState::new(StateLimits::default()).export(&DiskId::DEFAULT).expect("a scope");
    let scope = Arc::clone(export.scope());
    scope.map(0).expect("a map").resize(BLOCK, 1 << 40).expect("memory");
    scope
}

/// The change that a write through cow makes to its map. It is held back until the call succeeds.
#[divan::bench]
fn change_on_success(bencher: Bencher<'_, '_>) {
    let (scope, walk) = (scope(), Walk::new());
    bencher.with_inputs(|| walk.next(MIXED)).bench_values(|at| {
        let mut changes = Changes::default();
        changes.set(&scope, 0, at, 1, ANY, 1, ChangeTiming::OnSuccess).expect("a block of the map");
        changes.succeed();
    });
}

fn lock(locks: &Arc<Locks>, offset: u64) -> HeldLock {
    let lock = pin!(locks.lock(offset, u64::from(BLOCK), LockMode::Exclusive, OnShutdown::GiveUp));
    match lock.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(held)) => held,
        _ => panic!("a lock that nobody holds"),
    }
}

/// An uncontended lock, while this many requests hold other locks.
#[divan::bench(args = [0, 31, 127])]
fn lock_and_unlock(bencher: Bencher<'_, '_>, others: u64) {
    let locks = Arc::new(Locks::default());
    let _held: Vec<HeldLock> = (1..=others).map(|nth| lock(&locks, nth * 2 * u64::from(BLOCK))).collect();
    bencher.bench_local(|| drop(lock(&locks, 0)));
}
