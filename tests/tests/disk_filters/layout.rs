//! truncate, map, swab, extentlist and ddrescue.

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, Rng, TempDir, nbdsh, seed, tool};

use super::{observe, refused, same_as_nbdkit};

#[test]
fn truncate_changes_the_size_as_nbdkits_filter_does() {
    let script = "can()\nwalk()\nsize = h.get_size()\nwhat('pwrite', b'end', size - 3)\nprint(h.pread(6, size - 6))\n\
                  what('pwrite', bytes(10), size - 10)\nprint(h.pread(6, size - 6))\nwhat('zero', 2000, size - 2000)\n\
                  what('trim', 2000, size - 2000)\nwhat('cache', 2000, size - 2000)\nwhat('pread', 4096, size - 4096)";
    for (words, size) in [
        (&["truncate=64k"][..], 65536),
        (&["truncate=2M"], 2 << 20),
        (&["truncate=1049000"], 1_049_000),
        (&["round-up=4M"], 4 << 20),
        (&["truncate=1000000", "round-up=4k"], 1_003_520),
        (&["round-down=64k"], 1 << 20),
        (&["truncate=1000000", "round-down=4k"], 999_424),
    ] {
        let observed = same_as_nbdkit(&[&["--filter=truncate"], words].concat(), script);
        assert!(observed.contains(&format!("writable  {size}\n")), "{observed}");
        assert_eq!(observed.contains("ENOSPC"), size > 1 << 20, "{words:?}: {observed}");
    }
    let wrong = refused(&["--filter=truncate", "memory", "1M", "round-up=0"]);
    assert!(wrong.contains("must be"), "{wrong}");
}

#[test]
fn a_disk_of_any_size_is_copied_through_blocksize_over_truncate() {
    let dir = TempDir::new();
    let bytes = vec![5; 100_001];
    let disk = dir.file("disk.img", &bytes);
    let words = ["--filter=blocksize", "--filter=truncate", "file", "minblock=4k", "round-up=4k"];
    let server = Launch::new(words).path("file", &disk).start();
    let copy = dir.join("copy");
    tool("nbdcopy", [server.uri().as_str(), copy.to_str().expect("UTF-8")]).ok();
    let mut expected = bytes.clone();
    expected.resize(102_400, 0);
    assert!(std::fs::read(&copy).expect("the copy") == expected);
}

#[test]
fn swab_swaps_as_nbdkits_filter_does() {
    let script = "can()\nwalk()\nh.set_strict_mode(0)\nwhat('pwrite', bytes(range(64)), 64)\nprint(h.pread(64, 64))\n\
                  for length, offset in (1, 0), (2, 0), (4, 2), (8, 4), (8, 8), (6, 8):\n    \
                  what('pread', length, offset)\n    what('zero', length, offset)\n    \
                  what('trim', length, offset)\n    what('cache', length, offset)\n    \
                  what('pwrite', bytes(length), offset)";
    for (bits, unaligned) in [(8, false), (16, true), (32, true), (64, true)] {
        let words = ["--filter=swab", &format!("swab-bits={bits}")];
        // With 8 bits nbdkit 1.32 writes memory that it has not set.
        let observed = if bits == 8 { observe(None, &words, script) } else { same_as_nbdkit(&words, script) };
        assert_eq!(observed.contains("EINVAL"), unaligned, "{bits}: {observed}");
    }
    let wrong = refused(&["--filter=swab", "memory", "1M", "swab-bits=17"]);
    assert!(wrong.contains("8, 16, 32 or 64"), "{wrong}");
}

#[test]
fn swab_tells_clients_the_length_of_a_word() {
    let server = Launch::new(["--filter=swab", "memory", "1001", "swab-bits=32"]).start();
    let info = tool("nbdinfo", [server.uri()]).ok();
    for line in ["export-size: 1000", "block_size_minimum: 4"] {
        assert!(info.contains(line), "{info}");
    }
}

/// A server whose extents come from a file with this text.
fn with_list(program: Option<&str>, text: &str) -> String {
    let dir = TempDir::new();
    let list = dir.file("list", text.as_bytes());
    let word = format!("extentlist={}", list.display());
    observe(program, &["--filter=extentlist", &word], "walk()")
}

#[test]
fn extentlist_tells_what_nbdkits_filter_does() {
    for text in [
        "",
        "0 64k\n",
        "64k 64k hole\n0 512 zero\n",
        "0 64k 3\n128k 64k 1\n700k 100 2\n",
        "0 20M\n",
        "20M 1M\n",
        "  0\t64k   hole,zero\n64k 1M zero,hole",
    ] {
        let ours = with_list(None, text);
        if !is_nbdkit() {
            assert_eq!(ours, with_list(Some("nbdkit"), text), "{text:?}");
        }
    }
}

