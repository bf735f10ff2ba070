//! nbdsh: every flag, every error, structured replies and block status, through libnbd.

use rbdkit_tests::{Launch, Server, TempDir, nbdsh};

/// Connects and prints the export's abilities, one word each.
const FLAGS: &str = r#"
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
names = "can_flush can_fua can_trim can_zero can_fast_zero can_cache can_df can_multi_conn is_read_only is_rotational"
print(" ".join(n.split("_", 1)[1] for n in names.split() if getattr(h, n)()))
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
"#;

fn flags(arguments: &[&str]) -> String {
    let server = Server::start(arguments);
    nbdsh(&server.uri(), FLAGS).ok().trim().to_owned()
}

const ALL: &str = "flush fua trim zero fast_zero cache df multi_conn";

#[test]
fn flags_are_what_each_plugin_can_do() {
    assert_eq!(flags(&["memory", "1M"]), ALL);
    assert_eq!(flags(&["null", "1M"]), ALL);
    assert_eq!(flags(&["data", "data=1 2 3"]), ALL);
    assert_eq!(flags(&["pattern", "1M"]), "cache df multi_conn read_only");
    assert_eq!(flags(&["-r", "memory", "1M"]), "flush cache df multi_conn read_only");
    assert_eq!(flags(&["eval", "get_size=echo 1M", "pread=exit 1"]), "df read_only");
}

#[test]
fn flags_follow_what_a_script_can_do() {
    let base = ["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"];
    let with = |more: &[&str]| flags(&[&base, more].concat());
    // Where a plugin cannot zero, rbdkit writes zeroes, and a client that asks for a fast way is
    // told at once that there is none.
    assert_eq!(with(&[]), "zero fast_zero df");
    assert_eq!(with(&["flush=exit 0"]), "flush fua zero fast_zero df");
    assert_eq!(with(&["can_fua=echo native"]), "fua zero fast_zero df");
    assert_eq!(with(&["trim=exit 0"]), "trim zero fast_zero df");
    assert_eq!(with(&["can_cache=echo emulate"]), "zero fast_zero cache df");
    assert_eq!(with(&["can_multi_conn=exit 0"]), "zero fast_zero df multi_conn");
    assert_eq!(with(&["is_rotational=exit 0"]), "zero fast_zero df rotational");
}

#[test]
fn flags_pass_through_filters_that_pass_everything_on() {
    for filters in [&["--filter=nofilter"][..], &["--filter=readahead"], &["--filter=delay"], &["--filter=error"]] {
        let all = [filters, &["memory", "1M"]].concat();
        assert_eq!(flags(&all), ALL, "{filters:?}");
        let few = [filters, &["pattern", "1M"]].concat();
        assert_eq!(flags(&few), "cache df multi_conn read_only", "{filters:?}");
    }
    assert_eq!(flags(&["--filter=offset", "memory", "1M", "offset=512K"]), ALL);
}

#[test]
fn cow_makes_a_read_only_disk_writable() {
    let flags = flags(&["--filter=cow", "pattern", "1M"]);
    for can in ["flush", "fua", "trim", "cache", "df", "multi_conn"] {
        assert!(flags.split(' ').any(|flag| flag == can), "{can} is not in {flags}");
    }
    assert!(!flags.contains("read_only"), "{flags}");
}

#[test]
fn cow_of_a_read_only_server_is_read_only() {
    assert!(flags(&["-r", "--filter=cow", "pattern", "1M"]).contains("read_only"));
}

#[test]
fn cache_keeps_what_is_below() {
    for plugin in [&["memory", "1M"][..], &["null", "1M"]] {
        let flags = flags(&[&["--filter=cache"], plugin].concat());
        for can in ["flush", "fua", "zero", "cache", "df", "multi_conn"] {
            assert!(flags.split(' ').any(|flag| flag == can), "{can} is not in {flags}");
        }
    }
    assert!(flags(&["--filter=cache", "pattern", "1M"]).contains("read_only"));
}

