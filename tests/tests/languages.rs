//! Filters in other languages. The contract can be used from C and from JavaScript with these
//! languages' own standard libraries. The sources are in `guest-c` and `guest-js`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rbdkit_tests::model::{Crowd, Disk, content};
use rbdkit_tests::raw::error;
use rbdkit_tests::server::{read_at, root};
use rbdkit_tests::{Launch, TempDir, nbdsh, seed, wait};

/// Builds a filter with the script of its language.
fn build(guest: &str, name: &str, dir: &TempDir) -> PathBuf {
    let component = dir.join("filter.wasm");
    let mut script = Command::new(root().join("tests").join(guest).join("build.sh"));
    script.arg(&component).arg(name);
    // `make` has built this tool already.
    let componentize = root().join("target/release/rbdkit-componentize");
    if componentize.exists() {
        script.env("COMPONENTIZE", componentize);
    }
    // It may compile the generator of the bindings first, on a machine that runs other tests.
    let built = wait::output_within(Duration::from_secs(1200), &mut script);
    assert!(built.status.success(), "{guest}: {}", String::from_utf8_lossy(&built.stderr));
    component
}

/// What nbdsh prints about a server with this filter.
fn with_filter(component: &PathBuf, arguments: &[&str], script: &str) -> String {
    let server = Launch::new(["--wasm-filter"]).arg(component).args(arguments).start();
    nbdsh(&server.uri(), &format!("h = nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri(uri)\n{script}"))
        .ok()
        .trim()
        .to_owned()
}

/// A script that prints the name of the error.
const ERROR: &str = "
try:
    h.pread(512, 0)
except nbd.Error as error:
    print(error.errno)
";

#[test]
fn a_filter_in_c_swaps_the_bytes_of_words() {
    let dir = TempDir::new();
    let swab = build("guest-c", "swab", &dir);
    let nine = "data=1 2 3 4 5 6 7 8 9";
    let read = "print(h.get_size(), h.get_block_size(nbd.SIZE_MINIMUM), *h.pread(8, 0))";
    assert_eq!(with_filter(&swab, &["data", nine], read), "8 2 2 1 4 3 6 5 8 7");
    assert_eq!(with_filter(&swab, &["data", nine, "swab-bits=32"], read), "8 4 4 3 2 1 8 7 6 5");
    assert_eq!(with_filter(&swab, &["data", nine, "swab-bits=8"], "print(*h.pread(9, 0))"), "1 2 3 4 5 6 7 8 9");
    let write = "h.pwrite(bytes(range(200)) * 1000, 4000); print(h.pread(200000, 4000) == bytes(range(200)) * 1000)";
    assert_eq!(with_filter(&swab, &["memory", "1M", "swab-bits=64"], write), "True");
    let half = "try:\n    h.pread(1, 1)\nexcept nbd.Error as error:\n    print(error.errno)";
    assert_eq!(with_filter(&swab, &["memory", "1M"], half), "EINVAL");
    let full = ["eval", "get_size=echo 1M", "pread=echo ENOSPC full >&2; exit 1"];
    assert_eq!(with_filter(&swab, &full, ERROR), "ENOSPC");
}

#[test]
fn a_filter_in_javascript_masks_bytes() {
    let dir = TempDir::new();
    let mask = build("guest-js", "mask", &dir);
    let read = "print(*h.pread(4, 0))";
    assert_eq!(with_filter(&mask, &["data", "data=1 2 3 4", "mask-key=85"], read), "84 87 86 81");
    let write = "h.pwrite(bytes(range(200)) * 500, 4001); print(h.pread(100000, 4001) == bytes(range(200)) * 500)";
    assert_eq!(with_filter(&mask, &["memory", "1M", "mask-key=1"], write), "True");
    let full = ["eval", "get_size=echo 1M", "pread=echo ENOSPC full >&2; exit 1", "mask-key=1"];
    assert_eq!(with_filter(&mask, &full, ERROR), "ENOSPC");
    let refused = Launch::new(["--wasm-filter"]).arg(&mask).args(["memory", "1M", "mask-key=256"]).try_start();
    let refused = refused.err().unwrap();
    assert!(refused.stderr.contains("mask-key: must be from 0 to 255"), "{}", refused.stderr);
}

