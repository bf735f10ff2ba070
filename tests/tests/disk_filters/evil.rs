//! evil: which bits are wrong.

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, Server, TempDir, tool};

use super::refused;

const SIZE: usize = 4 << 20;

/// What a client reads of a disk of zero bytes that are data: the whole disk twice.
fn read(words: &[&str]) -> [Vec<u8>; 2] {
    let dir = TempDir::new();
    let disk = dir.file("disk.img", &vec![0x33; SIZE]);
    let server = Launch::new(["--filter=evil", "file"]).path("file", &disk).args(words).start();
    let mut client = server.client();
    let read = [(); 2].map(|()| client.read(0, SIZE as u32).expect("a read"));
    client.disconnect();
    assert!(std::fs::read(&disk).expect("the disk").iter().all(|byte| *byte == 0x33), "the disk was written");
    read
}

fn wrong_bits(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| (byte ^ 0x33).count_ones()).sum()
}

#[test]
fn as_many_bits_are_wrong_as_the_chance_says_and_a_seed_repeats_them() {
    if is_nbdkit() {
        return;
    }
    // A stuck bit is wrong only if it is stuck at the other value.
    for (mode, expected) in [("cosmic-rays", 3355), ("stuck-bits", 1677), ("stuck-wires", 1677)] {
        let words = [&format!("evil={mode}"), "evil-probability=1:10000", "evil-seed=42"];
        let (one, other) = (read(&words), read(&words));
        assert!(one == other, "{mode}: the seed does not repeat the bits");
        let wrong = wrong_bits(&one[0]);
        assert!(wrong.abs_diff(expected) < 400, "{mode}: {wrong}, not {expected}");
        assert_eq!(one[0] == one[1], mode != "cosmic-rays", "{mode}");
        assert!(read(&[&words[..2], &["evil-seed=43"]].concat()) != one, "{mode}: another seed is no other one");
    }
    let halves = read(&["evil-probability=1:10000", "evil-seed=42", "evil-stuck-probability=50%"]);
    assert!(wrong_bits(&halves[0]).abs_diff(838) < 250 && halves[0] != halves[1]);
}

#[test]
fn holes_are_right_unless_they_are_hidden() {
    if is_nbdkit() {
        return;
    }
    let words = ["--filter=evil", "memory", "4M", "evil-probability=1%"];
    let server = Server::start(words);
    assert!(server.client().read(0, SIZE as u32).expect("a read").iter().all(|byte| *byte == 0));
    let server = Server::start(["--filter=evil", "--filter=noextents", "memory", "4M", "evil-probability=1%"]);
    assert!(server.client().read(0, SIZE as u32).expect("a read").iter().any(|byte| *byte != 0));
}

#[test]
fn the_largest_reads_with_the_largest_chances_stay_within_the_limit_of_memory() {
    if is_nbdkit() {
        return;
    }
    for word in ["evil=cosmic-rays", "evil=stuck-bits", "evil=stuck-wires"] {
        for chance in ["evil-probability=12.5%", "evil-probability=100%", "evil-probability=1:3000"] {
            // The limits of time are for a machine that is not busy with other tests.
            let limits = ["--filter-limit=evil:cpu=30s", "--filter-limit=evil:wall=60s"];
            let words = ["--filter=evil", "--filter=noextents", "memory", "32M", word, chance];
            let words = [&limits[..], &words].concat();
            let server = Server::start([&words[..], &["evil-stuck-probability=0.3"]].concat());
            let mut client = server.client();
            assert!(client.read(0, 32 << 20).expect("a read").iter().any(|byte| *byte != 0), "{word} {chance}");
        }
    }
}

#[test]
fn wrong_chances_and_modes_are_refused() {
    if is_nbdkit() {
        return;
    }
    let error = refused(&["--filter=evil", "memory", "1M", "evil-probability=2"]);
    assert!(error.contains("evil: evil-probability=2: is a chance of more than 1"), "{error}");
    let error = refused(&["--filter=evil", "memory", "1M", "evil=good"]);
    assert!(error.contains("evil=good: is not one of stuck-bits"), "{error}");
    refused(&["--filter=evil", "memory", "1M", "evil-seed=4294967296"]);
    let server = Server::start(["--filter=evil", "memory", "1M"]);
    tool("nbdcopy", [server.uri().as_str(), "null:"]).ok();
}