#[test]
fn a_file_is_written_trimmed_and_zeroed() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 1 << 20);
    let script = r#"
h = nbd.NBD()
h.connect_uri(uri)
h.pwrite(b"x" * 65536, 65536, nbd.CMD_FLAG_FUA)
assert h.pread(3, 65535) == b"\0xx"
h.zero(4096, 65536)
assert h.pread(4097, 65536) == b"\0" * 4096 + b"x"
h.zero(4096, 69632, nbd.CMD_FLAG_NO_HOLE)
h.trim(32768, 98304)
h.cache(65536, 0)
h.flush()
assert h.pread(4096, 73728) == b"x" * 4096
h.shutdown()
"#;
    for filters in [&[][..], &["nofilter"], &["readahead"], &["cache"], &["nofilter", "readahead", "cache"], &["cow"]] {
        let options = filters.iter().map(|name| format!("--filter={name}"));
        let server = Launch::new(options).arg("file").path("file", &file).start();
        nbdsh(&server.uri(), script).ok();
    }
}

#[test]
fn requests_out_of_range_have_the_protocols_errors() {
    for arguments in [&["memory", "1M"][..], &["--filter=cow", "memory", "1M"], &["--filter=cache", "memory", "1M"]] {
        let server = Server::start(arguments);
        let script = r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
M = 1 << 20
print(fails(lambda: h.pread(512, M)))
print(fails(lambda: h.pread(512, M - 1)))
print(fails(lambda: h.pread(512, (1 << 63) - 512)))
print(fails(lambda: h.pwrite(b"x", M)))
print(fails(lambda: h.pwrite(b"xx", M - 1)))
print(fails(lambda: h.zero(2, M - 1)))
print(fails(lambda: h.trim(2, M - 1)))
print(fails(lambda: h.cache(2, M - 1)))
print(fails(lambda: h.block_status(2, M, lambda *a: 0)))
assert h.pread(1, M - 1) == b"\0"
"#;
        let expected = "EINVAL EINVAL EINVAL ENOSPC ENOSPC ENOSPC EINVAL EINVAL EINVAL";
        let printed = nbdsh(&server.uri(), script).ok();
        assert_eq!(printed.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{arguments:?}");
    }
}

#[test]
fn writing_requests_to_a_read_only_export_are_not_permitted() {
    let server = Server::start(["-r", "memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
print(fails(lambda: h.pwrite(b"x", 0)))
print(fails(lambda: h.zero(512, 0)))
print(fails(lambda: h.trim(512, 0)))
assert h.pread(1, 0) == b"\0"
"#;
    let printed = nbdsh(&server.uri(), script).ok();
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["EPERM", "EPERM", "EPERM"]);
}

#[test]
fn requests_that_an_export_cannot_serve_are_invalid() {
    let server = Server::start(["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"]);
    let script = r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
print(fails(lambda: h.trim(512, 0)))
print(fails(lambda: h.flush()))
print(fails(lambda: h.cache(512, 0)))
print(fails(lambda: h.pwrite(b"x", 0, nbd.CMD_FLAG_FUA)))
print(fails(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)))
print(fails(lambda: h.pread(0, 0)))
print(fails(lambda: h.pwrite(b"x", 0)))
"#;
    let printed = nbdsh(&server.uri(), script).ok();
    let expected = ["EINVAL", "EINVAL", "EINVAL", "EINVAL", "ENOTSUP", "EINVAL", "success"];
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), expected);
}

#[test]
fn a_fast_zero_that_is_not_fast_is_refused_and_changes_nothing() {
    let zero = "zero=case \"$5\" in *fast*) echo ENOTSUP slow >&2; exit 1;; esac";
    let plugin = [
        "eval",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null",
        "can_fast_zero=exit 0",
        zero,
    ];
    let script = r#"
h = nbd.NBD()
h.connect_uri(uri)
assert h.can_fast_zero()
print(fails(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)))
print(fails(lambda: h.zero(512, 0)))
"#;
    for filters in [&[][..], &["--filter=nofilter"], &["--filter=readahead"], &["--filter=readahead", "--filter=delay"]]
    {
        let server = Server::start([filters, &plugin].concat());
        let printed = nbdsh(&server.uri(), script).ok();
        assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["ENOTSUP", "success"], "{filters:?}");
    }
}

