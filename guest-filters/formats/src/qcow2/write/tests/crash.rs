//! A kill at any moment, of the process or of the machine.

use super::random::with_space;
use super::{Bench, Change, Step, check, from_environment, read_all, seeded};
use crate::qcow2::Options;
use crate::qcow2::tests::{made, qemu_io};
use crate::testing::{Dir, Rng, run, sample, source};

/// What the client knows after a step below.
struct Known {
    /// How many steps were made below when the last flush of the client was answered.
    flushed_at: usize,
    /// The content that was durable then.
    durable: Vec<u8>,
    /// What changes after that flush may have touched, with the steps before each of them.
    touched: Vec<(usize, std::ops::Range<usize>)>,
}

/// The image after a kill: `until` of the steps were made, and of those after the last flush the
/// machine kept some.
fn killed(base: &[u8], steps: &[Step], until: usize, rng: Option<&mut Rng>) -> Vec<u8> {
    let mut image = base.to_vec();
    let done = &steps[..until];
    let flushed = done.iter().rposition(|step| matches!(step, Step::Flush)).map_or(0, |at| at + 1);
    let mut apply = |step: &Step| {
        if let Step::Write(offset, data) = step {
            image[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
        }
    };
    done[..flushed].iter().for_each(&mut apply);
    match rng {
        None => done[flushed..].iter().for_each(&mut apply),
        Some(rng) => done[flushed..].iter().filter(|_| rng.below(2) == 0).for_each(&mut apply),
    }
    image
}

/// The moments of kills, and whether the machine loses what was not flushed: `kills` random ones,
/// or all of them if the environment says so.
fn moments(steps: u64, kills: u64, rng: &mut Rng) -> Vec<(usize, bool)> {
    if from_environment("RBDKIT_QCOW2_ALL_KILLS").unwrap_or(0) == 0 {
        return (0..kills).map(|n| (rng.below(steps + 1) as usize, n % 2 == 0)).collect();
    }
    (0..=steps as usize).flat_map(|until| [(until, false), (until, true), (until, true)]).collect()
}

/// Makes random changes, and then looks at the image after kills at `kills` moments.
fn survive(what: &str, image: Vec<u8>, options: &Options, seed: u64, kills: u64) {
    let dir = Dir::new(&format!("qcow2-write-killed-{seed}"));
    let mut rng = Rng::new(seeded(seed));
    let bench = Bench::new(image.clone(), options).unwrap();
    let mut model = bench.all();
    let mut history = vec![Known { flushed_at: 0, durable: model.clone(), touched: Vec::new() }];
    for _ in 0..60 {
        let change = Change::random(&mut rng, bench.size(), 60_000);
        let before = bench.memory.steps.borrow().len();
        change.on_image(&bench).unwrap_or_else(|error| panic!("{what}, seed {seed}: {change:?}: {error}"));
        change.on_model(&mut model, &bench);
        let known = history.last_mut().expect("the first");
        known.touched.push((before, change.range()));
        if let Change::Flush = change {
            let flushed_at = bench.memory.steps.borrow().len();
            history.push(Known { flushed_at, durable: model.clone(), touched: Vec::new() });
        }
    }
    bench.writer().finish().unwrap();
    let steps = bench.memory.steps.borrow();
    for (until, lost) in moments(steps.len() as u64, kills, &mut rng) {
        let after = killed(&image, &steps, until, lost.then_some(&mut rng));
        let moment = format!("{what}, seed {seed}, after {until} of {} steps, lost: {lost}", steps.len());
        let (code, text) = check(&dir, &after);
        assert!(code == 0 || code == 3, "{moment}: {text}");
        let known = history.iter().rfind(|known| known.flushed_at <= until).expect("the first");
        let disk = read_all(&crate::qcow2::Image::open(source(&after), options.clone()).unwrap());
        let mut untouched = vec![true; disk.len()];
        for (_, range) in known.touched.iter().filter(|(before, _)| *before < until) {
            untouched[range.clone()].fill(false);
        }
        let wrong = (0..disk.len()).find(|at| untouched[*at] && disk[*at] != known.durable[*at]);
        assert_eq!(wrong, None, "{moment}: what was flushed is not there");
    }
}

#[test]
fn a_kill_leaves_leaks_at_worst_and_what_was_flushed() {
    let dir = Dir::new("qcow2-write-killed");
    for (seed, options) in [
        (1, "compat=0.10,cluster_size=4k"),
        (2, "cluster_size=512,refcount_bits=64"),
        (3, "cluster_size=64k"),
        (4, "cluster_size=1k,refcount_bits=1"),
        (5, "extended_l2=on,cluster_size=16k"),
        (6, "extended_l2=on,cluster_size=64k"),
    ] {
        let path = made(&dir, "image", &["-o", options], 1_000_448, &["write -P 1 100k 300k"]);
        survive(options, with_space(&path, 4 << 20), &Options::default(), seed, 60);
    }
}

#[test]
fn a_kill_leaves_snapshots_backing_and_compressed_clusters() {
    let dir = Dir::new("qcow2-write-killed-copied");
    let content = sample(1_000_448, 5);
    let base = dir.file("base.raw", &content);
    for (seed, options) in [
        (11, "compat=0.10,cluster_size=4k"),
        (12, "cluster_size=64k"),
        (13, "cluster_size=512"),
        (14, "extended_l2=on,cluster_size=16k"),
        (15, "extended_l2=on,cluster_size=64k,compression_type=zstd"),
    ] {
        let path = made(&dir, "image", &["-b", &base, "-F", "raw", "-o", options], 1_000_448, &[]);
        qemu_io(&path, &["write -P 1 0 200k"]);
        run("qemu-img", &["snapshot", "-c", "first", &path]);
        qemu_io(&path, &["write -c -P 3 524288 65536"]);
        let with = Options { backing: Some(source(&content)), ..Options::default() };
        survive(options, with_space(&path, 6 << 20), &with, seed, 60);
    }
}

#[test]
fn a_kill_while_the_table_of_reference_counts_grows_leaves_leaks_at_worst() {
    let dir = Dir::new("qcow2-write-killed-grow");
    let path = made(&dir, "image", &["-o", "cluster_size=512,refcount_bits=64"], 3 << 20, &[]);
    let image = with_space(&path, 4 << 20);
    let bench = Bench::new(image.clone(), &Options::default()).unwrap();
    for n in 0..24u64 {
        bench.write(n << 17, &[n as u8 + 1; 1 << 17]).unwrap();
    }
    let steps = bench.memory.steps.borrow();
    let header = |step: &&(usize, &Step)| matches!(step.1, Step::Write(48, _));
    let grown = steps.iter().enumerate().find(|step| header(&step)).expect("the table grows").0;
    let mut rng = Rng::new(7);
    for until in grown.saturating_sub(12)..(grown + 12).min(steps.len()) {
        for lost in [false, true, true] {
            let after = killed(&image, &steps, until, lost.then_some(&mut rng));
            let (code, text) = check(&dir, &after);
            assert!(code == 0 || code == 3, "after {until} of {} steps, lost: {lost}: {text}", steps.len());
        }
    }
}

#[test]
fn a_write_that_fails_below_leaves_leaks_at_worst() {
    let dir = Dir::new("qcow2-write-fails");
    for options in ["cluster_size=4k", "extended_l2=on,cluster_size=16k"] {
        let path = made(&dir, "image", &["-o", options], 1_000_448, &["write -P 1 100k 300k"]);
        let image = with_space(&path, 4 << 20);
        for after in 0..40 {
            fail(&dir, &image, &format!("{options}, after {after} writes"), after);
        }
    }
}

/// Makes random changes. Those that come after `after` writes below fail, until there were three.
fn fail(dir: &Dir, image: &[u8], what: &str, after: u64) {
    let bench = Bench::new(image.to_vec(), &Options::default()).unwrap();
    bench.memory.fails_after.set(Some(after));
    let mut rng = Rng::new(after);
    let mut model = bench.all();
    let mut failed = 0;
    for _ in 0..30 {
        let change = Change::random(&mut rng, bench.size(), 60_000);
        match change.on_image(&bench) {
            Ok(()) => change.on_model(&mut model, &bench),
            Err(_) => {
                failed += 1;
                bench.memory.fails_after.set((failed < 3).then_some(0));
                let now = bench.all();
                let range = change.range();
                model[range.clone()].copy_from_slice(&now[range]);
            }
        }
    }
    assert!(bench.all() == model, "{what}");
    bench.memory.fails_after.set(None);
    bench.writer().finish().unwrap();
    let (code, text) = check(dir, &bench.bytes());
    assert!(code == 0 || code == 3, "{what}: {text}");
}
