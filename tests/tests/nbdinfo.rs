//! nbdinfo: what an export says of itself, and its map of extents.

use rbdkit_tests::model::sparse;
use rbdkit_tests::{Launch, Server, TempDir, tool};

fn nbdinfo(arguments: &[&str]) -> String {
    tool("nbdinfo", arguments).ok()
}

/// The map as (offset, length, type).
fn map(uri: &str) -> Vec<(u64, u64, u32)> {
    let text = nbdinfo(&["--map", uri]);
    let number = |field: Option<&str>| field.and_then(|text| text.parse::<u64>().ok()).expect("a number");
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        (number(fields.next()), number(fields.next()), number(fields.next()) as u32)
    };
    text.lines().map(line).collect()
}

/// A file of data, hole, data, hole, of 64 KiB each.
fn striped(dir: &TempDir) -> std::path::PathBuf {
    let content: Vec<u8> = (0..4u8).flat_map(|nth| vec![if nth % 2 == 0 { 0x55 } else { 0 }; 65536]).collect();
    sparse(dir, "striped.img", &content)
}

const STRIPED: [(u64, u64, u32); 4] = [(0, 65536, 0), (65536, 65536, 3), (131072, 65536, 0), (196608, 65536, 3)];

#[test]
fn the_size_is_that_of_the_plugin() {
    let server = Server::start(["memory", "10M"]);
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), "10485760");
    let server = Server::start(["data", "data=1 2 @0x8000 3 @^0x10000"]);
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), "65536");
    let server = Server::start(["eval", "get_size=echo 4611686018427387904", "pread=exit 1"]);
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), "4611686018427387904");
}

#[test]
fn an_export_of_no_bytes_can_be_listed() {
    let server = Server::start(["memory", "0"]);
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), "0");
    assert!(nbdinfo(&["--list", &server.uri()]).contains("export-size: 0"));
}

#[test]
fn an_export_that_cannot_be_opened_does_not_exist_for_the_client_whatever_the_error() {
    for errno in ["EIO", "EPERM", "ENOMEM", "ENOENT"] {
        let open = format!("open=echo '{errno} the disk is in the post' >&2; exit 1");
        let server = Server::start(["eval", "get_size=echo 1M", &open]);
        let said = tool("nbdinfo", ["--size", &server.uri()]).fails();
        assert!(said.contains("server has no export named ''"), "{errno}: {said}");
        server.wait_for_log("the disk is in the post");
    }
}

#[test]
fn the_map_of_a_file_shows_its_holes() {
    let dir = TempDir::new();
    let server = Launch::new(["file"]).path("file", &striped(&dir)).start();
    assert_eq!(map(&server.uri()), STRIPED);
}

#[test]
fn the_map_passes_through_every_filter() {
    let dir = TempDir::new();
    let file = striped(&dir);
    for filters in [
        &["nofilter"][..],
        &["readahead"],
        &["cow"],
        &["cache"],
        &["delay"],
        &["error"],
        &["nofilter", "readahead", "cow", "cache", "nofilter"],
    ] {
        let options = filters.iter().map(|name| format!("--filter={name}"));
        let server = Launch::new(options).arg("file").path("file", &file).start();
        // A filter may report coarser extents, but they must be right and without gaps.
        let map = map(&server.uri());
        assert_eq!(map.iter().map(|&(_, length, _)| length).sum::<u64>(), 262_144, "{filters:?}: {map:?}");
        assert_eq!(map, STRIPED, "{filters:?}");
    }
}

#[test]
fn the_map_moves_with_the_offset_filter() {
    let dir = TempDir::new();
    let server = Launch::new(["--filter=offset", "file"])
        .path("file", &striped(&dir))
        .arg("offset=32K")
        .arg("range=128K")
        .start();
    assert_eq!(map(&server.uri()), [(0, 32768, 0), (32768, 65536, 3), (98304, 32768, 0)]);
}

#[test]
fn the_map_of_memory_shows_what_was_written() {
    let server = Server::start(["memory", "256K"]);
    assert_eq!(map(&server.uri()), [(0, 262_144, 3)]);
    server.client().write(65536, &[1; 32768]).expect("a write");
    assert_eq!(map(&server.uri()), [(0, 65536, 3), (65536, 32768, 0), (98304, 163_840, 3)]);
}

#[test]
fn a_plugin_without_extents_is_all_data() {
    let server = Server::start(["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero"]);
    assert_eq!(map(&server.uri()), [(0, 1 << 20, 0)]);
}

#[test]
fn the_extents_of_a_script_reach_the_client() {
    let extents = "extents=echo 0 64K; echo 64K 64K hole,zero; echo 128K 128K zero";
    let server =
        Server::start(["eval", "get_size=echo 256K", "pread=head -c $3 /dev/zero", "can_extents=exit 0", extents]);
    assert_eq!(map(&server.uri()), [(0, 65536, 0), (65536, 65536, 3), (131_072, 131_072, 2)]);
}

#[test]
fn json_is_complete_and_true() {
    let server = Server::start(["memory", "64K"]);
    let json = nbdinfo(&["--json", &server.uri()]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"TLS\": false",
        "\"structured\": true",
        "\"export-name\": \"\"",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"export-size\": 65536",
    ] {
        assert!(json.contains(expected), "{expected} is not in\n{json}");
    }
}

