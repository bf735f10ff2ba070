//! nbdcopy both ways: sparse and full, one connection and many, through every filter.

use std::path::Path;

use rbdkit_tests::model::{content, sparse};
use rbdkit_tests::{Launch, Server, TempDir, seed, tool};

const SIZE: usize = (12 << 20) + 512;

/// The options of nbdcopy for each way to copy.
const WAYS: [&[&str]; 4] = [
    &[],
    &["--connections=1", "--requests=1", "--request-size=65536"],
    &["--connections=8", "--requests=64", "--request-size=4096", "--threads=4"],
    &["--no-extents", "--allocated"],
];

const STACKS: [&[&str]; 8] = [
    &[],
    &["nofilter"],
    &["readahead"],
    &["cow"],
    &["cache"],
    &["readahead", "cache"],
    &["cow", "cache"],
    &["nofilter", "readahead", "cow", "cache", "nofilter"],
];

fn nbdcopy(options: &[&str], from: &str, to: &str) {
    tool("nbdcopy", options.iter().copied().chain([from, to])).ok();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn same(what: &str, file: &Path, expected: &[u8]) {
    let bytes = std::fs::read(file).expect("the copy");
    assert_eq!(bytes.len(), expected.len(), "{what}: the size");
    let difference = bytes.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{what}: the first byte that differs");
}

fn launch(filters: &[&str]) -> Launch {
    Launch::new(filters.iter().map(|name| format!("--filter={name}")))
}

#[test]
fn copies_out_of_a_file_are_exact_through_every_stack_in_every_way() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let content = content(seed, SIZE);
    let file = sparse(&dir, "disk.img", &content);
    for filters in STACKS {
        let server = launch(filters).arg("file").path("file", &file).start();
        for way in WAYS {
            let copy = dir.join("copy.img");
            nbdcopy(way, &server.uri(), text(&copy));
            same(&format!("{filters:?} {way:?}"), &copy, &content);
        }
    }
}

#[test]
fn copies_into_a_file_are_exact_through_every_stack_in_every_way() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let content = content(seed, SIZE);
    let source = sparse(&dir, "source.img", &content);
    for filters in STACKS {
        for way in WAYS {
            let what = format!("{filters:?} {way:?}");
            let disk = dir.file("disk.img", &vec![0xff; SIZE]);
            let server = launch(filters).arg("file").path("file", &disk).start();
            nbdcopy(&[way, &["--flush"]].concat(), text(&source), &server.uri());
            let copy = dir.join("copy.img");
            nbdcopy(&[], &server.uri(), text(&copy));
            same(&format!("{what}, read back"), &copy, &content);
            assert!(server.stop().status.success());
            if filters.contains(&"cow") {
                same(&format!("{what}, below cow"), &disk, &vec![0xff; SIZE]);
            } else {
                same(&format!("{what}, the file"), &disk, &content);
            }
        }
    }
}

#[test]
fn a_copy_from_server_to_server_is_exact() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let content = content(seed, SIZE);
    let from = Launch::new(["file"]).path("file", &sparse(&dir, "disk.img", &content)).start();
    let to = Server::start(["--filter=cache", "memory", &SIZE.to_string()]);
    nbdcopy(&["--connections=4"], &from.uri(), &to.uri());
    let copy = dir.join("copy.img");
    nbdcopy(&[], &to.uri(), text(&copy));
    same("server to server", &copy, &content);
}

#[test]
fn a_copy_of_what_a_script_serves_is_exact() {
    let dir = TempDir::new();
    let content = content(1, 1 << 20);
    let file = dir.file("disk.img", &content);
    let pread = format!("pread=dd if={} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none", file.display());
    for filters in [&[][..], &["cache"], &["readahead", "cache"], &["cow"]] {
        let server = launch(filters).arg("eval").arg("get_size=echo 1M").arg(&pread).start();
        let copy = dir.join("copy.img");
        nbdcopy(&["--request-size=65536"], &server.uri(), text(&copy));
        same(&format!("eval, {filters:?}"), &copy, &content);
    }
}

#[test]
fn a_copy_of_data_is_exact() {
    let server = Server::start(["data", "data=\"hello\" @1000 ( 1 2 3 )*100 @^1048576"]);
    let dir = TempDir::new();
    let copy = dir.join("copy.img");
    nbdcopy(&[], &server.uri(), text(&copy));
    let mut expected = b"hello".to_vec();
    expected.resize(1000, 0);
    expected.extend_from_slice(&[1, 2, 3].repeat(100));
    expected.resize(1 << 20, 0);
    same("data", &copy, &expected);
}

#[test]
fn a_copy_of_a_sparse_disk_is_sparse_and_quick() {
    // A terabyte: a copy that did not skip the holes would not end.
    let server = Server::start(["memory", "1T"]);
    server.client().write(1 << 39, b"a needle").expect("a write");
    let dir = TempDir::new();
    let copy = dir.join("copy.img");
    nbdcopy(&[], &server.uri(), text(&copy));
    assert_eq!(rbdkit_tests::server::read_at(&copy, 1 << 39, 8), b"a needle");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&copy).expect("the copy"));
    assert!(blocks * 512 < 16 << 20, "{blocks} blocks of 512 bytes for one needle");
}

/// nbdkit 1.32.5 reports the extents of the file below, where unflushed data is still a hole.
#[test]
fn data_that_was_written_and_not_flushed_is_copied() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 16 << 20);
    for cache in ["writeback", "unsafe"] {
        let server = Launch::new(["--filter=cache", "file"]).path("file", &file).arg(format!("cache={cache}")).start();
        let mut client = server.client();
        let data = content(7, 1 << 20);
        client.write(3 << 20, &data).expect("a write");
        let copy = dir.join("copy.img");
        nbdcopy(&[], &server.uri(), text(&copy));
        let bytes = std::fs::read(&copy).expect("the copy");
        assert!(bytes[3 << 20..4 << 20] == data[..], "cache={cache}: a hole was copied where data was written");
    }
}

#[test]
fn a_server_that_serves_one_connection_at_a_time_is_copied_over_one() {
    let script = [
        "eval",
        "thread_model=echo serialize_connections",
        "can_multi_conn=exit 0",
        "get_size=echo 64M",
        "pread=head -c $3 /dev/zero",
    ];
    for filters in [&[][..], &["--filter=nofilter", "--filter=readahead"]] {
        let server = Server::start([filters, &script].concat());
        tool("nbdinfo", ["--can", "multi-conn", &server.uri()]).fails();
        nbdcopy(&["--connections=4"], &server.uri(), "null:");
    }
}
