//! Random changes against a model.

use super::{Bench, Change, check, from_environment, read_all, seeded};
use crate::qcow2::Options;
use crate::qcow2::tests::{bytes, made, open, qemu_io};
use crate::testing::{Dir, Rng, run, sample, source};

/// An image file with space for `more` bytes.
pub(super) fn with_space(path: &str, more: u64) -> Vec<u8> {
    let mut image = bytes(path);
    image.resize(image.len().next_multiple_of(65536) + more as usize, 0);
    image
}

/// Makes random changes, and compares with the model and with qemu.
pub(super) fn changes(dir: &Dir, what: &str, bench: &Bench, model: &mut [u8], seed: u64, count: u32) {
    let mut rng = Rng::new(seeded(seed));
    let count = u64::from(count) * from_environment("RBDKIT_QCOW2_CHANGES").unwrap_or(1);
    for n in 0..count {
        let change = Change::random(&mut rng, bench.size(), 300_000);
        change.on_image(bench).unwrap_or_else(|error| panic!("{what}, seed {seed}, {n}: {change:?}: {error}"));
        change.on_model(model, bench);
        if n % 16 == 0 {
            assert!(bench.all() == model, "{what}, seed {seed}, {n}: {change:?} gives other content");
        }
    }
    for writer in &bench.writers {
        assert!(read_all(writer) == model, "{what}, seed {seed}: an instance has other content");
    }
    let (code, text) = check(dir, &bench.bytes());
    assert!(code == 0 || code == 3, "{what}, seed {seed}: {text}");
    bench.writer().finish().unwrap();
    let (code, text) = check(dir, &bench.bytes());
    assert_eq!(code, 0, "{what}, seed {seed}: {text}");
}

/// Compares with what qemu reads.
pub(super) fn same_for_qemu(dir: &Dir, what: &str, bench: &Bench, model: &[u8]) {
    let path = dir.file("written.qcow2", &bench.bytes());
    let raw = dir.path("written.raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &path, &raw]);
    assert!(bytes(&raw) == model, "{what}: qemu reads other content");
}

#[test]
fn random_changes_of_all_kinds_of_images_leave_nothing_for_a_check() {
    let dir = Dir::new("qcow2-write-random");
    for (seed, options, size, count) in [
        (1, "compat=0.10,cluster_size=512", 1_000_448u64, 120),
        (2, "compat=0.10", 5_000_704, 200),
        (3, "cluster_size=512,refcount_bits=1", 800_256, 120),
        (4, "cluster_size=512,refcount_bits=64", 700_416, 120),
        (5, "cluster_size=1k,refcount_bits=2", 2_000_896, 120),
        (6, "cluster_size=4k,refcount_bits=4", 3_000_832, 200),
        (7, "cluster_size=8k,refcount_bits=8,lazy_refcounts=on", 3_000_832, 200),
        (8, "cluster_size=64k,refcount_bits=32", 6_000_640, 200),
        (9, "cluster_size=2M", 9_000_448, 60),
        (10, "cluster_size=64k,preallocation=metadata", 6_000_640, 120),
        (11, "compression_type=zstd", 6_000_640, 120),
        (12, "extended_l2=on,cluster_size=16k", 3_000_832, 300),
        (13, "extended_l2=on,cluster_size=64k,refcount_bits=8", 6_000_640, 300),
        (14, "extended_l2=on,cluster_size=128k,preallocation=metadata", 6_000_640, 120),
        (15, "extended_l2=on,cluster_size=2M", 9_000_448, 60),
    ] {
        let path = made(&dir, "image", &["-o", options], size, &["write -P 9 1k 200k"]);
        let image = with_space(&path, size * 2 + (8 << 20));
        let bench = Bench::new(image, &Options::default()).unwrap_or_else(|error| panic!("{options}: {error}"));
        let mut model = bench.all();
        assert_eq!((model[1023], model[1024]), (0, 9));
        changes(&dir, options, &bench, &mut model, seed, count);
        same_for_qemu(&dir, options, &bench, &model);
    }
}

#[test]
fn snapshots_stay_as_they_are() {
    let dir = Dir::new("qcow2-write-snapshots");
    for (seed, options) in [
        (1, "compat=0.10,cluster_size=4k"),
        (2, "cluster_size=512"),
        (3, "cluster_size=64k"),
        (4, "extended_l2=on,cluster_size=16k"),
    ] {
        let path = made(&dir, "image", &["-o", options], 1_000_448, &["write -P 1 0 700k", "write -P 2 100k 1k"]);
        run("qemu-img", &["snapshot", "-c", "first", &path]);
        qemu_io(&path, &["write -P 3 50k 200k"]);
        run("qemu-img", &["snapshot", "-c", "second", &path]);
        let with = |name: &str| Options { snapshot: Some(name.into()), ..Options::default() };
        let of = |image: &[u8], name: &str| read_all(&crate::qcow2::Image::open(source(image), with(name)).unwrap());
        let before = bytes(&path);
        let bench = Bench::new(with_space(&path, 8 << 20), &Options::default()).unwrap();
        let mut model = bench.all();
        changes(&dir, options, &bench, &mut model, seed, 150);
        for name in ["first", "second"] {
            assert!(of(&bench.bytes(), name) == of(&before, name), "{options}: snapshot {name}");
        }
        same_for_qemu(&dir, options, &bench, &model);
    }
}

#[test]
fn what_is_left_of_compressed_and_backing_clusters_is_copied() {
    let dir = Dir::new("qcow2-write-copied");
    let content = sample(2_000_896, 5);
    let base = dir.file("base.raw", &content[..1_500_160]);
    for (seed, options) in [
        (1, "compat=0.10"),
        (2, "cluster_size=4k"),
        (3, "cluster_size=64k"),
        (4, "extended_l2=on,cluster_size=16k"),
        (5, "extended_l2=on,cluster_size=128k"),
    ] {
        let path = made(&dir, "image", &["-b", &base, "-F", "raw", "-o", options], 2_000_896, &["write -P 5 0 40k"]);
        let options_of = Options { backing: Some(source(&content[..1_500_160])), ..Options::default() };
        let bench = Bench::new(with_space(&path, 8 << 20), &options_of).unwrap();
        let mut model = bench.all();
        assert!(model[40 << 10..1_500_160] == content[40 << 10..1_500_160]);
        changes(&dir, options, &bench, &mut model, seed, 150);
        same_for_qemu(&dir, options, &bench, &model);
        // Many compressed clusters share one cluster of the image.
        let raw = dir.file("content", &content);
        let packed = dir.path("packed");
        run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, &raw, &packed]);
        let bench = Bench::new(with_space(&packed, 8 << 20), &Options::default()).unwrap();
        let mut model = bench.all();
        assert!(model == content);
        changes(&dir, options, &bench, &mut model, seed, 150);
        same_for_qemu(&dir, options, &bench, &model);
    }
}

