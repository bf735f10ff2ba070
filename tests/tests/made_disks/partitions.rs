//! Disks of several files: split and partitioning.

use std::path::PathBuf;

use rbdkit_tests::{Launch, Rng, Server, TempDir, nbdsh, seed};

use crate::{copy, nbdkit, text};

/// Files of these sizes with random bytes.
fn files(dir: &TempDir, rng: &mut Rng, sizes: &[usize]) -> Vec<PathBuf> {
    let file = |(number, size): (usize, &usize)| dir.file(&format!("part{number}"), &rng.bytes(*size));
    sizes.iter().enumerate().map(file).collect()
}

fn compare(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let difference = ours.iter().zip(theirs).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{what}: the first byte that differs");
}

/// A disk with GPT without what is random in it, and without the length of the header, which is
/// nbdkit's own.
fn without_random(mut disk: Vec<u8>) -> Vec<u8> {
    let size = disk.len();
    for table in [1024, size - 33 * 512] {
        for entry in 0..128 {
            let unique = table + entry * 128 + 16;
            disk[unique..unique + 16].fill(0);
        }
    }
    for header in [512, size - 512] {
        for field in [12, 16, 88] {
            disk[header + field..header + field + 4].fill(0);
        }
    }
    disk
}

#[test]
fn split_puts_files_one_behind_the_other_as_nbdkit_does() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let files = files(&dir, &mut Rng::new(seed), &[700, 1 << 20, 0, 4096, 333]);
    let arguments: Vec<&str> = std::iter::once("split").chain(files.iter().map(|file| text(file))).collect();
    let whole: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).expect("a file")).collect();
    let server = Server::start(&arguments);
    compare(&copy(&server), &whole, "the files");
    compare(&copy(&nbdkit(&arguments).start()), &whole, "nbdkit's copy");
    // Across three files, the middle one of them empty.
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
at = 700 + (1 << 20) - 10
h.pwrite(b'x' * 30, at, nbd.CMD_FLAG_FUA)
h.flush()
print(h.pread(30, at) == b'x' * 30)
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "True\n");
    assert!(std::fs::read(&files[1]).expect("a file").ends_with(&[b'x'; 10]));
    let next = std::fs::read(&files[3]).expect("a file");
    assert!(next.starts_with(&[b'x'; 20]) && next[20..] == whole[700 + (1 << 20) + 20..][..4076]);
}

#[test]
fn partition_tables_are_nbdkits() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let files = files(&dir, &mut Rng::new(seed), &[1, 513, 4096, 70_000, 512, 999, 2048]);
    let file = |number: usize| text(&files[number]);
    let esp = "type-guid=C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
    let small = "alignment=512";
    for (kind, arguments) in [
        ("mbr", vec![file(0)]),
        ("mbr", vec![file(0), "mbr-id=0x82", file(1), "mbr-id=default", "alignment=4096", file(2), file(3)]),
        ("mbr", vec!["partition-type=mbr", small, file(0), file(1), file(2), file(3), file(4), file(5), file(6)]),
        ("mbr", vec!["partition-type=DOS", file(0), "mbr-id=7", file(1), file(2), file(3), file(4)]),
        ("gpt", vec!["partition-type=gpt", file(3)]),
        ("gpt", vec![small, esp, file(0), "type-guid=default", file(1), file(2), file(3), file(4)]),
    ] {
        let arguments = [&["partitioning"], &arguments[..]].concat();
        let (ours, theirs) = (copy(&Server::start(&arguments)), copy(&nbdkit(&arguments).start()));
        match kind {
            "mbr" => compare(&ours, &theirs, &format!("{arguments:?}")),
            _ => compare(&without_random(ours), &without_random(theirs), &format!("{arguments:?}")),
        }
    }
}

#[test]
fn another_reader_finds_every_partition() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let files = files(&dir, &mut Rng::new(seed), &[1536, 4096, 70_000, 512, 2000]);
    for kind in ["mbr", "gpt"] {
        let server =
            Launch::new(["partitioning", &format!("partition-type={kind}"), "alignment=4096"]).args(&files).start();
        for (number, file) in files.iter().enumerate() {
            // From the fourth file on, the partitions of an MBR are logical ones.
            let number = if kind == "mbr" && number >= 3 { number + 2 } else { number + 1 };
            let socket = format!("socket={}", text(server.socket()));
            let reader = nbdkit(&["--filter=partition", "nbd", &socket, &format!("partition={number}")]).start();
            let mut expected = std::fs::read(file).expect("a file");
            expected.resize(expected.len().next_multiple_of(512), 0);
            compare(&copy(&reader), &expected, &format!("{kind} {number}"));
        }
    }
}

#[test]
fn only_partitions_can_be_changed() {
    let dir = TempDir::new();
    let file = dir.file("part", &[7; 1000]);
    let server = Launch::new(["partitioning"]).arg(&file).start();
    let script = "
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(uri)
start = 1 << 20
table = h.pread(512, 0)
h.pwrite(table, 0)
h.pwrite(bytes(4096), 512)
h.pwrite(b'new', start)
h.zero(100, start + 100)
print(fails(lambda: h.pwrite(b'x', 511)), fails(lambda: h.pwrite(b'x', 512)), fails(lambda: h.zero(512, 0)))
print(fails(lambda: h.pwrite(b'x', start + 1000)))
print(h.get_size(), h.pread(512, 0) == table)
h.block_status(start, 0, lambda context, offset, entries, error: print(entries))
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO EIO EIO\nEIO\n1049600 True\n[512, 0, 1048064, 3]\n");
    let mut expected = vec![7; 1000];
    expected[..3].copy_from_slice(b"new");
    expected[100..200].fill(0);
    assert_eq!(std::fs::read(file).expect("a file"), expected);
}

#[test]
fn files_that_may_not_be_written_make_the_disk_read_only() {
    // Of a program that runs: nobody may write it.
    let program = std::env::current_exe().expect("this test");
    for plugin in ["split", "partitioning"] {
        let server = Launch::new([plugin]).arg(&program).start();
        let script = "
h = nbd.NBD()
h.connect_uri(uri)
print(h.is_read_only(), h.can_multi_conn())
";
        assert_eq!(nbdsh(&server.uri(), script).ok(), "True True\n", "{plugin}");
    }
}
