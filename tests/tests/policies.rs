//! The filters blocksize-policy, spinning and multi-conn, and the trigger of delay.

use std::time::{Duration, Instant};

use rbdkit_tests::server::{filter, is_nbdkit, program};
use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

#[test]
fn blocksize_policy_advertises_sizes_and_refuses_what_does_not_keep_to_them() {
    let sizes = |words: &[&str]| {
        let server = Launch::new(["--filter=blocksize-policy", "null", "1M"]).args(words).start();
        let script = "h.connect_uri(uri)\nprint([h.get_block_size(n) for n in (0, 1, 2)])";
        nbdsh(&server.uri(), script).ok().trim().to_string()
    };
    assert_eq!(sizes(&[]), "[0, 0, 0]");
    assert_eq!(sizes(&["blocksize-preferred=32k"]), "[1, 32768, 4294967295]");
    assert_eq!(sizes(&["blocksize-minimum=4k", "blocksize-maximum=16k"]), "[4096, 4096, 16384]");
    let words =
        ["blocksize-minimum=512", "blocksize-preferred=4k", "blocksize-maximum=8k", "blocksize-error-policy=error"];
    let server = Launch::new(["--filter=blocksize-policy", "memory", "1048676"]).args(words).start();
    // The server itself holds clients to the sizes that have asked for them.
    let script = "\
h.set_strict_mode(0)
h.set_request_block_size(False)
h.add_meta_context('base:allocation')
h.connect_uri(uri)
extents = lambda count, at: h.block_status(count, at, lambda *a: 0)
for wrong in [lambda: h.pread(1, 0), lambda: h.pread(512, 1), lambda: h.pread(513, 0), lambda: h.pread(16384, 0),
              lambda: h.pwrite(b'x', 0), lambda: h.pwrite(b'x' * 16384, 0), lambda: h.zero(1, 0),
              lambda: h.zero(1024, 1), lambda: h.trim(1, 0), lambda: h.cache(1, 0), lambda: extents(1, 0),
              lambda: h.pread(99, 1 << 20)]:
    assert fails(wrong) == 'EINVAL'
h.pwrite(b'x' * 8192, 512)
assert h.pread(8192, 512) == b'x' * 8192
h.zero(65536, 0)
h.trim(65536, 0)
h.cache(65536, 0)
extents(65536, 0)";
    nbdsh(&server.uri(), script).ok();
    if !is_nbdkit() {
        // The last bytes of the export are less than a block. 1.32 has no strict-error, and refuses
        // them.
        let last = "h.set_strict_mode(0)\nh.set_request_block_size(False)\nh.connect_uri(uri)\n\
                    print(fails(lambda: h.pread(100, 1 << 20)))";
        let strict = [&words[..3], &["blocksize-error-policy=strict-error"]].concat();
        for (words, expected) in [(&words[..], "success"), (&strict, "EINVAL")] {
            let server = Launch::new(["--filter=blocksize-policy", "memory", "1048676"]).args(words).start();
            assert_eq!(nbdsh(&server.uri(), last).ok().trim(), expected, "{words:?}");
        }
    }
    // Block sizes that nobody may overrun in the protocol are not the filter's: without the policy
    // it passes all.
    let server = Launch::new(["--filter=blocksize-policy", "memory", "1M"]).args(&words[..1]);
    nbdsh(
        &server.start().uri(),
        "h.set_strict_mode(0)\nh.set_request_block_size(False)\nh.connect_uri(uri)\nh.pread(1, 1)",
    )
    .ok();
}

#[test]
fn blocksize_policy_disconnects_a_client_whose_write_is_too_long() {
    if is_nbdkit() {
        return; // 1.32 does not have this parameter.
    }
    let script = "\
h.connect_uri(uri)
h.pwrite(b'x' * 4096, 0)
h.zero(65536, 0)
h.pread(65536, 0)
print(fails(lambda: h.pwrite(b'x' * 4097, 0)), h.aio_is_ready())";
    let words = ["memory", "1M", "blocksize-write-disconnect=4k"];
    let server = Launch::new(["--filter=blocksize-policy"]).args(words).start();
    let mut other = server.client();
    assert_eq!(nbdsh(&server.uri(), script).ok().trim(), "ENOTCONN False");
    assert_eq!(other.read(0, 512), Ok(vec![0; 512]), "another client stays, and nothing was written");
    server.wait_for_log("blocksize-policy: blocksize-write-disconnect=4096: a client was disconnected");
    other.disconnect();
    assert!(server.stop().status.success());
    // A component from a file has no such power, whatever it is called.
    let copy = filter("blocksize-policy");
    let server = Launch::new(["--wasm-filter"]).arg(&copy).args(words).start();
    assert_eq!(nbdsh(&server.uri(), script).ok().trim(), "ESHUTDOWN True");
    server.wait_for_log("blocksize-policy: it asked to disconnect a client and may not");
}

