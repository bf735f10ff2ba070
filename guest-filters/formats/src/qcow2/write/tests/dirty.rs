//! Images that are marked as dirty: their reference counts are rebuilt.

use super::random::{changes, same_for_qemu, with_space};
use super::{Bench, Bounds, Step, check};
use crate::qcow2::tests::{made, open, qemu_io};
use crate::qcow2::{Header, Options};
use crate::testing::{Dir, Rng, run};

/// Bounds for images of a few MiB: several windows, which cut blocks of counts.
const SMALL: Bounds = Bounds { window: 3001, reads: 1 << 30 };

fn word(image: &[u8], at: u64) -> u64 {
    image[at as usize..at as usize + 8].try_into().map_or(0, u64::from_be_bytes)
}

fn put(image: &mut [u8], at: u64, value: u64) {
    image[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the table of reference counts has an entry, and the block's offset.
fn blocks(header: &Header, image: &[u8]) -> Vec<(u64, u64)> {
    let entries = u64::from(header.refcounts.count) * header.cluster_size() / 8;
    let entry = |n: u64| header.refcounts.offset + n * 8;
    (0..entries).map(|n| (entry(n), word(image, entry(n)))).filter(|(_, block)| *block != 0).collect()
}

/// Marks an image as dirty, with rubbish for all reference counts.
fn scrambled(image: &[u8], rng: &mut Rng) -> Vec<u8> {
    let header = open(image).unwrap().header().clone();
    let mut image = image.to_vec();
    for (_, block) in blocks(&header, &image.clone()) {
        let counts = &mut image[block as usize..(block + header.cluster_size()) as usize];
        match rng.below(3) {
            0 => counts.fill(0),
            1 => counts.fill(0xff),
            _ => counts.iter_mut().for_each(|byte| *byte = rng.below(256) as u8),
        }
    }
    image[79] |= 1;
    image
}

/// An image with two snapshots, compressed clusters and zeroes.
fn image(dir: &Dir, options: &str) -> Vec<u8> {
    let path = made(dir, "image", &["-o", options], 2_000_896, &["write -P 1 0 700k", "write -P 2 100k 1k"]);
    let is_one_bit = options.contains("refcount_bits=1");
    if !is_one_bit {
        run("qemu-img", &["snapshot", "-c", "first", &path]);
        qemu_io(&path, &["write -P 3 50k 200k", "discard 256k 128k"]);
        run("qemu-img", &["snapshot", "-c", "second", &path]);
    }
    let mut commands = vec!["write -P 4 300k 200k".to_string()];
    if !options.contains("compat=0.10") {
        commands.push("write -z 448k 64k".into());
    }
    if !is_one_bit {
        commands.extend((11..24).map(|n| format!("write -c -P {n} {}k 64k", 64 * n)));
    }
    qemu_io(&path, &commands.iter().map(String::as_str).collect::<Vec<_>>());
    with_space(&path, 8 << 20)
}

#[test]
fn reference_counts_of_a_dirty_image_are_rebuilt_whatever_they_were() {
    let dir = Dir::new("qcow2-write-dirty");
    for (seed, options) in [
        (1, "cluster_size=512"),
        (2, "cluster_size=4k,refcount_bits=8,lazy_refcounts=on"),
        (3, "cluster_size=4k,refcount_bits=1"),
        (4, "cluster_size=1k,refcount_bits=64"),
        (5, "lazy_refcounts=on"),
        (6, "extended_l2=on,cluster_size=16k"),
        (7, "extended_l2=on,cluster_size=64k,refcount_bits=32"),
    ] {
        let good = image(&dir, options);
        assert_eq!(check(&dir, &good).0, 0, "{options}");
        let mut rng = Rng::new(seed);
        let dirty = scrambled(&good, &mut rng);
        let bench = Bench::within(dirty, &Options::default(), SMALL).unwrap_or_else(|e| panic!("{options}: {e}"));
        let now = bench.bytes();
        assert_eq!(now[79], good[79], "{options}: the mark");
        let (code, text) = check(&dir, &now);
        assert_eq!(code, 0, "{options}: {text}");
        assert_eq!(
            *bench.shared.log.borrow(),
            ["the image was marked as dirty: its reference counts were rebuilt"],
            "{options}"
        );
        let mut model = bench.all();
        changes(&dir, options, &bench, &mut model, seed, 60);
        same_for_qemu(&dir, options, &bench, &model);
    }
}

#[test]
fn an_image_that_qemu_leaves_dirty_when_it_is_killed_is_written() {
    let dir = Dir::new("qcow2-write-dirty-qemu");
    let path = made(&dir, "image", &["-o", "lazy_refcounts=on,cluster_size=4k"], 3 << 20, &["write -P 1 0 64k"]);
    let commands = ["-f", "qcow2", "-c", "write -P 2 1M 300k", "-c", "discard 0 32k", "-c", "abort", &path];
    let killed = std::process::Command::new("qemu-io").args(commands).output().expect("qemu-io");
    assert!(!killed.status.success());
    let dirty = with_space(&path, 6 << 20);
    assert_eq!(dirty[79] & 1, 1, "qemu marks it");
    assert_ne!(check(&dir, &dirty).0, 0);
    let bench = Bench::new(dirty, &Options::default()).unwrap();
    assert_eq!(check(&dir, &bench.bytes()).0, 0);
    assert_eq!(bench.bytes()[79] & 1, 0);
    assert_eq!(bench.bytes()[87] & 1, 1, "counts may be written late after us");
    let mut model = bench.all();
    assert_eq!((model[1 << 20], model[(1 << 20) + (300 << 10) - 1], model[40 << 10]), (2, 2, 1));
    changes(&dir, "killed", &bench, &mut model, 3, 100);
    same_for_qemu(&dir, "killed", &bench, &model);
}

#[test]
fn flags_and_blocks_of_a_dirty_image_are_made_right_too() {
    let dir = Dir::new("qcow2-write-dirty-flags");
    for options in ["cluster_size=512,refcount_bits=64", "extended_l2=on,cluster_size=16k"] {
        let good = image(&dir, options);
        let header = open(&good).unwrap().header().clone();
        let entry_size = header.layout().entry_size();
        let mut dirty = scrambled(&good, &mut Rng::new(5));
        let mut changed = 0;
        for n in 0..u64::from(header.l1.count) {
            let at = header.l1.offset + n * 8;
            let table = word(&dirty, at) & 0x00ff_ffff_ffff_fe00;
            if table == 0 {
                continue;
            }
            let entry = word(&dirty, at);
            put(&mut dirty, at, entry ^ 1 << 63);
            for at in (table..table + header.cluster_size()).step_by(entry_size as usize).step_by(3) {
                let entry = word(&dirty, at);
                if entry & 1 << 62 == 0 && entry & 0x00ff_ffff_ffff_fe00 != 0 {
                    put(&mut dirty, at, entry ^ 1 << 63);
                    changed += 1;
                }
            }
        }
        assert!(changed > 10, "{options}: {changed}");
        // The last block is gone, and its cluster with it.
        let last = blocks(&header, &dirty).last().copied().expect("a block");
        put(&mut dirty, last.0, 0);
        let bench = Bench::within(dirty, &Options::default(), SMALL).unwrap_or_else(|e| panic!("{options}: {e}"));
        let (code, text) = check(&dir, &bench.bytes());
        assert_eq!(code, 0, "{options}: {text}");
        let mut model = bench.all();
        changes(&dir, options, &bench, &mut model, 8, 60);
        same_for_qemu(&dir, options, &bench, &model);
    }
}

#[test]
fn a_kill_while_counts_are_rebuilt_leaves_an_image_that_is_rebuilt_again() {
    let dir = Dir::new("qcow2-write-dirty-killed");
    let dirty = scrambled(&image(&dir, "cluster_size=512"), &mut Rng::new(9));
    let bench = Bench::within(dirty.clone(), &Options::default(), SMALL).unwrap();
    let steps = bench.memory.steps.borrow();
    let step = steps.len() / 16;
    for until in (0..=steps.len()).filter(|until| until % step.max(1) == 0 || until + 4 > steps.len()) {
        let mut image = dirty.clone();
        for step in &steps[..until] {
            if let Step::Write(at, data) = step {
                image[*at as usize..*at as usize + data.len()].copy_from_slice(data);
            }
        }
        let again = Bench::within(image, &Options::default(), SMALL).unwrap();
        let (code, text) = check(&dir, &again.bytes());
        assert_eq!(code, 0, "after {until} of {} steps: {text}", steps.len());
    }
}

#[test]
fn counts_that_cannot_be_rebuilt_leave_the_image_read_only_and_marked() {
    let dir = Dir::new("qcow2-write-dirty-refused");
    let repairs = "('qemu-img check -r all' repairs it)";
    let line = |image: Vec<u8>, bounds: Bounds| match Bench::within(image, &Options::default(), bounds) {
        Ok(_) => panic!("the image is written"),
        Err(error) => error.to_string(),
    };
    let good = image(&dir, "cluster_size=4k");
    let dirty = scrambled(&good, &mut Rng::new(1));
    let few = Bounds { reads: 4095, ..SMALL };
    let tables = 4096 * 3;
    assert_eq!(
        line(dirty, few),
        format!(
            "the image is marked as dirty, and to count the references to its clusters takes reads of {tables} bytes, \
             and 4095 is the most {repairs}"
        )
    );
    // Two snapshots and the current state have the first cluster, and a bit counts to one.
    let path = made(&dir, "image", &["-o", "cluster_size=4k,refcount_bits=2"], 1 << 20, &["write -P 1 0 64k"]);
    for name in ["first", "second"] {
        run("qemu-img", &["snapshot", "-c", name, &path]);
    }
    let mut shared = with_space(&path, 1 << 20);
    shared[79] |= 1;
    // Counts of one bit.
    shared[99] = 0;
    assert_eq!(
        line(shared, SMALL),
        format!(
            "the image is marked as dirty, and a cluster has 3 references, and its reference counts end at 1 {repairs}"
        )
    );
}
