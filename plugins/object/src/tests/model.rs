//! A disk with faults against a model of it.

use super::*;

/// Random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Runs random operations. Each has to end well, because time for new attempts is not short.
async fn run(seed: u64, faults: Faults) {
    const BLOCKS: u64 = 6;
    let store = TestStore::new(seed, faults);
    let mut disk = super::disk(&store, BLOCKS);
    let mut model = vec![0; (BLOCKS * BLOCK) as usize];
    let mut random = Random(seed);
    for step in 0..300_u32 {
        let offset = random.below(BLOCKS * BLOCK);
        let mut length = 1 + random.below((BLOCKS * BLOCK - offset).min(3 * BLOCK));
        let mut from = offset;
        if random.below(2) == 0 {
            // Whole blocks.
            from = offset / BLOCK * BLOCK;
            length = length.div_ceil(BLOCK) * BLOCK;
            length = length.min(BLOCKS * BLOCK - from);
        }
        let range = from as usize..(from + length) as usize;
        match random.below(10) {
            0..4 => {
                // Few values, so that contents come back.
                let bytes = vec![random.below(3) as u8; length as usize];
                disk.write(from, &bytes).await.unwrap();
                model[range].copy_from_slice(&bytes);
            }
            4..6 => {
                disk.zero(from, length).await.unwrap();
                model[range].fill(0);
            }
            6 => {
                disk.trim(from, length).await.unwrap();
                model[range.clone()].copy_from_slice(&super::read(&disk, from, length).await);
            }
            7 => disk.flush().await.unwrap(),
            8 => {
                let extents = disk.extents(from, length).await.unwrap();
                assert!(extents.next_offset() >= from + length, "{step}");
                for extent in extents.as_slice().iter().filter(|extent| extent.zero) {
                    let hole = &model[extent.offset as usize..extent.end() as usize];
                    assert!(hole.iter().all(|byte| *byte == 0), "step {step}: {extent:?} has data");
                }
            }
            _ => {
                let is = super::read(&disk, from, length).await;
                assert!(is == model[range], "seed {seed}, step {step}: bytes at {from} differ");
            }
        }
        if random.below(60) == 0 {
            // Another process goes on.
            disk = super::disk(&store, BLOCKS);
            disk.check().await.unwrap();
        }
    }
    let all = super::read(&disk, 0, BLOCKS * BLOCK).await;
    assert!(all == model, "seed {seed}: the disk differs at its end");
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = std::env::var("RBDKIT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return vec![seed];
    }
    let seed = getrandom::u64().unwrap();
    println!("RBDKIT_SEED={seed} and the 19 after it");
    (0..20).map(|number| seed.wrapping_add(number)).collect()
}

#[tokio::test]
async fn without_faults_a_disk_is_its_model() {
    for seed in seeds() {
        run(seed, Faults::default()).await;
    }
}

#[tokio::test]
async fn with_refused_requests_lost_answers_and_bodies_that_end_no_byte_differs() {
    for seed in seeds() {
        run(seed, Faults { refused: 20, answer_lost: 20, late: 0, cut: 20 }).await;
    }
}

#[tokio::test]
async fn a_write_that_the_store_carries_out_late_changes_nothing() {
    for seed in seeds() {
        run(seed, Faults { refused: 5, answer_lost: 5, late: 15, cut: 5 }).await;
    }
}
