//! Images that qemu-img and qemu-io made, compared with what qemu-img reads.

use rbdkit_filter_sdk::image::Source;

use super::{bytes, disk, extents, made, open, qemu_io, qemu_map, refusal};
use crate::qcow2::{Image, Options};
use crate::testing::{Dir, Rng, read_all, run, sample, source};

/// What qemu-img reads of an image. `options` name a snapshot, for example.
fn qemu_reads(dir: &Dir, path: &str, options: &[&str]) -> Vec<u8> {
    let raw = dir.path("oracle.raw");
    run("qemu-img", &[&["convert", "-f", "qcow2", "-O", "raw"], options, &[path, &raw]].concat());
    bytes(&raw)
}

/// Content, random ranges and extents are as qemu has them.
fn assert_same(image: &Image, expected: &[u8], map: Option<&str>, what: &str) {
    assert_eq!(image.size(), expected.len() as u64, "{what}: size");
    let all = read_all(image).unwrap_or_else(|error| panic!("{what}: {error}"));
    let differs = all.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first offset that differs");
    let mut rng = Rng::new(7);
    for _ in 0..100 {
        let offset = rng.below(image.size());
        let mut part = vec![0xaa; rng.below((image.size() - offset).min(300_000) + 1) as usize];
        image.read(offset, &mut part).unwrap();
        assert!(part == expected[offset as usize..][..part.len()], "{what}: {} at {offset}", part.len());
    }
    let found = extents(image);
    for extent in found.iter().filter(|extent| !extent.kind.is_empty()) {
        let zeroes = &expected[extent.offset as usize..(extent.offset + extent.length) as usize];
        assert!(zeroes.iter().all(|byte| *byte == 0), "{what}: data in {extent:?}");
    }
    if let Some(path) = map {
        assert_eq!(found, qemu_map(path), "{what}: extents");
    }
    image.cache(0, image.size()).unwrap();
}

#[test]
fn every_kind_of_image_that_qemu_converts_reads_the_same() {
    let dir = Dir::new("qcow2-matrix");
    // Neither size is a multiple of most clusters.
    for (seed, size) in [(1, 3_000_832), (2, 512)] {
        let mut content = sample(size, seed);
        // Enough for a cluster that stays unallocated, and some that are half zero.
        let end = size / 2 + size / 5;
        content[size / 2..end].fill(0);
        let raw = dir.file("raw", &content);
        for options in [
            "compat=0.10",
            "compat=0.10,cluster_size=512",
            "compat=0.10,cluster_size=2M",
            "compat=1.1",
            "cluster_size=512",
            "cluster_size=512,refcount_bits=1",
            "cluster_size=1k,refcount_bits=64",
            "cluster_size=4k,lazy_refcounts=on",
            "cluster_size=32k",
            "cluster_size=2M,refcount_bits=2",
            "compression_type=zstd",
            "cluster_size=512,compression_type=zstd",
            "cluster_size=2M,compression_type=zstd",
            "extended_l2=on,cluster_size=16k",
            "extended_l2=on",
            "extended_l2=on,cluster_size=2M,compression_type=zstd",
            "preallocation=falloc",
        ] {
            for compressed in [false, true] {
                let path = dir.path("image");
                let compress: &[&str] = if compressed { &["-c"] } else { &[] };
                let convert = ["convert", "-f", "raw", "-O", "qcow2", "-S", "512", "-o", options];
                if compressed && options.starts_with("preallocation") {
                    continue;
                }
                run("qemu-img", &[&convert[..], compress, &[&raw, &path]].concat());
                let what = format!("{options}, {size} bytes, compressed: {compressed}");
                let image = open(&bytes(&path)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_same(&image, &content, Some(&path), &what);
            }
        }
    }
}

#[test]
fn a_compressed_cluster_is_decompressed_as_far_as_a_read_needs() {
    let dir = Dir::new("qcow2-packed");
    let content = sample(2 << 20, 3);
    let (raw, path) = (dir.file("raw", &content), dir.path("image"));
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &option, &raw, &path]);
        let whole = bytes(&path);
        let image = open(&whole).unwrap();
        let mut rng = Rng::new(11);
        for _ in 0..500 {
            let mut part = vec![0; 1 + rng.below(20_000) as usize];
            let offset = rng.below(content.len() as u64 - part.len() as u64);
            image.read(offset, &mut part).unwrap();
            assert!(part == content[offset as usize..][..part.len()], "{kind}: {} at {offset}", part.len());
        }
        // The end of the last cluster is not there. A cluster of zstd is one block, which is
        // decompressed as a whole.
        if kind == "zstd" {
            continue;
        }
        let image = open(&whole[..whole.len() - 12_000]).unwrap();
        let (last, mut part) = (content.len() - 65_536, vec![0; 4096]);
        for _ in 0..2 {
            image.read(last as u64, &mut part).unwrap();
            assert!(part == content[last..][..4096], "{kind}");
        }
        let error = image.read(last as u64 + 61_440, &mut part).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the compressed cluster for {} is wrong: ", last + 61_440)), "{error}");
    }
}

