//! fio's nbd engine with `verify=crc32c`: reads give what was written, under load and in any order.

use rbdkit_tests::{Launch, Server, TempDir, tool};

fn verify(server: &Server, job: &[&str]) {
    let uri = format!("--uri=nbd+unix:///?socket={}", server.socket().display());
    let common = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--size=24M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--iodepth=32",
        "--group_reporting",
        "--output-format=terse",
    ];
    let output = tool("fio", [&common[..], job].concat()).ok();
    // A line of fio's terse output, version 3. The fifth field is the error.
    let fields: Vec<&str> = output.lines().rfind(|line| line.starts_with("3;")).unwrap_or(&output).split(';').collect();
    assert_eq!(fields.get(4), Some(&"0"), "fio says\n{output}");
}

const RANDOM: &[&str] = &["--rw=randwrite", "--bs=4k", "--verify_backlog=64"];
const MIXED: &[&str] = &["--rw=randrw", "--bsrange=512-64k", "--blockalign=512"];
const SEQUENTIAL: &[&str] = &["--rw=write", "--bs=256k"];

#[test]
fn everything_verifies_on_memory_without_filters() {
    let server = Server::start(["memory", "24M"]);
    [RANDOM, MIXED, SEQUENTIAL].iter().for_each(|job| verify(&server, job));
}

#[test]
fn everything_verifies_on_a_file_without_filters() {
    let dir = TempDir::new();
    let server = Launch::new(["file"]).path("file", &dir.sparse_file("disk.img", 24 << 20)).start();
    [RANDOM, MIXED, SEQUENTIAL].iter().for_each(|job| verify(&server, job));
}

#[test]
fn everything_verifies_through_each_filter() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 24 << 20);
    for filter in ["nofilter", "readahead", "cow", "cache", "error"] {
        let server = Launch::new([&format!("--filter={filter}"), "file"]).path("file", &file).start();
        verify(&server, RANDOM);
        verify(&server, MIXED);
    }
}

#[test]
fn everything_verifies_through_a_stack() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 24 << 20);
    let server = Launch::new(["--filter=nofilter", "--filter=readahead", "--filter=cow", "--filter=cache", "file"])
        .path("file", &file)
        .start();
    [RANDOM, MIXED, SEQUENTIAL].iter().for_each(|job| verify(&server, job));
}
