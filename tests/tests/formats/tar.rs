//! tar: files of archives that tar has made, against nbdkit's filter and the files themselves.

use std::path::PathBuf;

use rbdkit_tests::server::filter;
use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, extents, serve};

const SIZE: usize = (3 << 20) + 12345;

/// An archive of `other`, `disk.img` and `sparse.img`, and the contents of the last two.
fn archive(dir: &TempDir, options: &[&str]) -> (PathBuf, Vec<u8>) {
    let disk = content(SIZE, 21);
    dir.file("other", b"other");
    dir.file("disk.img", &disk);
    let (raw, sparse) = (dir.join("disk.img"), dir.join("sparse.img"));
    let paths = [raw.to_str().expect("UTF-8"), sparse.to_str().expect("UTF-8")];
    tool("cp", ["--sparse=always", paths[0], paths[1]]).ok();
    let archive = dir.join("a.tar");
    let at = dir.path().to_str().expect("UTF-8");
    let fixed = ["-cSf", archive.to_str().expect("UTF-8"), "-C", at];
    tool("tar", [&fixed[..], options, &["other", "disk.img", "sparse.img"]].concat()).ok();
    (archive, disk)
}

#[test]
fn a_file_of_an_archive_is_what_it_was() {
    let dir = TempDir::new();
    for options in [&["--format=gnu"][..], &["--format=posix"], &["--format=posix", "--sparse-version=0.1"]] {
        let (archive, disk) = archive(&dir, options);
        let server = serve("tar", &archive, &["tar-entry=sparse.img"]);
        assert_content(&server, &disk, &format!("{options:?}"));
        let runs = extents(&server);
        assert_holes_are_zero(&runs, &disk, &format!("{options:?}"));
        assert!(runs.iter().any(|run| run.hole), "the holes of the file are told: {runs:?}");
    }
}

#[test]
fn nbdkits_filter_serves_the_same_bytes() {
    let dir = TempDir::new();
    dir.file("other", b"other");
    let disk = content(SIZE, 22);
    dir.file("disk.img", &disk);
    let (archive, copy) = (dir.join("a.tar"), dir.join("copy"));
    let (archive_name, at) = (archive.to_str().expect("UTF-8"), dir.path().to_str().expect("UTF-8"));
    tool("tar", ["-cf", archive_name, "-C", at, "other", "disk.img"]).ok();
    assert_content(&serve("tar", &archive, &["tar-entry=disk.img"]), &disk, "rbdkit");
    let run = format!("nbdcopy \"$uri\" {}", copy.to_str().expect("UTF-8"));
    tool("nbdkit", ["-U", "-", "-r", "file", archive_name, "--filter=tar", "tar-entry=disk.img", "--run", &run]).ok();
    assert!(std::fs::read(copy).expect("the copy") == disk, "nbdkit");
}

#[test]
fn the_export_name_chooses_and_writes_stay_within_the_member() {
    let dir = TempDir::new();
    let disk = content(SIZE, 23);
    dir.file("other", b"other");
    dir.file("disk.img", &disk);
    let (archive, at) = (dir.join("a.tar"), dir.path().to_str().expect("UTF-8").to_string());
    tool("tar", ["-cf", archive.to_str().expect("UTF-8"), "-C", &at, "other", "disk.img"]).ok();
    let before = std::fs::read(&archive).expect("the archive");
    let component = filter("tar");
    let words = ["--wasm-filter".as_ref(), component.as_os_str(), "file".as_ref(), archive.as_os_str()];
    let server: Server = Launch::new(words).arg("tar-entry=exportname").start();
    let socket = server.socket().to_str().expect("UTF-8").to_string();
    let script = format!(
        "h = nbd.NBD()\nh.connect_uri(uri)\nassert h.get_size() == {SIZE}\nh.pwrite(b'written', 1000)\n\
         h.zero(100, 5000)\nh.flush()\nassert h.pread(7, 1000) == b'written'\nh.shutdown()\n"
    );
    nbdsh(&format!("nbd+unix:///disk.img?socket={socket}"), &script).ok();
    // "other" takes a header and a block; then comes the header of the file.
    let mut expected = before;
    let start = 1536;
    expected[start + 1000..start + 1007].copy_from_slice(b"written");
    expected[start + 5000..start + 5100].fill(0);
    assert!(std::fs::read(&archive).expect("the archive") == expected, "nothing else has changed");
    tool("tar", ["-tf", archive.to_str().expect("UTF-8")]).ok();
    tool("nbdinfo", ["--size", &format!("nbd+unix:///nothing?socket={socket}")]).fails();
    server.wait_for_log("the archive has no member 'nothing'; it has 'other', 'disk.img'");
}