#[test]
fn random_writes_zeroes_and_discards_read_the_same() {
    let dir = Dir::new("qcow2-random");
    let size = 4 << 20;
    for (n, options) in [
        "compat=0.10,cluster_size=4k",
        "cluster_size=512",
        "cluster_size=64k",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=128k",
        "extended_l2=on,cluster_size=64k,compression_type=zstd",
    ]
    .into_iter()
    .enumerate()
    {
        let mut rng = Rng::new(n as u64);
        let is_new = !options.starts_with("compat=0.10");
        // A compressed cluster does not take the place of one that is there.
        let packed = (0..32).filter(|slot| slot % 3 == 0).map(|slot| format!("write -c -P {slot} {} 128k", slot << 17));
        let random = (0..120).map(|_| {
            let offset = rng.below(size / 512 - 400) * 512;
            let length = (1 + rng.below(399)) * 512;
            match rng.below(6) {
                0 if is_new => format!("write -z {offset} {length}"),
                1 if is_new => format!("write -z -u {offset} {length}"),
                2 => format!("discard {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", rng.below(256)),
            }
        });
        let commands: Vec<String> = packed.chain(random).collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let path = made(&dir, "image", &["-o", options], size + 512, &commands);
        let expected = qemu_reads(&dir, &path, &[]);
        assert_same(&open(&bytes(&path)).unwrap(), &expected, Some(&path), options);
    }
}

#[test]
fn a_snapshot_is_found_by_its_name_and_its_id() {
    let dir = Dir::new("qcow2-snapshots");
    for options in ["compat=0.10", "cluster_size=512", "extended_l2=on"] {
        let path = made(&dir, "image", &["-o", options], 1 << 20, &["write -P 1 0 700k", "write -P 2 100k 1k"]);
        run("qemu-img", &["snapshot", "-c", "first", &path]);
        qemu_io(&path, &["write -P 3 50k 200k", "discard 512k 64k"]);
        run("qemu-img", &["snapshot", "-c", "name with späce", &path]);
        qemu_io(&path, &["write -P 4 0 1M"]);
        if options != "compat=0.10" {
            run("qemu-img", &["resize", "-q", &path, "1500k"]);
        }
        let image = bytes(&path);
        let with = |name: &str| Options { snapshot: Some(name.into()), ..Options::default() };
        for (name, id) in [("first", "1"), ("name with späce", "2")] {
            // qemu gives the disk's current size to a snapshot, and here it has its own.
            let mut expected = qemu_reads(&dir, &path, &["-l", name]);
            expected.truncate(1 << 20);
            for wanted in [name, id] {
                let decoded = Image::open(source(&image), with(wanted)).unwrap();
                assert_same(&decoded, &expected, None, &format!("{options}, {wanted}"));
                let label = format!("qcow2 version {}, snapshot '{name}' (ID '{id}')", decoded.header().version);
                assert_eq!(decoded.description(), Some(label));
            }
        }
        assert_same(&open(&image).unwrap(), &qemu_reads(&dir, &path, &[]), Some(&path), options);
        assert_eq!(
            refusal(&image, with("third")),
            "the image has no snapshot 'third'; it has 'first' (ID '1'), 'name with späce' (ID '2')"
        );
        run("qemu-img", &["snapshot", "-c", "2", &path]);
        assert_eq!(
            refusal(&bytes(&path), with("2")),
            "more than one snapshot has the name or ID '2': 'name with späce' (ID '2') and '2' (ID '3')"
        );
    }
}

