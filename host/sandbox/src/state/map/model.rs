//! A plain model of a map for tests: an array of states.

use super::super::random::Random;
use super::change::{ENTRY_BYTES, WORDS_BYTES};
use super::*;

/// A range within `len`: short, long, and at the edges of words and chunks.
pub(in crate::state) fn range(random: &mut Random, len: u64) -> (u64, u64) {
    let mut first = random.below(len);
    if random.below(3) == 0 {
        first = first / 32 * 32;
    }
    if random.below(8) == 0 {
        first = first / CHUNK_BLOCKS * CHUNK_BLOCKS;
    }
    let most = match random.below(4) {
        0 => 2,
        1 => 70,
        2 => 3 * CHUNK_BLOCKS,
        _ => len,
    };
    (first, random.below(most.min(len - first)) + 1)
}

/// What a map should do, on an array.
pub(in crate::state) struct Model(pub(in crate::state) Vec<u8>);

impl Model {
    pub(in crate::state) fn get_run(&self, first: u64, limit: u64) -> BlockRun {
        let rest = self.0.get(first as usize..).unwrap_or(&[]);
        let state = rest.first().copied().unwrap_or(0);
        let count = rest.iter().take(limit as usize).take_while(|block| **block == state).count() as u64;
        BlockRun { state: if count == 0 { 0 } else { state }, count }
    }

    pub(in crate::state) fn find(&self, first: u64, states: u8) -> Option<u64> {
        let rest = self.0.get(first as usize..)?;
        rest.iter().position(|block| states & (1 << block) != 0).map(|found| first + found as u64)
    }

    pub(in crate::state) fn set(&mut self, first: u64, count: u64, states: u8, to: u8) -> u64 {
        let mut set = 0;
        for block in &mut self.0[first as usize..(first + count) as usize] {
            if states & (1 << *block) != 0 {
                *block = to;
                set += 1;
            }
        }
        set
    }

    pub(in crate::state) fn count(&self, state: u8) -> u64 {
        self.0.iter().filter(|block| **block == state).count() as u64
    }
}

/// Every question has the same answer, and what is charged is what the chunks that are there cost.
pub(in crate::state) fn assert_same(map: &Map, model: &Model, quota: &Quota) {
    let mut at = 0;
    while at < model.0.len() as u64 {
        let run = map.get_run(at, u64::MAX).unwrap();
        assert_eq!(run, model.get_run(at, u64::MAX), "the run at {at}");
        at += run.count;
    }
    for state in 1..4 {
        assert_eq!(map.count(state), Ok(model.count(state)), "state {state}");
    }
    let stripes = map.stripes().unwrap();
    let mut cost = stripes.count() * STRIPE_BYTES;
    for index in 0..stripes.count() as usize {
        for chunk in stripes.read(index).values() {
            assert!(!chunk.is_blank(), "a chunk without anything in it was kept");
            cost += ENTRY_BYTES + if chunk.is_mixed() { WORDS_BYTES } else { 0 };
        }
    }
    assert_eq!(quota.used(), cost);
}
