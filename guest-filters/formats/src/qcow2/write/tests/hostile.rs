//! Images that are wrong, opened for writing.

use super::random::with_space;
use super::{Bench, Change, check};
use crate::qcow2::Options;
use crate::qcow2::tests::{made, qemu_io};
use crate::testing::{Dir, Rng, run};

const CLUSTER: usize = 65536;

/// An image of 1 MiB whose first cluster is allocated. qemu puts the table of counts at cluster 1,
/// its block at 2, the L1 table at 3, the L2 table at 4 and the data at 5.
fn image(dir: &Dir, options: &[&str]) -> Vec<u8> {
    let path = made(dir, "image", options, 1 << 20, &["write -P 7 0 64k"]);
    with_space(&path, 1 << 20)
}

fn put(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn line(image: Vec<u8>) -> String {
    match Bench::new(image, &Options::default()) {
        Ok(_) => panic!("the image is written"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_guest_cannot_overwrite_tables() {
    let dir = Dir::new("qcow2-write-overlap");
    let good = image(&dir, &[]);
    for cluster in 0..5 {
        let mut image = good.clone();
        put(&mut image, 4 * CLUSTER, 1 << 63 | (cluster * CLUSTER) as u64 | u64::from(cluster == 0) << 9);
        if cluster == 0 {
            // An entry of 0 is no cluster.
            continue;
        }
        let before = image[cluster * CLUSTER..(cluster + 1) * CLUSTER].to_vec();
        let bench = Bench::new(image, &Options::default()).unwrap();
        let error = bench.write(512, &[1; 512]).unwrap_err().to_string();
        let expected = format!(
            "the cluster for 512 is at {}, where the image has its tables: it is not written",
            cluster * CLUSTER
        );
        assert_eq!(error, expected);
        assert!(bench.bytes()[cluster * CLUSTER..(cluster + 1) * CLUSTER] == before);
    }
}

#[test]
fn tables_that_overlap_are_refused() {
    let dir = Dir::new("qcow2-write-tables");
    let good = image(&dir, &[]);
    let l1 = 3 * CLUSTER;
    for (at, value, expected) in [
        (l1, 1 << 63, None),
        (
            l1,
            1 << 63 | 65536,
            Some("the L1 entry 0 of the table at 196608 is wrong: the image has another table at 65536"),
        ),
        (
            l1,
            1 << 63 | 1 << 40,
            Some("the L1 entry 0 of the table at 196608 is wrong: there is no whole cluster at 1099511627776"),
        ),
        (CLUSTER, 0x30000, Some("a block of reference counts is at 196608, where the image has another table")),
        (
            CLUSTER,
            0x30200,
            Some("entry 0 of the table of reference counts is wrong: there is no whole cluster at 197120"),
        ),
        (48, 0x30000, Some("the table of reference counts is at 196608, where the image has another table")),
        (
            48,
            1 << 50,
            Some(
                "the table of reference counts has 65536 bytes at 1125899906842624, and has to be whole clusters of \
                 the image, which ends after 1441792",
            ),
        ),
    ] {
        let mut image = good.clone();
        put(&mut image, at, value);
        match expected {
            None => drop(Bench::new(image, &Options::default()).unwrap()),
            Some(expected) => assert_eq!(line(image), expected),
        }
    }
}

#[test]
fn reference_counts_that_lie_give_no_table_away() {
    let dir = Dir::new("qcow2-write-lies");
    let mut image = image(&dir, &[]);
    // All counts are zero.
    image[2 * CLUSTER..3 * CLUSTER].fill(0);
    let bench = Bench::new(image, &Options::default()).unwrap();
    let before = bench.bytes()[..4 * CLUSTER].to_vec();
    bench.write(3 * CLUSTER as u64, &[5; 4 * CLUSTER]).unwrap();
    let after = bench.bytes();
    assert!(after[..2 * CLUSTER] == before[..2 * CLUSTER] && after[3 * CLUSTER..4 * CLUSTER] == before[3 * CLUSTER..]);
    assert!(bench.all()[3 * CLUSTER..7 * CLUSTER].iter().all(|byte| *byte == 5));
    // Counts that are too low are not lowered further.
    bench.writer().unmap(0, 1 << 20, super::Unmap::Zero).unwrap();
    bench.writer().flush().unwrap();
    assert!(bench.all().iter().all(|byte| *byte == 0));
    let line = "the reference count of the cluster at 327680 is 1, and 2 references to it were removed: 'qemu-img \
                check' says more";
    assert_eq!(bench.shared.log.borrow().last().map(String::as_str), Some(line));
}

#[test]
fn an_image_that_is_marked_as_corrupt_is_not_written() {
    let dir = Dir::new("qcow2-write-refused");
    let mut image = image(&dir, &[]);
    image[79] |= 2;
    assert_eq!(line(image), "the image is marked as corrupt ('qemu-img check -r all' repairs it)");
}

#[test]
fn the_first_write_clears_the_autoclear_bits() {
    let dir = Dir::new("qcow2-write-autoclear");
    let mut image = image(&dir, &[]);
    image[95] = 0x84;
    let bench = Bench::new(image, &Options::default()).unwrap();
    assert_eq!(bench.bytes()[95], 0x84);
    bench.write(0, &[1]).unwrap();
    assert_eq!(bench.bytes()[88..96], [0; 8]);
    bench.writer().finish().unwrap();
    assert_eq!(check(&dir, &bench.bytes()).0, 0);
}

#[test]
fn mutated_images_are_written_without_a_panic_and_keep_their_header() {
    let dir = Dir::new("qcow2-write-mutated");
    let seed = std::env::var("RBDKIT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |time| time.as_nanos() as u64)
    });
    println!("RBDKIT_SEED={seed}");
    for (options, cluster) in [("cluster_size=512,refcount_bits=8", 512), ("extended_l2=on,cluster_size=16k", 16384)] {
        mutate(&dir, options, cluster, seed);
    }
}

fn mutate(dir: &Dir, options: &str, cluster: u64, seed: u64) {
    let path = made(dir, "image", &["-o", options], 100 << 10, &["write -P 1 0 30k"]);
    run("qemu-img", &["snapshot", "-c", "first", &path]);
    qemu_io(&path, &["write -P 2 10k 9k", &format!("write -c -P 3 48k {cluster}"), "write -z 64k 4k"]);
    let clusters = std::fs::metadata(&path).expect("the image").len() / cluster;
    let good = with_space(&path, 400 << 10);
    let mut rng = Rng::new(seed);
    let (mut written, mut changed, mut rebuilt) = (0, 0, 0);
    for round in 0..400 {
        let mut image = good.clone();
        for _ in 0..rng.below(4) {
            // Tables have their entries at the start.
            let at = rng.below(clusters) * cluster + rng.below(64) * 8;
            let value = match rng.below(4) {
                0 => (1 << 63) | (rng.below(clusters + 4) * cluster),
                1 => rng.below(1 << 12) * cluster,
                2 => u64::MAX >> rng.below(64),
                _ => rng.next_u64() >> rng.below(64),
            };
            put(&mut image, at as usize, value);
        }
        if round % 3 == 0 {
            image[79] |= 1;
        }
        let Ok(bench) = Bench::new(image.clone(), &Options::default()) else { continue };
        // A mutation may have made the disk huge.
        let size = bench.size().min(200 << 10);
        if size < 512 {
            continue;
        }
        written += 1;
        rebuilt += u32::from(image[79] & 1 == 1);
        for _ in 0..12 {
            let change = Change::random(&mut rng, size, 20_000);
            changed += u32::from(change.on_image(&bench).is_ok());
        }
        let _ = bench.writer().finish();
        let after = bench.bytes();
        image[79] &= !1;
        // Only the place of the reference counts, the autoclear bits and the mark may change.
        let same = [0..48, 60..88, 96..104];
        assert!(same.iter().all(|range| image[range.clone()] == after[range.clone()]), "round {round} of {seed}");
    }
    let all = (written > 20, changed > 200, rebuilt > 5);
    assert_eq!(all, (true, true, true), "{options}: {written} images, {rebuilt} of them rebuilt, {changed} changes");
}
