//! BLOCK_STATUS: the last extent runs on beyond the request as far as the layers know, and real
//! clients read the same map through every filter.

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

const GIB: u64 = 1 << 30;

/// Asserts what a request for 512 bytes is answered, as a list of lengths and flags.
fn assert_answer(server: &Server, offset: u64, expected: &[(u64, u8)]) {
    let numbers: Vec<String> = expected.iter().map(|(length, flags)| format!("{length}, {flags}")).collect();
    let numbers = numbers.join(", ");
    let script = format!(
        "h.add_meta_context('base:allocation')\nh.connect_uri(uri)\nanswer = []\n\
         h.block_status(512, {offset}, lambda m, o, e, err: answer.extend(e))\nassert answer == [{numbers}], answer\n\
         answer = []\nh.block_status(512, {offset}, lambda m, o, e, err: answer.extend(e), nbd.CMD_FLAG_REQ_ONE)\n\
         assert answer == [512, {}], answer",
        expected[0].1
    );
    nbdsh(&server.uri(), &script).ok();
}

/// The words of a command line, and the length and type of each extent that a client sees.
type Case<'a> = (&'a [&'a str], &'a [(u64, u8)]);

#[test]
fn every_plugin_says_how_far_the_last_extent_runs_on() {
    let dir = TempDir::new();
    let sparse = dir.sparse_file("sparse", GIB);
    let name = sparse.to_str().expect("UTF-8");
    let upstream = Server::start(["null", "1G"]);
    let socket = format!("socket={}", upstream.socket().display());
    let hole = [(GIB, 3)];
    let cases: [Case<'_>; 11] = [
        (&["null", "1G"], &hole),
        (&["memory", "1G"], &hole),
        (&["memory", "16M", "allocator=malloc"], &[(16 << 20, 0)]),
        (&["data", "data=@0x20000000 1", "size=1G"], &[(GIB / 2, 3)]),
        (&["file", name], &hole),
        (&["nbd", &socket], &hole),
        (&["pattern", "1G"], &[(GIB, 0)]),
        (&["eval", "get_size=echo 1G", "extents=echo 0 1M; echo 1M 4G hole"], &[(1 << 20, 0)]),
        // What lies beyond the end of the disk is cut.
        (&["eval", "get_size=echo 1G", "extents=echo 0 4G hole"], &[(GIB, 1)]),
        (&["eval", "get_size=echo 1G", "pread=exit 0"], &[(GIB, 0)]),
        // The most that 32 bits can say with whole blocks of 64 KiB.
        (&["null", "8G"], &[(0xffff_0000, 3)]),
    ];
    for (arguments, expected) in cases {
        assert_answer(&Server::start(arguments), 0, expected);
    }
}

#[test]
fn every_filter_passes_on_how_far_the_last_extent_runs_on() {
    let filters = "blocksize blocksize-policy cache cacheextents checkwrite count cow delay error evil \
                   exportname fua ip limit log map multi-conn nocache noparallel nofilter nozero openonce protect rate \
                   readahead readonly retry retry-request rotational scan spinning swab time-limit truncate";
    for filter in filters.split(' ') {
        assert_answer(&Server::start(["--filter", filter, "null", "1G"]), 0, &[(GIB, 3)]);
    }
    assert_answer(
        &Server::start(["--filter=offset", "null", "1G", "offset=1M", "range=64M"]),
        512,
        &[((64 << 20) - 512, 3)],
    );
}

#[test]
fn an_overlay_ends_the_last_extent_where_its_blocks_differ() {
    // When the client leaves, the cache writes back, and then memory says where the data is.
    for filter in ["cow", "cache"] {
        let server = Server::start(["--filter", filter, "memory", "1G"]);
        nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pwrite(b'x' * 65536, 1 << 20)\nh.pwrite(b'x' * 65536, 17 << 16)")
            .ok();
        assert_answer(&server, 0, &[(1 << 20, 3)]);
        assert_answer(&server, 1 << 20, &[(2 << 16, 0)]);
        assert_answer(&server, 18 << 16, &[(GIB - (18 << 16), 3)]);
    }
}

