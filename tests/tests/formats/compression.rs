//! Files that gzip, bzip2, xz, lzip, zstd and lz4 made.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_tests::{TempDir, nbdsh, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, extents, serve};

/// A file that a tool makes of these bytes.
pub fn compressed(dir: &TempDir, name: &str, program: &str, arguments: &[&str], bytes: &[u8]) -> PathBuf {
    let (plain, file) = (dir.file("plain", bytes), dir.join(name));
    let output = std::fs::File::create(&file).expect("a file for the test");
    let input = std::fs::File::open(plain).expect("the content");
    let mut command = Command::new(program);
    let status = command.args(arguments).stdin(input).stdout(Stdio::from(output)).status();
    assert!(status.unwrap_or_else(|error| panic!("{program}: {error}")).success(), "{program} {arguments:?}");
    file
}

/// Each tool, with the options that change what the file is made of.
const TOOLS: &[(&str, &str, &[&str])] = &[
    ("gzip", "gzip", &["-1"]),
    ("gzip", "gzip", &["-9"]),
    ("gzip", "pigz", &["-b", "128"]),
    ("xz", "xz", &["-1"]),
    ("xz", "xz", &["--block-size=256KiB", "-T2"]),
    ("xz", "xz", &["--check=sha256", "--x86", "--lzma2=preset=1"]),
    ("lzip", "lzip", &["-1", "-s", "256KiB"]),
    ("zstd", "zstd", &["-1"]),
    ("zstd", "zstd", &["-3", "--long=27", "--no-check"]),
    ("zstd", "pzstd", &["-q", "-p", "2"]),
    ("lz4", "lz4", &["-q", "-1"]),
    ("lz4", "lz4", &["-q", "-9", "-B4", "-BD", "-BX"]),
    ("lz4", "lz4", &["-q", "-l"]),
    ("bzip2", "bzip2", &["-1"]),
    ("bzip2", "pbzip2", &["-q", "-p2", "-b1"]),
    ("bzip2", "lbzip2", &["-n2"]),
];

#[test]
fn files_of_the_tools_are_read_whole_and_at_random() {
    for (nth, &(filter, program, arguments)) in TOOLS.iter().enumerate() {
        let (dir, content) = (TempDir::new(), content((3 << 20) + 511, nth as u64 + 1));
        let file = compressed(&dir, "file", program, arguments, &content);
        let (server, what) = (serve(filter, &file, &[]), format!("{program} {arguments:?}"));
        assert_content(&server, &content, &what);
        assert_holes_are_zero(&extents(&server), &content, &what);
        let plain = dir.join("plain");
        let script = format!(
            "h.connect_uri(uri)\nplain = open({plain:?}, 'rb').read()\nimport random\nrandom.seed({nth})\n\
             for _ in range(60):\n    at = random.randrange(len(plain) - 5000)\n    \
             assert h.pread(5000, at) == plain[at:at + 5000], at\n"
        );
        nbdsh(&server.uri(), &script).ok();
    }
}

#[test]
fn members_and_streams_one_after_the_other_are_one_disk() {
    for program in ["gzip", "xz", "lzip", "zstd", "lz4", "bzip2"] {
        let (dir, first, second) = (TempDir::new(), content(400_001, 1), content(300_000, 2));
        let parts =
            [&first, &second].map(|part| std::fs::read(compressed(&dir, "part", program, &[], part)).expect("it"));
        let server = serve(program, &dir.file("both", &parts.concat()), &[]);
        assert_content(&server, &[first, second].concat(), program);
    }
}

/// Two clients at once, and a third after them, see the same.
#[test]
fn clients_share_what_was_decoded() {
    let (dir, content) = (TempDir::new(), content(2 << 20, 5));
    let file = compressed(&dir, "file", "gzip", &[], &content);
    let server = serve("gzip", &file, &[]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_content(&server, &content, "one of two"));
        }
    });
    assert_content(&server, &content, "the third");
}

#[test]
fn a_file_that_is_cut_or_wrong_is_refused_with_a_line() {
    let (dir, content) = (TempDir::new(), content(300_000, 3));
    for program in ["gzip", "xz", "lzip", "zstd", "lz4", "bzip2"] {
        let bytes = std::fs::read(compressed(&dir, "file", program, &[], &content)).expect("the file");
        for (name, bytes) in
            [("cut", &bytes[..bytes.len() - 20]), ("text", b"this is no compressed file at all".as_slice())]
        {
            let server = serve(program, &dir.file(name, bytes), &[]);
            let said = tool("nbdinfo", [&server.uri()]).fails();
            assert!(!said.is_empty(), "{program} {name}");
            let line = if name == "text" { "it is not a" } else { "the " };
            server.wait_for_log(&format!("error: {program}: {line}"));
        }
    }
}

