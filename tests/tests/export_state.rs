//! What filters keep belongs to a disk and not to the name that a client used.

use std::path::Path;

use rbdkit_tests::{Client, Server, TempDir, tool};

/// Bytes of the temporary files that a server holds.
fn scratch(server: &Server) -> (usize, u64) {
    let fds = Path::new("/proc").join(server.pid().to_string()).join("fd");
    let files = std::fs::read_dir(fds).expect("the server's descriptors").flatten();
    let sizes = files.filter_map(|entry| {
        // Scratch files have no name. The memory of a filter that this server has compiled is a
        // file in memory; it has no name either.
        let link = std::fs::read_link(entry.path()).ok()?;
        let link = link.to_string_lossy();
        let is_scratch = link.ends_with("(deleted)") && !link.starts_with("/memfd:");
        let metadata = std::fs::metadata(entry.path()).ok().filter(|metadata| is_scratch && metadata.is_file())?;
        Some(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
    });
    sizes.fold((0, 0), |(count, sum), size| (count + 1, sum + size))
}

fn open(server: &Server, name: &str) -> Client {
    Client::negotiate(server.socket(), name, true)
}

#[test]
fn invented_export_names_keep_nobody_out_and_cost_nothing() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk.img", 1 << 20);
    let server = Server::start(["--filter=cow".as_ref(), "file".as_ref(), disk.as_os_str()]);
    for name in 0..5000 {
        let mut client = open(&server, &format!("invented {name}"));
        client.write(name % 1024 * 512, b"x").expect("a write");
        client.disconnect();
    }
    let mut default = open(&server, "");
    default.write(0, b"served").expect("a write to the default export");
    assert_eq!(default.read(0, 6).expect("a read"), b"served");
    assert_eq!(default.read(512, 1).expect("a read"), b"x", "one disk, one overlay");
    assert_eq!(scratch(&server).0, 1);
}

#[test]
fn one_disk_under_many_names_costs_one_scratch_file() {
    const SIZE: u64 = 16 << 20;
    for plugin in
        [&["memory", "16M"][..], &["null", "16M"], &["eval", "get_size=echo 16M", "pread=head -c $3 /dev/zero"]]
    {
        let server = Server::start([&["--filter=cow"], plugin].concat());
        for name in 0..25 {
            let mut client = open(&server, &format!("name{name}"));
            client.write(0, &vec![1; SIZE as usize]).expect("a write");
            client.disconnect();
        }
        let (files, bytes) = scratch(&server);
        assert_eq!(files, 1, "{plugin:?}");
        assert!(bytes < SIZE + SIZE / 4, "{plugin:?}: {bytes}");
    }
}

#[test]
fn a_client_reads_what_a_client_of_another_name_has_written() {
    for mode in [&["--filter=cache", "cache=unsafe"][..], &["--filter=cache", "cache=writeback", "cache-on-read=true"]]
    {
        let server = Server::start([&mode[..1], &["memory", "1M"], &mode[1..]].concat());
        let (mut one, mut other) = (open(&server, ""), open(&server, "other"));
        assert_eq!(other.read(0, 5).expect("a read"), [0; 5]);
        one.write(0, b"fresh").expect("a write");
        assert_eq!(other.read(0, 5).expect("a read"), b"fresh", "{mode:?}");
    }
}

#[test]
fn the_files_of_a_directory_stay_apart_and_a_link_is_the_file_that_it_leads_to() {
    let dir = TempDir::new();
    dir.sparse_file("a", 1 << 20);
    dir.sparse_file("b", 1 << 20);
    std::os::unix::fs::symlink("a", dir.join("link")).expect("a link");
    std::fs::hard_link(dir.join("b"), dir.join("hard")).expect("a link");
    let server = Server::start(["--filter=cow", "file", &format!("dir={}", dir.path().display())]);
    open(&server, "a").write(0, b"of a").expect("a write");
    open(&server, "b").write(0, b"of b").expect("a write");
    for (name, text) in [("a", b"of a"), ("b", b"of b"), ("link", b"of a"), ("hard", b"of b")] {
        assert_eq!(open(&server, name).read(0, 4).expect("a read"), text, "{name}");
    }
}

#[test]
fn a_script_has_an_overlay_for_each_name_that_it_lists_and_no_other_name_can_be_opened() {
    let server = Server::start([
        "--filter=cow",
        "eval",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "list_exports=echo INTERLEAVED; echo a; echo first; echo b; echo second",
        "default_export=echo a",
    ]);
    open(&server, "").write(0, b"a").expect("a write");
    open(&server, "b").write(0, b"b").expect("a write");
    for (name, text) in [("", b"a"), ("a", b"a"), ("b", b"b")] {
        assert_eq!(open(&server, name).read(0, 1).expect("a read"), text, "{name}");
    }
    // The script might serve another disk under this name.
    let uri = format!("nbd+unix:///invented?socket={}", server.socket().display());
    tool("nbdinfo", ["--size", &uri]).fails();
    server.wait_for_log("export 'invented' is not listed, and a filter that keeps state needs that");
}