#[test]
fn a_list_of_extents_that_is_wrong_is_refused_with_the_line() {
    let dir = TempDir::new();
    for (text, wrong) in [
        ("0 1M\n512k 1M\n", "line 2: overlaps the extent of line 1"),
        ("0 1M\n\nx 1M\n", "line 3: 'x' is not a number of bytes"),
        ("0 1M maybe\n", "line 1: 'maybe' is not a type"),
        ("0\n", "line 1: '0' is not OFFSET LENGTH [TYPE]"),
    ] {
        let list = dir.file("list", text.as_bytes());
        let word = format!("extentlist={}", list.display());
        let error = refused(&["--filter=extentlist", "memory", "1M", &word]);
        assert!(is_nbdkit() || error.contains(&format!("extentlist: extentlist: {wrong}")), "{error}");
    }
    refused(&["--filter=extentlist", "memory", "1M"]);
    refused(&["--filter=extentlist", "memory", "1M", "extentlist=/nonexistent"]);
}

#[test]
fn ddrescue_fails_what_was_not_rescued_as_nbdkits_filter_does() {
    let script = "can()\nwalk()\nfor at in range(0, 65536, 4096):\n    what('pread', 512, at)\n\
                  what('pread', 16384, 0)\nwhat('pread', 16385, 0)";
    let dir = TempDir::new();
    for text in [
        "# Mapfile\n0x0 ?\n0x0 0x4000 +\n0x4000 0x2000 -\n0x6000 0xfa000 +\n",
        "0x0 + 1\n0x0 0x4000 +\n0x4000 0x2000 *\n0x6000 0x2000 /\n0x8000 0x8000 +\n",
        "0 +\n0 16384 +\n",
    ] {
        let map = dir.file("map", text.as_bytes());
        let observed = same_as_nbdkit(&["--filter=ddrescue", &format!("ddrescue-mapfile={}", map.display())], script);
        assert!(observed.contains("read-only") && observed.contains("pread 16384 EIO"), "{observed}");
    }
    if !is_nbdkit() {
        let map = dir.file("map", b"0 +\n0 zz +\n");
        let error = refused(&["--filter=ddrescue", "memory", "1M", &format!("ddrescue-mapfile={}", map.display())]);
        assert!(error.contains("ddrescue-mapfile: line 2: 'zz' is not a number"), "{error}");
    }
}

#[test]
fn map_moves_requests_as_a_model_does() {
    if is_nbdkit() {
        return;
    }
    const SIZE: usize = 1 << 20;
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    // A permutation of sixteen parts of a different length each, two of which stay where they are.
    let mut cuts: Vec<usize> = (0..15).map(|_| 1 + rng.below(SIZE as u64 - 1) as usize).collect();
    cuts.extend([0, SIZE]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
    for index in (1..parts.len()).rev() {
        parts.swap(index, rng.below(index as u64 + 1) as usize);
    }
    let mut words = Vec::new();
    let mut place = vec![0; SIZE];
    let mut at = 0;
    for (start, end) in &parts {
        let length = end - start;
        words.push(format!("map={at}-{}:{start}", at + length - 1));
        for byte in 0..length {
            place[at + byte] = start + byte;
        }
        at += length;
    }
    let dir = TempDir::new();
    let mut below = rng.bytes(SIZE);
    let disk = dir.file("disk.img", &below);
    let server = Launch::new(["--filter=map", "file"]).path("file", &disk).args(&words).start();
    let mut client = server.client();
    for _ in 0..200 {
        let length = 1 + rng.below(100_000) as usize;
        let offset = rng.below((SIZE - length) as u64) as usize;
        if rng.chance(50) {
            let data = rng.bytes(length);
            client.write(offset as u64, &data).expect("a write");
            (0..length).for_each(|byte| below[place[offset + byte]] = data[byte]);
        } else {
            let expected: Vec<u8> = (0..length).map(|byte| below[place[offset + byte]]).collect();
            assert!(client.read(offset as u64, length as u32).expect("a read") == expected, "{length} at {offset}");
        }
    }
    client.flush().expect("a flush");
    client.disconnect();
    assert!(std::fs::read(&disk).expect("the disk") == below, "the disk below differs");
    let copy = dir.join("copy");
    tool("nbdcopy", [server.uri().as_str(), copy.to_str().expect("UTF-8")]).ok();
    let expected: Vec<u8> = place.iter().map(|at| below[*at]).collect();
    assert!(std::fs::read(&copy).expect("the copy") == expected, "the copy differs");
}

#[test]
fn map_fails_what_lies_nowhere_and_refuses_wrong_ranges() {
    if is_nbdkit() {
        return;
    }
    let words = ["--filter=map", "memory", "1M", "map-size=2M", "map=1048576-1049599:0"];
    let server = Launch::new(words).start();
    let script = "h.connect_uri(uri)\nassert h.get_size() == 2 << 20\nh.pwrite(b'abcd', 0)\n\
                  assert h.pread(4, 1 << 20) == b'abcd'\nassert fails(lambda: h.pread(1025, 1 << 20)) == 'EIO'\n\
                  assert fails(lambda: h.pwrite(b'x', 1500000)) == 'EIO'";
    nbdsh(&server.uri(), script).ok();
    server.wait_for_log("beyond the end of the layer below, which has 1048576 bytes");
    let wrong = refused(&["--filter=map", "memory", "1M", "map=0-511"]);
    assert!(wrong.contains("map: map=0-511: is not START-END:DEST"), "{wrong}");
}