/// Dictionaries of 64 MiB and windows of 128 MiB, which the content fills.
#[test]
fn large_dictionaries_and_windows_fit_into_the_default_limits() {
    let (dir, content) = (TempDir::new(), content(70 << 20, 8));
    let file = compressed(&dir, "xz", "xz", &["--lzma2=preset=0,dict=64MiB", "-T1"], &content);
    assert_content(&serve("xz", &file, &[]), &content, "xz");
    assert_content(&serve("auto", &file, &[]), &content, "auto");
    let file = compressed(&dir, "lzip", "lzip", &["-1", "-s", "64MiB"], &content);
    assert_content(&serve("lzip", &file, &[]), &content, "lzip");
    let content = [content.as_slice(), &content].concat();
    let file = compressed(&dir, "zstd", "zstd", &["-1", "--long=27"], &content);
    assert_content(&serve("zstd", &file, &[]), &content, "zstd");
    assert_content(&serve("auto", &file, &[]), &content, "auto");
}

#[test]
fn a_window_beyond_the_limit_is_refused_and_can_be_allowed() {
    let (dir, content) = (TempDir::new(), vec![1; 300 << 20]);
    let file = compressed(&dir, "zstd", "zstd", &["-1", "--long=28"], &content);
    let server = serve("zstd", &file, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log(
        "the zstd frame at 0 needs a window of 268435456 bytes, and the limit is 134217728: zstd-max-window=SIZE \
         raises it, and --filter-limit zstd:memory=SIZE gives the memory",
    );
    let server = serve("zstd", &file, &["zstd-max-window=256M", "--filter-limit=zstd:memory=300M"]);
    assert_eq!(tool("nbdinfo", ["--size", &server.uri()]).ok().trim(), (300u64 << 20).to_string());
}

/// What does not fit is decoded again, from the nearest point at which that is possible.
#[test]
fn a_full_temporary_file_is_no_error() {
    let (dir, content) = (TempDir::new(), content(12 << 20, 10));
    for (filter, program, arguments) in [
        ("gzip", "gzip", &["-1"][..]),
        ("bzip2", "bzip2", &["-1"]),
        ("zstd", "zstd", &["-1"]),
        ("zstd", "pzstd", &["-q", "-1", "-p", "2"]),
        ("lz4", "lz4", &["-q", "-1", "-B4", "-BD"]),
        ("lz4", "lz4", &["-q", "-l"]),
    ] {
        let file = compressed(&dir, "file", program, arguments, &content);
        let server = serve(filter, &file, &[&format!("--filter-limit={filter}:scratch=1M")]);
        assert_content(&server, &content, program);
        let (plain, uri) = (dir.file("plain", &content), server.uri());
        let script = format!(
            "h.connect_uri(uri)\nplain = open({plain:?}, 'rb').read()\n\
             for at in [11000000, 5000000, 9000000, 100]:\n    \
             assert h.pread(300000, at) == plain[at:at + 300000], at\n"
        );
        nbdsh(&uri, &script).ok();
    }
}

/// A file in the seekable format of zstd, which the tool does not write: frames of the tool, and a
/// table of them.
#[test]
fn frames_of_a_seekable_file_are_decoded_when_they_are_needed() {
    let (dir, content) = (TempDir::new(), content((3 << 20) + 7, 9));
    let (mut file, mut entries) = (Vec::new(), Vec::new());
    for part in content.chunks(200_000) {
        let packed = std::fs::read(compressed(&dir, "part", "zstd", &["-1"], part)).expect("a frame");
        entries.extend([packed.len() as u32, part.len() as u32].map(u32::to_le_bytes).concat());
        file.extend(packed);
    }
    let count = entries.len() as u32 / 8;
    file.extend([0x184d_2a5e, entries.len() as u32 + 9].map(u32::to_le_bytes).concat());
    file.extend(entries);
    file.extend([&count.to_le_bytes()[..], &[0], &0x8f92_eab1_u32.to_le_bytes()].concat());
    let server = serve("zstd", &dir.file("seekable", &file), &[]);
    let plain = dir.file("plain", &content);
    let script = format!(
        "h.connect_uri(uri)\nplain = open({plain:?}, 'rb').read()\n\
         for at in [2000000, 5, len(plain) - 5000, 199990]:\n    assert h.pread(5000, at) == plain[at:at + 5000], at\n"
    );
    nbdsh(&server.uri(), &script).ok();
    assert_content(&server, &content, "all of it");
}

/// A thousand to one, and that again: what is read is what is there, and no more is kept.
#[test]
fn a_bomb_is_a_disk_of_zeroes() {
    let dir = TempDir::new();
    let file = compressed(&dir, "bomb", "gzip", &["-9"], &vec![0; 256 << 20]);
    assert!(std::fs::metadata(&file).expect("the bomb").len() < 1 << 20);
    let server = serve("gzip", Path::new(&file), &[]);
    let uri = server.uri();
    assert_eq!(tool("nbdinfo", ["--size", &uri]).ok().trim(), (256u64 << 20).to_string());
    let told = extents(&server);
    assert!(told.iter().all(|run| run.zero), "{told:?}");
}
