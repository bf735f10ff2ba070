//! fua, nozero, nocache, noextents and rotational.

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Server, tool};

use super::{observe, refused, same_as_nbdkit};

#[test]
fn fua_offers_and_sends_down_what_nbdkits_filter_does() {
    let script = "can()\nh.pwrite(b'x' * 512, 0)\nh.zero(512, 1024)\nh.trim(512, 2048)\nh.flush()\n\
                  if h.can_fua():\n    h.pwrite(b'x' * 512, 0, FUA)\n    h.zero(512, 1024, FUA)\n    \
                  h.trim(512, 0, FUA)";
    let observed = |mode: &[&str]| same_as_nbdkit(&[&["--filter=fua"], mode].concat(), script);
    assert!(!observed(&[]).contains("fua"), "without a mode FUA is not offered");
    assert!(observed(&["fuamode=emulate"]).ends_with("trim 0 512\nflush"));
    assert!(observed(&["fuamode=native"]).contains("pwrite 0 512 fua"));
    assert!(observed(&["fuamode=pass"]).contains("pwrite 0 512 fua"));
    assert!(!observed(&["fuamode=force"]).contains("flush\n"));
    assert!(!observed(&["fuamode=discard"]).contains("fua\nz"));
}

#[test]
fn fua_with_a_mode_that_the_disk_cannot_carry_refuses_connections_and_says_why() {
    let server = Server::start(["--filter=fua", "eval", "get_size=echo 512", "pwrite=exit 0", "fuamode=force"]);
    tool("nbdinfo", [server.uri()]).fails();
    let wanted = if is_nbdkit() { "requires plugin fua support" } else { "fuamode=force: the layer below has no FUA" };
    server.wait_for_log(wanted);
    let wrong = refused(&["--filter=fua", "memory", "1M", "fuamode=some"]);
    assert!(wrong.contains("some"), "{wrong}");
}

#[test]
fn nozero_offers_and_sends_down_what_nbdkits_filter_does() {
    let script = "can()\nif h.can_zero():\n    h.zero(512, 0)\n    h.zero(512, 1024, NO_HOLE)\n    \
                  if h.can_fast_zero():\n        what('zero', 512, 2048, FAST)\nprint(h.pread(1, 0))";
    for zero in ["none", "emulate", "notrim", "plugin"] {
        for fast in ["none", "slow", "ignore", "default"] {
            let modes = [format!("zeromode={zero}"), format!("fastzeromode={fast}")];
            let words = ["--filter=nozero", &modes[0], &modes[1]];
            // Here nbdkit 1.32 refuses fast requests, although its page says that it ignores the
            // flag.
            let other = (zero, fast) == ("emulate", "ignore");
            let observed = if other { observe(None, &words, script) } else { same_as_nbdkit(&words, script) };
            assert_eq!(observed.contains("\nzero 0 512"), matches!(zero, "notrim" | "plugin"), "{modes:?}: {observed}");
        }
    }
    let server = Server::start(["--filter=nozero", "memory", "1M"]);
    assert!(tool("nbdinfo", [server.uri()]).ok().contains("can_zero: false"));
}

#[test]
fn nocache_offers_and_sends_down_what_nbdkits_filter_does() {
    let script = "can()\nwhat('cache', 512, 1024)";
    for (mode, last) in [("none", ""), ("emulate", "pread 1024 512"), ("nop", "")] {
        let observed = same_as_nbdkit(&["--filter=nocache", &format!("cachemode={mode}")], script);
        assert!(!observed.contains("cache 1024 512\n") && observed.ends_with(last), "{mode}: {observed}");
    }
}

#[test]
fn noextents_makes_a_disk_of_holes_all_data() {
    assert!(same_as_nbdkit(&["--filter=noextents"], "can()\nwalk()").contains("[[1048576, 0]]"));
    assert!(same_as_nbdkit(&["--filter=nocache"], "can()\nwalk()").contains("[[4096, 0], [1044480, 3]]"));
}

#[test]
fn rotational_is_what_the_parameter_says() {
    if is_nbdkit() {
        return;
    }
    for (word, expected) in [(None, true), (Some("rotational=true"), true), (Some("rotational=false"), false)] {
        for below in ["is_rotational=exit 0", "is_rotational=exit 3"] {
            let words: Vec<&str> = ["--filter=rotational", below].into_iter().chain(word).collect();
            assert_eq!(observe(None, &words, "can()").contains("rotational"), expected, "{words:?}");
        }
    }
}
