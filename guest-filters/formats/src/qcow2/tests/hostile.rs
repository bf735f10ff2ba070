//! Images that are wrong, and the line that each gives.

use rbdkit_filter_sdk::image::{Error, Source};

use super::{bytes, disk, made, open, qemu_io, refusal};
use crate::qcow2::{INFO, Image, Options};
use crate::testing::{Dir, read_all, run, source};

/// An image to damage: 1 MiB in clusters of 4 KiB, with data from 0 on, a snapshot, and no data
/// after 512 KiB.
fn image(dir: &Dir, options: &str) -> Vec<u8> {
    let path = made(dir, "image", &["-o", options], 1 << 20, &["write -P 1 0 64k"]);
    run("qemu-img", &["snapshot", "-c", "before", &path]);
    qemu_io(&path, &["write -P 2 0 4k"]);
    bytes(&path)
}

fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
    bytes[at..at + number.len()].copy_from_slice(number);
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize & 0x00ff_ffff_ffff_fe00
}

/// The offsets of the L1 table and of the first L2 table.
fn tables(bytes: &[u8]) -> (usize, usize) {
    let l1 = number(bytes, 40);
    (l1, number(bytes, l1))
}

fn line_of<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_wrong_number_in_the_header_is_one_line() {
    let dir = Dir::new("qcow2-header");
    let good = image(&dir, "cluster_size=4k");
    let end = good.len();
    let max = u64::MAX.to_be_bytes();
    let cases: [(usize, &[u8], &str); 26] = [
        (0, b"QFI\xfa", "it is not a qcow2 image: it does not begin with 'QFI' and the byte 0xfb"),
        (4, &[0, 0, 0, 1], "the image has version 1, and versions 2 and 3 are supported"),
        (4, &[0xff; 4], "the image has version 4294967295, and versions 2 and 3 are supported"),
        (20, &[0, 0, 0, 8], "the header says clusters of 2^8 bytes, and they have 2^9 to 2^21"),
        (20, &[0xff; 4], "the header says clusters of 2^4294967295 bytes, and they have 2^9 to 2^21"),
        (24, &max, "the header says a disk of 18446744073709551615 bytes, and 2^63 - 1 is the most"),
        (24, &(1_u64 << 40).to_be_bytes(), "the L1 table maps 2097152 bytes, and the disk has 1099511627776"),
        (32, &[0, 0, 0, 3], "the image is encrypted by method 3, which the format does not define"),
        (
            32,
            &[0, 0, 0, 1],
            "the image is encrypted with the AES of qcow2's first version, which is not safe and is not supported: \
             'qemu-img convert' makes an image with LUKS of it",
        ),
        (32, &[0, 0, 0, 2], "the image is encrypted with LUKS: give the passphrase with qcow2-passphrase="),
        (36, &[0xff; 4], "the L1 table has 4294967295 entries, and 4194304 is the most"),
        (36, &[0, 0x40, 0, 0], "the L1 table has 33554432 bytes at 12288, and the image ends after END"),
        (36, &[0; 4], "the L1 table maps 0 bytes, and the disk has 1048576"),
        (40, &max, "the L1 table is at 18446744073709551615, which is not a multiple of a cluster's size"),
        (
            40,
            &0xffff_ffff_ffff_f000_u64.to_be_bytes(),
            "the L1 table has 8 bytes at 18446744073709547520, and the image ends after END",
        ),
        (40, &[0, 0, 0, 0, 0, 0, 1, 0], "the L1 table is at 256, which is not a multiple of a cluster's size"),
        (60, &10_000_000_u32.to_be_bytes(), "the header says 10000000 snapshots, and 65536 is the most"),
        (
            8,
            &[0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 1],
            "the name of the backing file has 1 bytes at 4096, and must have at most 1023 and end before 4096",
        ),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 1, 0],
            "the image needs a feature that is not supported: bit 8, which the image has no name for",
        ),
        (
            72,
            &[0x80, 0, 0, 0, 0, 0, 0, 0],
            "the image needs a feature that is not supported: bit 63, which the image has no name for",
        ),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], "the header says compression type zlib, and the feature bit for it is set"),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 0, 16],
            "the image has extended L2 entries and clusters of 4096 bytes, and needs 16384 at least",
        ),
        (96, &[0, 0, 0, 7], "the header says refcounts of 2^7 bits, and 2^6 is the most"),
        (100, &[0, 0, 0, 103], "the header says that it has 103 bytes, and it has 104 to 4096, the size of a cluster"),
        (104, &[1], "the header says compression type zstd, and the feature bit for it is not set"),
        (104, &[2], "the image has clusters of compression type 2: 0 (zlib) and 1 (zstd) are supported"),
    ];
    for (at, value, line) in cases {
        let mut bad = good.clone();
        put(&mut bad, at, value);
        // A backing file's name of that length would be read first.
        assert_eq!(refusal(&bad, Options::default()), line.replace("END", &end.to_string()), "{at}: {value:?}");
        // A report describes it, or says what is wrong.
        let _ = (INFO.report)(&source(&bad));
    }
    let zstd = image(&dir, "cluster_size=4k,compression_type=zstd");
    let mut bad = zstd.clone();
    bad[79] &= !8;
    assert_eq!(
        refusal(&bad, Options::default()),
        "the header says compression type zstd, and the feature bit for it is not set"
    );
}