#[test]
fn the_table_of_reference_counts_grows_for_a_larger_file() {
    let dir = Dir::new("qcow2-write-grow");
    // One cluster of the table has 64 blocks of 64 counts: 2 MiB.
    let path = made(&dir, "image", &["-o", "cluster_size=512,refcount_bits=64"], 6 << 20, &[]);
    let bench = Bench::new(with_space(&path, 9 << 20), &Options::default()).unwrap();
    let data = sample(6 << 20, 3);
    for (n, piece) in data.chunks(100_000).enumerate() {
        bench.write(n as u64 * 100_000, piece).unwrap();
    }
    bench.writer().finish().unwrap();
    let (code, text) = check(&dir, &bench.bytes());
    assert_eq!(code, 0, "{text}");
    same_for_qemu(&dir, "grown", &bench, &data);
    let header = open(&bench.bytes()).unwrap().header().clone();
    assert!(header.refcounts.count > 1, "{:?}", header.refcounts);
}

#[test]
fn a_full_image_file_gives_enospc_and_stays_right() {
    let dir = Dir::new("qcow2-write-full");
    let path = made(&dir, "image", &["-o", "cluster_size=4k"], 4 << 20, &[]);
    let bench = Bench::new(with_space(&path, 300_000), &Options::default()).unwrap();
    let mut written = 0;
    let error = loop {
        match bench.write(written, &[7; 4096]) {
            Ok(()) => written += 4096,
            Err(error) => break error,
        }
    };
    assert_eq!(error, rbdkit_filter_sdk::Errno::Enospc.into());
    assert!(written > 200_000, "{written}");
    let size = bench.bytes().len();
    let line = format!(
        "the image file has {size} bytes, and no free cluster of 4096 bytes: make it larger with \
         truncate -s +SIZE FILE, and start the server again"
    );
    assert_eq!(*bench.shared.log.borrow(), [line]);
    // What is discarded can be used again.
    bench.writer().unmap(0, 64 << 10, super::Unmap::Discard).unwrap();
    for n in 0..16 {
        bench.write((1 << 20) + n * 4096, &[8; 4096]).unwrap();
    }
    let mut model = vec![0; 4 << 20];
    model[64 << 10..written as usize].fill(7);
    model[1 << 20..(1 << 20) + (64 << 10)].fill(8);
    assert!(bench.all() == model);
    bench.writer().finish().unwrap();
    let (code, text) = check(&dir, &bench.bytes());
    assert_eq!(code, 0, "{text}");
}