#[test]
fn blocksize_policy_says_what_is_wrong_with_its_parameters() {
    for (words, expected) in [
        (&["blocksize-minimum=3"][..], "blocksize-minimum=3: is not a power of two up to 64k"),
        (&["blocksize-minimum=128k"], "is not a power of two up to 64k"),
        (&["blocksize-preferred=256"], "is not a power of two from 512 to 32M"),
        (&["blocksize-maximum=8G"], "blocksize-maximum"),
        (&["blocksize-minimum=64k", "blocksize-preferred=4k"], "is larger than blocksize-preferred"),
        (&["blocksize-error-policy=maybe"], "blocksize-error-policy=maybe"),
    ] {
        let program = program();
        let fixed = ["-U", "-", "--filter=blocksize-policy", "null", "1M", "--run", "true"];
        let said = tool(program.to_str().expect("UTF-8"), [&fixed, words].concat()).fails();
        assert!(is_nbdkit() || said.contains(expected), "{said}");
    }
    // What is below is known when a client comes.
    let server = Server::start(["--filter=blocksize-policy", "null", "1M", "blocksize-minimum=64k"]);
    tool("nbdinfo", [server.uri()]).fails();
    if !is_nbdkit() {
        server.wait_for_log("minimum 65536, preferred 4096");
    }
}