#[test]
fn a_header_that_is_cut_at_any_byte_is_refused() {
    let dir = Dir::new("qcow2-cut");
    for options in ["compat=0.10,cluster_size=512", "cluster_size=512"] {
        let good = image(&dir, options);
        let l1_end = tables(&good).0 + 8 * 32;
        let needed = if options.starts_with("compat") { 72 } else { 104 };
        for length in 0..l1_end {
            let line = refusal(&good[..length], Options::default());
            let expected = match length {
                0..4 => "it is not a qcow2 image: it does not begin with 'QFI' and the byte 0xfb".to_string(),
                4..8 => format!("the header has {length} bytes, and a field at 4 of 4 bytes"),
                _ if length < needed => format!("the header has {length} bytes, and a field at 0 of {needed} bytes"),
                _ => line.clone(),
            };
            assert_eq!(line, expected);
        }
        open(&good[..l1_end]).unwrap();
        for length in (l1_end..good.len()).step_by(97) {
            // Data is there, or an error says what is not.
            match read_all(&open(&good[..length]).unwrap()) {
                Ok(all) => assert_eq!(all.len(), 1 << 20),
                Err(error) => assert!(error.to_string().contains("image"), "{error}"),
            }
        }
    }
}

#[test]
fn a_feature_that_is_not_known_is_refused_by_its_name() {
    let dir = Dir::new("qcow2-feature");
    let mut bad = image(&dir, "cluster_size=64k");
    // The first line of the table of names, which qemu writes for the dirty bit.
    let at = bad.windows(9).position(|bytes| bytes == b"dirty bit").expect("the table of names");
    put(&mut bad, at - 1, &[9]);
    put(&mut bad, at, b"flux\n'gate\0");
    put(&mut bad, 72, &[0, 0, 0, 0, 0, 0, 2, 0]);
    let line = "the image needs a feature that is not supported: 'flux\\n\\'gate' (bit 9)";
    assert_eq!(refusal(&bad, Options::default()), line);
    let report = (INFO.report)(&source(&bad)).unwrap();
    assert_eq!(report.dangers, [format!("it cannot be served: {line}")]);
}