#[test]
fn a_mask_is_on_the_disk_and_not_in_what_clients_see() {
    let dir = TempDir::new();
    let bytes = content(3, 1 << 20);
    let file = dir.file("disk.img", &bytes);
    let mask = build("guest-js", "mask", &dir);
    let server = Launch::new(["--wasm-filter"]).arg(&mask).arg("file").path("file", &file).arg("mask-key=85").start();
    let masked: Vec<u8> = bytes.iter().map(|byte| byte ^ 85).collect();
    let mut client = server.client();
    assert!(client.read(0, 1 << 20).as_deref() == Ok(&masked[..]));
    client.write(4095, b"hello").expect("a write");
    // The filter is opaque, so zeroes must not pass around it.
    client.zero(4096, 2, 0).expect("zeroes");
    client.flush().expect("a flush");
    let stored: Vec<u8> = b"h\0\0lo".iter().map(|byte| byte ^ 85).collect();
    assert_eq!(read_at(&file, 4095, 5), stored);
}

/// Serves with a filter that logs what it finds, fails and goes on. The result is the log's lines
/// without the program's name.
fn talk(component: &PathBuf, fault: &str) -> Vec<String> {
    let server = Launch::new(["-v", "--wasm-filter"]).arg(component).args(["memory", "1M"]).start();
    let mut client = server.client();
    assert!(client.read(0, 512).is_ok());
    assert_eq!(client.read(4096, 512), Err(error::EIO), "{}", server.stderr());
    server.wait_for_log(&format!("rbdkit: error: talk: pread at offset 4096: {fault}"));
    assert!(client.read(512, 512).is_ok(), "a fresh instance serves on");
    client.disconnect();
    let log = server.stop().stderr;
    let said = log.lines().filter(|line| !line.contains("talk: pread") && !line.contains("talk: so far"));
    said.filter_map(|line| Some(line.split_once("rbdkit: ")?.1.to_owned()))
        .filter(|line| line.contains("talk: "))
        .collect()
}

#[test]
fn a_c_library_has_clocks_random_numbers_and_standard_error_and_nothing_else() {
    let dir = TempDir::new();
    let said = talk(&build("guest-c", "talk", &dir), "it called exit, as failed; in ");
    let expected = [
        "warning: talk: time: yes",
        "warning: talk: slept: yes",
        "warning: talk: random: yes",
        "warning: talk: file: Capabilities insufficient",
        "warning: talk: new file: Capabilities insufficient",
        "warning: talk: PATH: no",
        "warning: talk: input: no",
        "debug: talk: on standard output",
        r"warning: talk: \u{1b}[2Jthe end",
        "warning: talk: it is enough",
    ];
    assert_eq!(said[..expected.len()], expected, "{said:#?}");
}

#[test]
fn javascript_has_the_time_and_its_exceptions_are_told() {
    let dir = TempDir::new();
    let component = build("guest-js", "talk", &dir);
    let said = talk(&component, "wasm trap: wasm `unreachable` instruction executed");
    assert_eq!(said[..2], ["warning: talk: time: true, random: true", "info: talk: ready"]);
    let stack = said.iter().find(|line| line.contains("cannot read property 'length' of null"));
    assert!(stack.is_some_and(|line| line.contains("at pread (") && line.contains("talk.js:")), "{said:#?}");
    // Without -v there are no debugging messages, but what a filter calls information is shown.
    let server = Launch::new(["--wasm-filter"]).arg(&component).args(["memory", "1M"]).start();
    assert!(server.client().read(0, 512).is_ok());
    server.wait_for_log("rbdkit: info: talk: ready");
    assert!(!server.stop().stderr.contains("debug:"));
}

/// Filters in C and JavaScript, with built-in ones around and between them.
#[test]
fn filters_in_three_languages_stack_and_are_the_model() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let mask = build("guest-js", "mask", &dir);
    let other = TempDir::new();
    let swab = build("guest-c", "swab", &other);
    let bytes = content(seed, 1 << 20);
    let server = Launch::new(["--filter=readahead", "--filter=cache", "--wasm-filter"])
        .arg(&mask)
        .args(["--filter=nofilter", "--wasm-filter"])
        .arg(&swab)
        .args(["--filter=cow", "memory", "1M", "mask-key=170", "swab-bits=8"])
        .start();
    let mut client = server.client();
    for (nth, chunk) in bytes.chunks(65536).enumerate() {
        client.write(nth as u64 * 65536, chunk).expect("a write");
    }
    client.disconnect();
    let mut crowd = Crowd::new(seed, 2000);
    crowd.stripe = 7001;
    let mut disk = Disk::new(&bytes, crowd.stripe);
    disk.exercise(server.socket(), &crowd);
    disk.compare_with("read by a new connection", &mut server.client(), false);
}