/// The errors that the protocol knows. Every other error becomes EINVAL.
#[test]
fn the_error_of_a_script_reaches_the_client_through_every_filter() {
    for filters in [&[][..], &["--filter=nofilter"], &["--filter=readahead"], &["--filter=nofilter", "--filter=delay"]]
    {
        for (script, client) in [
            ("EPERM", "EPERM"),
            ("EIO", "EIO"),
            ("ENOMEM", "ENOMEM"),
            ("EINVAL", "EINVAL"),
            ("ENOSPC", "ENOSPC"),
            ("ESHUTDOWN", "ESHUTDOWN"),
            ("EROFS", "EPERM"),
            ("EDQUOT", "ENOSPC"),
            ("EFBIG", "ENOSPC"),
        ] {
            let pread = format!("pread=echo '{script} as the test wants it' >&2; exit 1");
            let server = Server::start([filters, &["eval", "get_size=echo 1M", &pread]].concat());
            let script = "h = nbd.NBD(); h.connect_uri(uri); print(fails(lambda: h.pread(512, 0)))";
            assert_eq!(nbdsh(&server.uri(), script).ok().trim(), client, "{filters:?}");
            server.wait_for_log("as the test wants it");
        }
    }
}

#[test]
fn a_script_sees_each_request_as_it_was_made() {
    let dir = TempDir::new();
    let log = dir.file("log", b"");
    let say = |what: &str| format!("echo {what} >>{}", log.display());
    let server = Server::start([
        "eval".to_owned(),
        "get_size=echo 1M".to_owned(),
        format!("pread={}; head -c $3 /dev/zero", say("pread $3 $4")),
        format!("pwrite=cat >/dev/null; {}", say("pwrite $3 $4 $5")),
        format!("zero={}", say("zero $3 $4 $5")),
        format!("trim={}", say("trim $3 $4 $5")),
        format!("flush={}", say("flush")),
        format!("cache={}", say("cache $3 $4")),
        "can_cache=echo native".to_owned(),
        "can_fua=echo native".to_owned(),
    ]);
    let script = r#"
h = nbd.NBD()
h.connect_uri(uri)
h.pread(1000, 2000)
h.pwrite(b"x" * 512, 1024)
h.pwrite(b"x" * 512, 2048, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.trim(100, 5000)
h.trim(100, 5000, nbd.CMD_FLAG_FUA)
h.cache(3, 7)
h.flush()
"#;
    nbdsh(&server.uri(), script).ok();
    let expected = "pread 1000 2000\npwrite 512 1024\npwrite 512 2048 fua\nzero 4096 8192 may_trim\nzero 4096 8192\n\
                    trim 100 5000\ntrim 100 5000 fua\ncache 3 7\nflush\n";
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), expected);
}

#[test]
fn fua_is_a_flush_where_the_plugin_has_no_better_way() {
    let dir = TempDir::new();
    let log = dir.file("log", b"");
    let server = Server::start([
        "eval".to_owned(),
        "get_size=echo 1M".to_owned(),
        "pread=head -c $3 /dev/zero".to_owned(),
        format!("pwrite=cat >/dev/null; echo pwrite $5 >>{}", log.display()),
        format!("flush=echo flush >>{}", log.display()),
    ]);
    nbdsh(&server.uri(), "h = nbd.NBD(); h.connect_uri(uri); h.pwrite(b'x', 0, nbd.CMD_FLAG_FUA)").ok();
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), "pwrite\nflush\n");
}