#[test]
fn a_wrong_table_is_one_line_and_the_rest_is_read() {
    let dir = Dir::new("qcow2-tables");
    let good = image(&dir, "cluster_size=4k");
    let end = good.len();
    let (l1, l2) = tables(&good);
    let data = |offset: u64| (offset | 1 << 63).to_be_bytes();
    let cases: [(usize, [u8; 8], &str); 9] = [
        (l1, data(0x200), "the L1 entry 0 is wrong: the offset 512 is not a multiple of a cluster's size"),
        (
            l1,
            data(1 << 40),
            "the L1 entry 0 is wrong: the L2 table at 1099511627776 does not end before the image does, after END \
             bytes",
        ),
        (
            l1,
            data(0x00ff_ffff_ffff_f000),
            "the L1 entry 0 is wrong: the L2 table at 72057594037923840 does not end before the image does, after END \
             bytes",
        ),
        (l2 + 8, data(0x1200), "the L2 entry for 4096 is wrong: the offset 4608 is not a multiple of a cluster's size"),
        (l2 + 8, data(1 << 40), "the cluster for 4096 is at 1099511627776, and the image ends after END bytes"),
        (
            l2 + 8,
            data(0x00ff_ffff_ffff_f000),
            "the cluster for 4096 is at 72057594037923840, and the image ends after END bytes",
        ),
        (
            l2 + 8,
            (1_u64 << 62 | (end as u64)).to_be_bytes(),
            "the compressed cluster for 4096 is wrong: it is at END, and the image ends after END bytes",
        ),
        (
            l2 + 8,
            [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            "the compressed cluster for 4096 is wrong: it is at 288230376151711743, and the image ends after END bytes",
        ),
        (
            l2 + 8,
            (1_u64 << 62 | 1 << 58).to_be_bytes(),
            "the compressed cluster for 4096 is wrong: deflated data of 1024 bytes is wrong after 0 bytes",
        ),
    ];
    for (at, value, line) in cases {
        let mut bad = good.clone();
        put(&mut bad, at, &value);
        let image = open(&bad).unwrap();
        assert_eq!(line_of(read_all(&image)), line.replace("END", &end.to_string()));
        if at > l1 + 8 {
            let mut first = [0; 4096];
            image.read(0, &mut first).unwrap();
            assert!(first == [2; 4096], "the cluster before it");
            image.read(8192, &mut first).unwrap();
            assert!(first == [1; 4096], "the cluster behind it");
        }
    }
    // Of clusters that follow each other beyond the end, the first offset is named.
    let mut bad = good.clone();
    let last = (end as u64 - 1) & !4095;
    put(&mut bad, l2 + 8, &data(last));
    put(&mut bad, l2 + 16, &data(last + 4096));
    assert_eq!(
        line_of(read_all(&open(&bad).unwrap())),
        format!("the cluster for 8192 is at {}, and the image ends after {end} bytes", last + 4096)
    );
}

#[test]
fn a_zero_cluster_in_version_2_is_wrong() {
    let dir = Dir::new("qcow2-zero-2");
    let mut bad = image(&dir, "compat=0.10,cluster_size=4k");
    let (_, l2) = tables(&bad);
    put(&mut bad, l2, &1_u64.to_be_bytes());
    assert_eq!(
        line_of(read_all(&open(&bad).unwrap())),
        "the L2 entry for 0 is wrong: the cluster reads as zero, which version 2 does not have"
    );
}

#[test]
fn subclusters_that_contradict_themselves_are_wrong() {
    let dir = Dir::new("qcow2-subclusters");
    let good = image(&dir, "extended_l2=on,cluster_size=16k");
    let (_, l2) = tables(&good);
    for (entry, bitmap, line) in [
        (None, 1_u64 << 3 | 1 << 35, "the L2 entry for 1536 is wrong: subcluster 3 has data and reads as zero"),
        (Some(0_u64), 1 << 2, "the L2 entry for 1024 is wrong: subcluster 2 has data, and the cluster no offset"),
    ] {
        let mut bad = good.clone();
        if let Some(entry) = entry {
            put(&mut bad, l2, &entry.to_be_bytes());
        }
        put(&mut bad, l2 + 8, &bitmap.to_be_bytes());
        assert_eq!(line_of(read_all(&open(&bad).unwrap())), line);
    }
}

#[test]
fn tables_that_are_each_other_give_rubbish_and_end() {
    let dir = Dir::new("qcow2-loops");
    let good = image(&dir, "cluster_size=4k");
    let (l1, l2) = tables(&good);
    for (at, to) in [(l1, l1), (l1, 0), (l2, l1), (l2, l2), (l2, 0)] {
        let mut bad = good.clone();
        put(&mut bad, at, &(to as u64 | 1 << 63).to_be_bytes());
        let image = open(&bad).unwrap();
        let _ = read_all(&image);
        let _ = super::extents(&image);
    }
    // All clusters are one, and hold a table.
    let mut bad = good.clone();
    for n in 0..256 {
        put(&mut bad, l2 + n * 8, &(l2 as u64 | 1 << 63).to_be_bytes());
    }
    let all = read_all(&open(&bad).unwrap()).unwrap();
    assert!(all.chunks(4096).all(|cluster| cluster == &bad[l2..l2 + 4096]));
}

#[test]
fn a_wrong_table_of_snapshots_is_one_line_when_a_snapshot_is_wanted() {
    let dir = Dir::new("qcow2-wrong-snapshots");
    let good = image(&dir, "cluster_size=4k");
    let table = number(&good, 64);
    let end = good.len();
    let with = || Options { snapshot: Some("before".into()), ..Options::default() };
    let cases: [(usize, &[u8], &str); 7] = [
        (64, &[0, 0, 0, 0, 0, 0, 0, 8], "the table of snapshots is at 8, which is not a multiple of a cluster's size"),
        (64, &(1_u64 << 60).to_be_bytes(), "the image names 40 bytes at 1152921504606846976, and ends after END bytes"),
        (
            64,
            &0xffff_ffff_ffff_f000_u64.to_be_bytes(),
            "the image names 40 bytes at 18446744073709547520, and ends after END bytes",
        ),
        (table + 36, &[0xff; 4], "the snapshot 0 of 1: it has 4294967295 bytes of extra data, and 1024 is the most"),
        (table + 14, &[0xff; 2], "the image names 65535 bytes at NAME, and ends after END bytes"),
        (
            table,
            &[0xff; 8],
            "the L1 table of the snapshot is at 18446744073709551615, which is not a multiple of a cluster's size",
        ),
        (table + 8, &[0xff; 4], "the L1 table of the snapshot has 4294967295 entries, and 4194304 is the most"),
    ];
    for (at, value, line) in cases {
        let mut bad = good.clone();
        put(&mut bad, at, value);
        let name_at = table + 40 + 24 + 1;
        let line = line.replace("END", &end.to_string()).replace("NAME", &name_at.to_string());
        assert_eq!(refusal(&bad, with()), line, "{at}");
        read_all(&open(&bad).expect("the current state")).unwrap();
        let _ = (INFO.report)(&source(&bad)).unwrap();
    }
    let mut bad = good.clone();
    put(&mut bad, 60, &1000_u32.to_be_bytes());
    let without = Options { snapshot: Some("none".into()), ..Options::default() };
    assert!(refusal(&bad, without).starts_with("the "), "the walk ends");
    assert_eq!(
        refusal(&bytes(&made(&dir, "none", &[], 512, &[])), with()),
        "the image has no snapshots, and none is 'before'"
    );
}

#[test]
fn a_report_tells_names_of_files_as_dangers() {
    let dir = Dir::new("qcow2-report");
    let path = made(&dir, "image", &["-o", "compression_type=zstd,lazy_refcounts=on"], 1 << 20, &[]);
    run("qemu-img", &["snapshot", "-c", "a", &path]);
    run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "/etc/pass\nwd", "-F", "raw", &path]);
    let mut image = bytes(&path);
    image[79] |= 2;
    let report = (INFO.report)(&source(&image)).unwrap();
    assert_eq!(report.size, Some(1 << 20));
    assert_eq!(
        report.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>(),
        [
            "version: 3",
            "cluster size: 65536",
            "compression: zstd",
            "encryption: none",
            "features: corrupt bit, compression type, lazy refcounts",
            "backing file: '/etc/pass\\nwd'",
            "backing format: 'raw'",
            "snapshots: 1",
            "snapshot: 'a' (ID '1'), 1048576 bytes",
        ]
    );
    let dangers = ["it names a backing file: '/etc/pass\\nwd'", "it is marked as corrupt"];
    assert_eq!(report.dangers, dangers);
    let opened = Image::open(source(&image), Options { backing: disk(b""), ..Options::default() }).unwrap();
    assert_eq!(
        opened.warnings(),
        ["the image is marked as corrupt: what it serves may be wrong ('qemu-img check' says more)"]
    );
    assert!(read_all(&opened).unwrap().iter().all(|byte| *byte == 0), "the backing file is empty");
}

#[test]
fn extensions_that_do_not_end_in_the_header_are_refused() {
    let dir = Dir::new("qcow2-extensions");
    let good = image(&dir, "cluster_size=4k");
    let first = u32::from_be_bytes(good[100..104].try_into().unwrap()) as usize;
    for (kind, length, line) in [
        (
            0x6803_f857_u32,
            u32::MAX,
            format!("the header extension 0x6803f857 has 4294967295 bytes at {}, and must end before 4096", first + 8),
        ),
        (1, 4096, format!("the header extension 0x00000001 has 4096 bytes at {}, and must end before 4096", first + 8)),
        (0xe279_2aca, 16, "the name of the backing file's format has 16 bytes, and 15 is the most".into()),
    ] {
        let mut bad = good.clone();
        put(&mut bad, first, &[kind.to_be_bytes(), length.to_be_bytes()].concat());
        assert_eq!(refusal(&bad, Options::default()), line);
    }
    // Empty ones to the end of the cluster.
    let mut many = good.clone();
    many[first..4096].fill(0);
    for at in (first..4096).step_by(8) {
        put(&mut many, at, &[1]);
    }
    open(&many).unwrap();
}