#[test]
fn content_is_recognised() {
    // The magic number of a boot sector, in its place.
    let server = Server::start(["data", "data=@510 0x55 0xaa @^512"]);
    assert!(nbdinfo(&[&server.uri()]).contains("DOS/MBR boot sector"), "file(1) does not recognise it");
}

#[test]
fn can_and_is_answer_by_exit_status() {
    let server = Server::start(["-r", "memory", "64K"]);
    let code = |question: &[&str]| tool("nbdinfo", question.iter().copied().chain([server.uri().as_str()])).code;
    for yes in [["--can", "read"], ["--can", "df"], ["--can", "multi-conn"], ["--is", "read-only"]] {
        assert_eq!(code(&yes), 0, "{yes:?}");
    }
    for no in [["--can", "write"], ["--can", "trim"], ["--can", "zero"], ["--is", "rotational"], ["--is", "tls"]] {
        assert_eq!(code(&no), 2, "{no:?}");
    }
}

#[test]
fn a_directory_lists_its_files_as_exports() {
    let dir = TempDir::new();
    dir.sparse_file("first", 1 << 20);
    dir.sparse_file("second", 2 << 20);
    let server = Launch::new(["file"]).path("dir", dir.path()).start();
    let list = nbdinfo(&["--list", &server.uri()]);
    assert!(list.contains("export=\"first\"") && list.contains("export=\"second\""), "{list}");
    let named = format!("nbd+unix:///second?socket={}", server.socket().display());
    assert_eq!(nbdinfo(&["--size", &named]).trim(), "2097152");
    let missing = format!("nbd+unix:///third?socket={}", server.socket().display());
    tool("nbdinfo", ["--size", &missing]).fails();
    let outside = format!("nbd+unix:///../{}?socket={}", "etc", server.socket().display());
    tool("nbdinfo", ["--size", &outside]).fails();
}

#[test]
fn the_exports_of_a_script_are_listed_with_their_descriptions() {
    let list = "list_exports=echo INTERLEAVED; echo one; echo the first; echo two; echo the second";
    let server = Server::start(["eval", "get_size=echo 64K", "pread=head -c $3 /dev/zero", list]);
    let list = nbdinfo(&["--list", &server.uri()]);
    for expected in ["export=\"one\"", "the first", "export=\"two\"", "the second"] {
        assert!(list.contains(expected), "{expected} is not in\n{list}");
    }
}

#[test]
fn two_thousand_exports_are_listed_and_described() {
    let dir = TempDir::new();
    for nth in 0..2000 {
        dir.sparse_file(&format!("disk{nth}"), 512);
    }
    let server = Launch::new(["file"]).path("dir", dir.path()).start();
    let list = nbdinfo(&["--list", &server.uri()]);
    assert_eq!(list.matches("export-size: 512").count(), 2000);
    // Three options for each.
    let list = tool("qemu-nbd", ["-L", "-k", server.socket().to_str().expect("a name in UTF-8")]).ok();
    assert_eq!(list.matches("size:  512").count(), 2000, "{}", &list[..list.len().min(500)]);
}

#[test]
fn what_fails_and_is_optional_keeps_no_client_out() {
    let server = Server::start([
        "eval",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "block_size=echo EIO it has no blocks >&2; exit 1",
        "export_description=echo it cannot be described >&2; exit 1",
    ]);
    let info = nbdinfo(&[&server.uri()]);
    assert!(info.contains("export-size: 1048576"), "{info}");
    assert!(!info.contains("block_size_minimum") && !info.contains("description"), "{info}");
    server.wait_for_log("it has no blocks (EIO); the export has no block sizes");
    server.wait_for_log("it cannot be described (EIO); the export has no description");
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), "1048576");
}

#[test]
fn lists_that_a_script_prints() {
    let list = |script: &str| {
        let server = Server::start(["eval", "get_size=echo 64K", "pread=head -c $3 /dev/zero", script]);
        (tool("nbdinfo", ["--list", &server.uri()]), server)
    };
    let names =
        |text: &str| text.lines().filter(|line| line.starts_with("export=")).map(str::to_owned).collect::<Vec<_>>();
    for (script, expected) in [
        ("list_exports=echo", &["export=\"\":"][..]),
        ("list_exports=:", &[]),
        ("list_exports=echo NAMES; echo; echo a", &["export=\"\":", "export=\"a\":"]),
        ("default_export=echo d", &["export=\"d\":"]),
        ("default_export=echo it is lost >&2; exit 1", &[]),
    ] {
        let (finished, server) = list(script);
        assert_eq!(names(&finished.ok()), expected, "{script}");
        if expected.is_empty() && script.starts_with("default") {
            server.wait_for_log("it is lost (EIO); no export is listed");
        }
    }
    // The names are no shorter than the script made them.
    for (script, why) in [
        (
            "list_exports=echo a; head -c 4097 /dev/zero | tr '\\0' x",
            "the name of an export has 4097 bytes, which is more than 4096: 'xx",
        ),
        (
            "list_exports=echo INTERLEAVED; echo a; head -c 5000 /dev/zero | tr '\\0' x",
            "the description of an export has 5000 bytes, which is more than 4096: 'a'",
        ),
        ("list_exports=printf 'a\\n\\377\\n'", "line 2 of the exports is not UTF-8"),
    ] {
        let (finished, server) = list(script);
        finished.fails();
        server.wait_for_log(why);
    }
}
