//! Files that gzip, xz and lzip made.

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
const TOOLS: [(&str, &str, &[&str]); 7] = [
    ("gzip", "gzip", &["-1"]),
    ("gzip", "gzip", &["-9"]),
    ("gzip", "pigz", &["-b", "128"]),
    ("xz", "xz", &["-1"]),
    ("xz", "xz", &["--block-size=256KiB", "-T2"]),
    ("xz", "xz", &["--check=sha256", "--x86", "--lzma2=preset=1"]),
    ("lzip", "lzip", &["-1", "-s", "256KiB"]),
];

#[test]
fn files_of_the_tools_are_read_whole_and_at_random() {
    for (nth, (filter, program, arguments)) in TOOLS.into_iter().enumerate() {
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
    for program in ["gzip", "xz", "lzip"] {
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
    for program in ["gzip", "xz", "lzip"] {
        let bytes = std::fs::read(compressed(&dir, "file", program, &[], &content)).expect("the file");
        for (name, bytes) in
            [("cut", &bytes[..bytes.len() - 20]), ("text", b"this is no compressed file at all".as_slice())]
        {
            let server = serve(program, &dir.file(name, bytes), &[]);
            let said = tool("nbdinfo", [&server.uri()]).fails();
            assert!(!said.is_empty(), "{program} {name}");
            server.wait_for_log(&format!("{program}: "));
        }
    }
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