/// A file with data in some places.
fn with_holes(dir: &TempDir) -> std::path::PathBuf {
    let path = dir.sparse_file("holes", 3 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the file");
    for at in [4096, 200_000, 1 << 20, (2 << 20) + 65536, (3 << 20) - 1] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", at).expect("a byte");
    }
    path
}

#[test]
fn clients_see_the_same_map_through_every_filter() {
    let dir = TempDir::new();
    let path = with_holes(&dir);
    let maps = |server: &Server| {
        let nbdinfo = tool("nbdinfo", ["--map", &server.uri()]).ok();
        let qemu = tool("qemu-img", ["map", "-f", "raw", "--output=json", &server.uri()]).ok();
        (nbdinfo, qemu)
    };
    let plain = maps(&Launch::new(["file"]).path("file", &path).start());
    let filters = "cache cacheextents checkwrite count cow delay error evil exportname fua ip log map multi-conn \
                   nocache noparallel nofilter nozero openonce protect rate readahead readonly retry retry-request \
                   rotational scan swab truncate blocksize blocksize-policy offset";
    for filter in filters.split(' ') {
        let through = maps(&Launch::new(["--filter", filter, "file"]).path("file", &path).start());
        assert!(through == plain, "{filter}: {through:?}\ninstead of {plain:?}");
    }
}

#[test]
fn blocksize_joins_what_lies_within_a_block() {
    let dir = TempDir::new();
    let path = with_holes(&dir);
    let server = Launch::new(["--filter=blocksize", "file", "minblock=64k"]).path("file", &path).start();
    let script = "h.add_meta_context('base:allocation')\nh.connect_uri(uri)\nanswer = []\n\
                  h.block_status(16384, 4096, lambda m, o, e, err: answer.extend(e))\n\
                  assert answer == [61440, 0], answer\nanswer = []\n\
                  h.block_status(4096, 70000, lambda m, o, e, err: answer.extend(e))\n\
                  assert answer == [196608 - 70000, 3], answer";
    nbdsh(&server.uri(), script).ok();
    let copy = dir.join("copy");
    tool("nbdcopy", [server.uri().as_str(), copy.to_str().expect("UTF-8")]).ok();
    assert!(std::fs::read(&copy).expect("the copy") == std::fs::read(&path).expect("the file"));
}

#[test]
fn blocksize_asks_on_when_answers_are_shorter_than_a_block() {
    let dir = TempDir::new();
    let asked = dir.join("asked");
    for (kind, told) in [("hole,zero", 3), ("zero", 2), ("", 0)] {
        let extents = format!("extents=echo >>{}; echo $4 1024 {kind}", asked.display());
        let server = Launch::new(["--filter=blocksize", "eval", "get_size=echo 64k", "pread=head -c $3 /dev/zero"])
            .args([&extents, "minblock=4096"])
            .start();
        let script = format!(
            "h.add_meta_context('base:allocation')\nh.connect_uri(uri)\nanswer = []\n\
             h.block_status(512, 5000, lambda m, o, e, err: answer.extend(e))\nassert answer == [3192, {told}], answer"
        );
        nbdsh(&server.uri(), &script).ok();
        // Data stays data whatever the rest of the block is.
        let questions = std::fs::read(&asked).expect("a line for each question").len();
        assert_eq!(questions, if told == 0 { 1 } else { 4 }, "{kind}");
        std::fs::remove_file(&asked).expect("the file");
        tool("nbdcopy", [server.uri().as_str(), "null:"]).ok();
        std::fs::remove_file(&asked).expect("the file");
    }
}

#[test]
fn cacheextents_remembers_what_lies_beyond_the_request() {
    let dir = TempDir::new();
    let asked = dir.join("asked");
    let extents = format!("extents=echo >>{}; echo 0 512M; echo 512M 512M hole", asked.display());
    let server =
        Launch::new(["--filter=cacheextents", "eval", "get_size=echo 1G", "pread=exit 0"]).arg(&extents).start();
    assert_answer(&server, 0, &[(GIB / 2, 0)]);
    assert_answer(&server, 100 << 20, &[((412 << 20), 0)]);
    assert_eq!(std::fs::read(&asked).expect("a line for each question").len(), 1);
}