#[test]
fn a_backing_file_is_read_where_the_image_has_nothing() {
    let dir = Dir::new("qcow2-backing");
    // The backing file is shorter, and no multiple of a cluster.
    let base = sample((700 << 10) + 512, 5);
    let base_path = dir.file("base.img", &base);
    for (n, options) in ["compat=0.10", "cluster_size=512", "extended_l2=on,cluster_size=16k"].into_iter().enumerate() {
        let name = format!("top{n}");
        let commands = ["write -P 7 10k 3k", "write -P 8 690k 30k", "discard 200k 100k", "write -P 9 1000k 1k"];
        let path = made(&dir, &name, &["-o", options, "-b", &base_path, "-F", "raw"], 1 << 20, &commands);
        let image = bytes(&path);
        let decoded = Image::open(source(&image), Options { backing: disk(&base), ..Options::default() }).unwrap();
        // qemu knows where the backing file has holes; a source in memory does not.
        assert_same(&decoded, &qemu_reads(&dir, &path, &[]), None, options);
        assert_eq!(
            refusal(&image, Options::default()),
            format!(
                "the image names the backing file '{base_path}' of the format 'raw', and names in an image are not \
                 followed: give the disk with qcow2-backing="
            )
        );
        // The middle of a chain: an image over an image.
        let top = made(&dir, &format!("over{n}"), &["-b", &path, "-F", "qcow2"], 2 << 20, &["write -P 3 256k 256k"]);
        let middle = Some(std::rc::Rc::new(decoded) as std::rc::Rc<dyn Source>);
        let over = Image::open(source(&bytes(&top)), Options { backing: middle, ..Options::default() }).unwrap();
        assert_same(&over, &qemu_reads(&dir, &top, &[]), None, options);
    }
    let without = made(&dir, "without", &[], 1 << 20, &[]);
    assert_eq!(
        refusal(&bytes(&without), Options { backing: disk(&base), ..Options::default() }),
        "qcow2-backing= is given, and the image has no backing file"
    );
}

#[test]
fn a_data_file_is_read_for_the_clusters() {
    let dir = Dir::new("qcow2-data");
    for (n, raw) in ["off", "on"].into_iter().enumerate() {
        let data = dir.path(&format!("data{n}"));
        let options = format!("data_file={data},data_file_raw={raw},cluster_size=16k");
        let commands = ["write -P 7 0 3k", "write -P 8 690k 30k", "write -z 200k 100k", "write -P 9 1000k 1k"];
        let path = made(&dir, &format!("image{n}"), &["-o", &options], (1 << 20) + 512, &commands);
        let image = bytes(&path);
        let decoded = Image::open(source(&image), Options { data: disk(&bytes(&data)), ..Options::default() }).unwrap();
        let map = (raw == "off").then_some(&*path);
        assert_same(&decoded, &qemu_reads(&dir, &path, &[]), map, raw);
        assert_eq!(
            refusal(&image, Options::default()),
            format!(
                "the image names the data file '{data}', and names in an image are not followed: give the disk with \
                 qcow2-data="
            )
        );
        let short = Image::open(source(&image), Options { data: disk(b"short"), ..Options::default() }).unwrap();
        let lines = read_all(&short).unwrap_err().to_string();
        assert!(lines.ends_with(", and the data file ends after 5 bytes"), "{lines}");
    }
    let without = made(&dir, "without", &[], 1 << 20, &[]);
    assert_eq!(
        refusal(&bytes(&without), Options { data: disk(b""), ..Options::default() }),
        "qcow2-data= is given, and the image has no data file"
    );
}

#[test]
fn a_disk_of_10_tib_is_opened_and_described_with_few_reads() {
    let dir = Dir::new("qcow2-large");
    let size = 10 << 40;
    let commands = ["write -P 1 0 64k", "write -P 2 5T 128k", "write -P 3 10994576228352 64k"];
    let path = made(&dir, "image", &[], size, &commands);
    let image = open(&bytes(&path)).unwrap();
    assert_eq!(image.size(), size);
    let mut part = [0; 3];
    image.read((5 << 40) + 100, &mut part).unwrap();
    assert_eq!(part, [2; 3]);
    assert_eq!(extents(&image), qemu_map(&path));
    assert_eq!(extents(&image).len(), 6);
}