#[test]
fn spinning_moves_an_arm_for_one_request_at_a_time_and_separate_arms_at_once() {
    if is_nbdkit() {
        return; // 1.32 has no such filter.
    }
    let times = ["min-seek-time=150ms", "half-seek-time=150ms", "max-seek-time=150ms"];
    let start =
        |words: &[&str]| Launch::new(["--filter=spinning", "memory", "4M", "heads=4"]).args(times).args(words).start();
    // Four requests, each in the part of another head, none where a head stands.
    let four = |server: &Server| {
        let started = Instant::now();
        let script = "h.connect_uri(uri)\nassert h.is_rotational()\nbuffer = nbd.Buffer(512)\n\
                      for n in range(4):\n    h.aio_pread(buffer, (n << 20) + 4096 * (n + 1))\n\
                      while h.aio_in_flight():\n    h.poll(-1)";
        nbdsh(&server.uri(), script).ok();
        started.elapsed()
    };
    let (together, separate) = (start(&[]), start(&["separate-heads=true"]));
    let (slow, fast) = (four(&together), four(&separate));
    assert!(slow >= Duration::from_millis(600), "{slow:?}: four seeks, one after another");
    assert!(fast >= Duration::from_millis(150), "{fast:?}: four seeks at once");
    assert!(slow > fast, "{slow:?} and {fast:?}");
    // What follows on needs no seek: 200 of them would take 30 s.
    let server = start(&[]);
    let started = Instant::now();
    nbdsh(&server.uri(), "h.connect_uri(uri)\nfor n in range(200):\n    h.pread(512, n * 512)").ok();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_stop_ends_a_seek() {
    if is_nbdkit() {
        return;
    }
    let words = ["min-seek-time=1h", "half-seek-time=1h", "max-seek-time=1h"];
    let server = Launch::new(["--filter=spinning", "memory", "4M"]).args(words).start();
    let mut client = server.client();
    for n in 0..3 {
        client.submit(0, 0, (n + 1) << 20, 512, &[]).expect("a request");
    }
    let outcome = server.stop();
    assert!(outcome.status.success(), "{outcome:?}");
}

/// A server with multi-conn over a script that notes each flush.
fn noting(dir: &TempDir, can_multi_conn: bool, words: &[&str]) -> Server {
    let can = if can_multi_conn { "can_multi_conn=exit 0" } else { "can_multi_conn=exit 3" };
    Launch::new(["--filter=multi-conn", "eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", can])
        .args(["can_write=exit 0", "can_flush=exit 0", "pwrite=cat >/dev/null", "thread_model=echo parallel"])
        .arg(format!("flush=echo flush >>{}", dir.join("asked").display()))
        .args(words)
        .start()
}

/// How many flushes reached the script when this script has run with the connections `a` and `b`.
fn flushes(can_multi_conn: bool, words: &[&str], script: &str) -> usize {
    let dir = TempDir::new();
    let server = noting(&dir, can_multi_conn, words);
    nbdsh(&server.uri(), &format!("a, b = h, nbd.NBD()\na.connect_uri(uri)\nb.connect_uri(uri)\n{script}")).ok();
    std::fs::read_to_string(dir.join("asked")).unwrap_or_default().lines().count()
}

#[test]
fn multi_conn_passes_flushes_that_have_something_to_do_and_drops_the_others() {
    let (plugin, fast) = ("multi-conn-mode=plugin", "multi-conn-track-dirty=fast");
    let twice = "a.pwrite(b'x', 0)\na.flush()\na.flush()\nb.flush()";
    assert_eq!(flushes(true, &[plugin], twice), 1);
    assert_eq!(flushes(true, &[plugin, fast], twice), 1);
    assert_eq!(flushes(false, &[plugin, fast], twice), 1);
    assert_eq!(flushes(true, &[plugin, "multi-conn-track-dirty=off"], twice), 3);
    assert_eq!(flushes(true, &["multi-conn-mode=disable", "multi-conn-track-dirty=off"], "a.flush()"), 1);
    // The flush of another connection covers the write where the layer below says so.
    assert_eq!(flushes(true, &[plugin], "a.pwrite(b'x', 0)\nb.flush()\na.flush()"), 1);
    // Where it does not, each connection that has written flushes.
    assert_eq!(flushes(false, &[plugin], "a.pwrite(b'x', 0)\nb.pwrite(b'y', 1)\na.flush()\nb.flush()"), 2);
    let unwritten = "a.flush()\nb.flush()";
    assert_eq!(flushes(true, &[plugin], unwritten), 0);
    // Emulated, one flush goes to all that have written, and a connection that has read is flushed
    // before it reads again.
    let emulate = "a.pwrite(b'x', 0)\nb.pwrite(b'y', 1)\nc = nbd.NBD()\nc.connect_uri(uri)\na.flush()\nb.flush()";
    assert_eq!(flushes(false, &["multi-conn-mode=emulate"], emulate), 2);
    if !is_nbdkit() {
        let stale = "b.pread(1, 0)\na.pwrite(b'x', 0)\na.flush()\na.pread(1, 0)\nb.pread(1, 0)\nb.pread(1, 0)";
        assert_eq!(flushes(false, &[], stale), 2);
        // A flush for the writes of another connection is a flush for a client that believes in
        // multi-conn.
        assert_eq!(flushes(false, &["multi-conn-mode=unsafe"], "a.pwrite(b'x', 0)\nb.flush()\na.flush()"), 2);
    }
}

#[test]
fn multi_conn_offers_what_its_mode_says() {
    let dir = TempDir::new();
    for (mode, over) in [
        ("plugin", [true, false]),
        ("auto", [true, true]),
        ("emulate", [true, true]),
        ("disable", [false, false]),
        ("unsafe", [true, true]),
    ] {
        for (below, expected) in [true, false].into_iter().zip(over) {
            let server = noting(&dir, below, &[&format!("multi-conn-mode={mode}")]);
            let script = "h.connect_uri(uri)\nprint(h.can_multi_conn())";
            let expected = if expected { "True" } else { "False" };
            assert_eq!(nbdsh(&server.uri(), script).ok().trim(), expected, "{mode} over {below}");
        }
    }
    let program = program();
    let server =
        Server::start(["--filter=multi-conn", "eval", "get_size=echo 1M", "multi-conn-mode=emulate", "pread=exit 1"]);
    tool("nbdinfo", [server.uri()]).fails();
    let words = ["-U", "-", "--filter=multi-conn", "null", "multi-conn-mode=sometimes", "--run", "true"];
    tool(program.to_str().expect("UTF-8"), words).fails();
}

#[test]
fn multi_conn_loses_no_flush_when_many_write_and_flush_at_once() {
    if is_nbdkit() {
        return;
    }
    // The script notes the writes that have ended before a flush began; the last flush has to come
    // after the last write.
    let dir = TempDir::new();
    let log = dir.join("log");
    let words = ["--filter=multi-conn", "eval", "get_size=echo 1M", "pread=exit 1", "can_multi_conn=exit 0"];
    let server = Launch::new(words)
        .args(["can_write=exit 0", "can_flush=exit 0", "thread_model=echo parallel"])
        .arg(format!("pwrite=cat >/dev/null; echo w >>{}", log.display()))
        .arg(format!("flush=echo f >>{}", log.display()))
        .start();
    let script = "\
crowd = [nbd.NBD() for n in range(8)]
for h in crowd:
    h.connect_uri(uri)
data = nbd.Buffer.from_bytearray(bytearray(b'x'))
for round in range(6):
    for h in crowd:
        h.aio_pwrite(data, round)
        h.aio_flush()
    for h in crowd:
        while h.aio_in_flight():
            h.poll(-1)
    crowd[round].flush()
    print(open(LOG).read().rindex('f') > open(LOG).read().rindex('w'))";
    let said = nbdsh(&server.uri(), &script.replace("LOG", &format!("{:?}", log.display().to_string()))).ok();
    assert_eq!(said, "True\n".repeat(6));
}

#[test]
fn delay_waits_only_while_the_file_of_its_trigger_exists() {
    if is_nbdkit() {
        return; // 1.32 has no trigger.
    }
    let dir = TempDir::new();
    let trigger = dir.join("slow");
    let server = Launch::new(["--filter=delay", "memory", "1M", "rdelay=1h"]).path("delay-trigger", &trigger).start();
    server.client().read(0, 512).expect("a read that does not wait");
    dir.file("slow", b"");
    let mut client = server.client();
    client.submit(0, 0, 0, 512, &[]).expect("a request");
    server.client().write(0, b"x").expect("a write, which is not delayed");
    assert_eq!(client.in_flight(), 1);
    std::fs::remove_file(&trigger).expect("the file");
    server.client().read(0, 512).expect("a read that does not wait");
}