#[test]
fn structured_reads_send_holes_as_holes() {
    let server = Server::start(["memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.connect_uri(uri)
h.pwrite(b"x" * 65536, 65536)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
    return 0
data = h.pread_structured(262144, 0, chunk)
assert data == b"\0" * 65536 + b"x" * 65536 + b"\0" * 131072
assert sum(length for _, length, _ in chunks) == 262144
chunks.clear()
h.pread_structured(262144, 0, chunk, nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0] == (0, 262144, nbd.READ_DATA)
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn replies_are_simple_where_the_client_does_not_ask_for_structured_ones() {
    let server = Server::start(["--filter=readahead", "memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert not h.can_df()
h.pwrite(b"abc", 5)
assert h.pread(5, 4) == b"\0abc\0"
h.set_strict_mode(0)
print(fails(lambda: h.pread(512, 1 << 20)))
print(fails(lambda: h.block_status(512, 0, lambda *a: 0)))
"#;
    assert_eq!(nbdsh(&server.uri(), script).ok().split_whitespace().next(), Some("EINVAL"));
}

#[test]
fn block_status_of_one_extent_stays_within_the_request() {
    let server = Server::start(["memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
h.pwrite(b"x" * 65536, 65536)
def status(length, offset, flags=0):
    found = []
    h.block_status(length, offset, lambda m, o, e, err: found.extend(e) or 0, flags)
    return found
assert status(1 << 20, 0)[:4] == [65536, 3, 65536, 0]
assert status(1000, 500, nbd.CMD_FLAG_REQ_ONE) == [1000, 3]
assert status(1 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [65536, 3]
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn many_connections_see_one_disk() {
    for filters in [&[][..], &["--filter=cow"], &["--filter=cache"], &["--filter=cow", "--filter=cache"]] {
        let server = Server::start([filters, &["memory", "1M"]].concat());
        let script = r#"
hs = [nbd.NBD() for _ in range(8)]
for h in hs: h.connect_uri(uri)
assert all(h.can_multi_conn() for h in hs)
for nth, h in enumerate(hs): h.pwrite(bytes([nth + 1]) * 1000, nth * 1000)
hs[3].flush()
for h in hs:
    assert h.pread(8000, 0) == b"".join(bytes([nth + 1]) * 1000 for nth in range(8))
"#;
        nbdsh(&server.uri(), script).ok();
    }
}

#[test]
fn only_the_requested_metadata_contexts_are_set() {
    let server = Server::start(["memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
found = []
def context(name):
    found.append(name)
    return 0
h.add_meta_context("base:")
h.opt_list_meta_context(context)
assert found == ["base:allocation"], found
found.clear()
h.clear_meta_contexts()
h.add_meta_context("qemu:dirty-bitmap:x")
assert h.opt_list_meta_context(context) == 0
assert found == [], found
h.clear_meta_contexts()
h.opt_info()
assert h.get_size() == 1 << 20
h.opt_go()
assert h.pread(1, 0) == b"\0"
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn an_export_can_be_looked_at_and_left() {
    let server = Server::start(["memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_info()
h.opt_abort()
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn the_exportname_option_names_the_one_export() {
    let server = Server::start(["-e", "disk", "memory", "1M"]);
    let script = r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name) or 0)
print(names)
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn the_name_that_a_client_is_told_is_the_one_that_is_opened() {
    let dir = TempDir::new();
    let script = |name: &str| dir.join(name).display().to_string();
    let (count, opened) = (script("count"), script("opened"));
    let server = Server::start([
        "eval",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
        // Another name each time.
        &format!("default_export=echo >>{count}; echo name $(wc -l <{count})"),
        &format!("open=echo $3 >>{opened}"),
    ]);
    let all = r#"
for expected in ["name 1", "name 2"]:
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_full_info(True)
    h.connect_uri(uri)
    h.opt_list(lambda name, description: print(name))
    h.opt_info()
    print(h.get_canonical_export_name())
    h.opt_go()
    print(h.get_canonical_export_name())
    h.shutdown()
"#;
    let told = nbdsh(&server.uri(), all).ok();
    let expected = "name 1\nname 1\nname 1\nname 2\nname 2\nname 2\n";
    assert_eq!(told, expected);
    // INFO and GO open the export.
    assert_eq!(std::fs::read_to_string(opened).unwrap(), "name 1\nname 1\nname 2\nname 2\n");
}

#[test]
fn a_client_that_negotiated_block_sizes_is_held_to_them_and_no_other() {
    let script = [
        "eval",
        "get_size=echo 1M",
        "block_size=echo 4096 4096 64K",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null",
        "trim=:",
        "zero=:",
        "cache=:",
        "extents=echo 0 1M",
    ];
    let requests = r#"
def requests(asks):
    h = nbd.NBD()
    h.set_request_block_size(asks)
    # Otherwise libnbd checks them.
    h.set_strict_mode(0)
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    ignore = lambda *args: 0
    for offset, length in [(512, 512), (0, 100), (4096, 128 * 1024)]:
        print(*(fails(call) for call in [
            lambda: h.pread(length, offset), lambda: h.pwrite(bytes(length), offset), lambda: h.trim(length, offset),
            lambda: h.zero(length, offset), lambda: h.cache(length, offset),
            lambda: h.block_status(length, offset, ignore)]))
requests(True)
requests(False)
"#;
    let (bad, good) = (["EINVAL"; 6].join(" "), ["success"; 6].join(" "));
    // The maximum is for data.
    let long = "EINVAL EINVAL success success success success";
    let expected = [&bad[..], &bad, long, &good, &good, &good].join("\n");
    let server = Server::start(script);
    assert_eq!(nbdsh(&server.uri(), requests).ok().trim(), expected);
    // A filter in between sends what it likes, and a client that keeps to the sizes is served.
    let server = Server::start([&["--filter=offset"][..], &script, &["offset=512", "range=64K"]].concat());
    let obeys = "h = nbd.NBD()\nh.connect_uri(uri)\nprint(len(h.pread(4096, 0)))\nh.pwrite(bytes(4096), 4096)";
    assert_eq!(nbdsh(&server.uri(), obeys).ok().trim(), "4096");
}

#[test]
fn a_script_is_not_started_for_what_no_client_asks() {
    let dir = TempDir::new();
    let log = dir.join("log");
    let script = format!(
        "case $1 in get_size) echo 1M;; pread) head -c $3 /dev/zero;; can_write) ;; pwrite) cat >/dev/null;; \
         can_fua|can_cache) exit 2;; \
         can_*|is_*) exit 3;; block_size) echo 1 4096 64K;; esac; echo $1 >>{}",
        log.display()
    );
    let path = dir.file("script.sh", script.as_bytes());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let server = Launch::new(["sh"]).arg(&path).start();
    let taken = |call: &str| {
        let _ = std::fs::remove_file(&log);
        nbdsh(&server.uri(), &format!("h = nbd.NBD()\n{call}")).ok();
        let log = std::fs::read_to_string(&log).unwrap();
        ["block_size", "export_description", "default_export"]
            .map(|method| log.lines().filter(|line| *line == method).count())
    };
    // The default export is needed to open the empty name.
    assert_eq!(taken("h.set_request_block_size(False)\nh.connect_uri(uri)\nh.pread(512, 0)"), [0, 0, 1]);
    assert_eq!(taken("h.connect_uri(uri)"), [1, 0, 1]);
    assert_eq!(taken("h.set_full_info(True)\nh.connect_uri(uri)"), [1, 1, 1]);
    assert_eq!(
        taken("h.set_export_name('x')\nh.set_request_block_size(False)\nh.connect_uri(uri.replace('///', '///x'))"),
        [0, 0, 0]
    );
    // The server needs block sizes before it writes zeroes itself.
    assert_eq!(taken("h.set_request_block_size(False)\nh.connect_uri(uri)\nh.zero(512, 0)\nh.zero(512, 0)"), [1, 0, 1]);
}
