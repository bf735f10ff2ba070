//! ext2, iso9660 and fat: a file inside a file system.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rbdkit_tests::server::filter;
use rbdkit_tests::{Server, TempDir, nbdsh, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, extents, serve};

/// A directory with a file at `disks/disk.raw`, which has holes where its content has zeroes.
fn tree(dir: &TempDir, bytes: &[u8]) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("disks/a/b")).expect("directories");
    let file = File::create(tree.join("disks/disk.raw")).expect("a file");
    file.set_len(bytes.len() as u64).expect("its size");
    for (n, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, n as u64 * 4096).expect("its content");
        }
    }
    symlink("/disks/../disks/disk.raw", tree.join("disks/a/b/link")).expect("a link");
    tree
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn ext_image(dir: &TempDir, tree: &Path, size: u64, options: &[&str]) -> PathBuf {
    let image = dir.join("ext.img");
    File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
    let fixed = ["-q", "-F", "-d", text(tree)];
    tool("/sbin/mke2fs", [&fixed[..], options, &[text(&image)]].concat()).ok();
    image
}

/// What debugfs reads, with the library of the file system's own tools. nbdkit 1.32's filter is no
/// oracle: it returns wrong bytes for requests that cross some blocks.
fn assert_debugfs_reads(image: &Path, path: &str, content: &[u8]) {
    let dir = TempDir::new();
    let copy = dir.join("copy");
    tool("/sbin/debugfs", ["-R", &format!("dump {path} {}", text(&copy)), text(image)]).ok();
    assert!(fs::read(copy).expect("the copy") == content, "debugfs reads something else");
}

#[test]
fn a_file_in_ext_is_what_was_put_there_as_debugfs_reads_it() {
    let bytes = content((4 << 20) + 777, 11);
    for options in [
        &["-t", "ext2", "-b", "1024"][..],
        &["-t", "ext3", "-b", "2048"],
        &["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"],
        &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"],
    ] {
        let dir = TempDir::new();
        let image = ext_image(&dir, &tree(&dir, &bytes), 32 << 20, options);
        for path in ["/disks/disk.raw", "/disks/a/b/link"] {
            let server = serve("ext2", &image, &[&format!("ext2file={path}")]);
            assert_content(&server, &bytes, path);
            let runs = extents(&server);
            assert_holes_are_zero(&runs, &bytes, path);
            assert!(runs.iter().any(|run| run.hole), "{options:?}: no hole is told");
        }
        assert_debugfs_reads(&image, "/disks/disk.raw", &bytes);
    }
}

#[test]
fn a_directory_with_an_index_and_a_file_beyond_4_gib_are_read() {
    let dir = TempDir::new();
    let tree = tree(&dir, b"");
    for n in 0..3000 {
        fs::write(tree.join(format!("disks/a/a file with a number {n}")), b"").expect("a file");
    }
    let large = File::create(tree.join("disks/a/large")).expect("a file");
    large.set_len(5 << 30).expect("its size");
    large.write_all_at(b"far away", (5 << 30) - 8).expect("its content");
    let image = ext_image(&dir, &tree, 32 << 20, &["-t", "ext4", "-b", "1024", "-N", "4096"]);
    // e2fsck -D makes the index.
    let checked = Command::new("/sbin/e2fsck").args(["-f", "-y", "-D", text(&image)]).output().expect("e2fsck");
    assert!(matches!(checked.status.code(), Some(0 | 1)), "e2fsck: {}", checked.status);
    let server = serve("ext2", &image, &["ext2file=/disks/a/large"]);
    let runs = extents(&server);
    assert_eq!(runs.last().map(|run| run.start + run.length), Some(5 << 30));
    let script = "h.connect_uri(uri); assert h.pread(8, (5 << 30) - 8) == b'far away'";
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn a_write_goes_into_the_file_and_the_file_system_stays_sound() {
    let dir = TempDir::new();
    let mut bytes = content(300_000, 5);
    bytes[..100_000].fill(7);
    let image = ext_image(&dir, &tree(&dir, &bytes), 8 << 20, &["-t", "ext4", "-b", "1024"]);
    let component = filter("ext2");
    let words = ["--wasm-filter", text(&component), "file", text(&image), "ext2file=/disks/disk.raw"];
    let server = Server::start(words);
    tool("qemu-io", ["-f", "raw", "-c", "write -P 9 1000 50000", "-c", "flush", &server.uri()]).ok();
    bytes[1000..51_000].fill(9);
    assert_content(&server, &bytes, "after a write");
    drop(server);
    tool("/sbin/e2fsck", ["-f", "-n", text(&image)]).ok();
    assert_debugfs_reads(&image, "/disks/disk.raw", &bytes);
}

#[test]
fn a_file_on_a_cd_image_is_what_was_put_there() {
    let bytes = content((2 << 20) + 333, 12);
    let dir = TempDir::new();
    let tree = tree(&dir, &bytes);
    for options in [&["-R"][..], &["-J", "-f"], &["-R", "-J"], &["-f"]] {
        let image = dir.join("cd.iso");
        tool("genisoimage", [&["-quiet", "-o", text(&image)][..], options, &[text(&tree)]].concat()).ok();
        let server = serve("iso9660", &image, &["iso9660-file=/disks/disk.raw"]);
        assert_content(&server, &bytes, &format!("{options:?}"));
        assert_holes_are_zero(&extents(&server), &bytes, "extents");
    }
}

#[test]
fn a_file_on_fat_is_what_was_put_there() {
    let bytes = content((1 << 20) + 333, 13);
    for (width, size) in [("12", 2 << 20), ("16", 16 << 20), ("32", 40 << 20)] {
        let dir = TempDir::new();
        let file = dir.file("disk.raw", &bytes);
        let image = dir.join("fat.img");
        File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        tool("/sbin/mkfs.fat", ["-F", width, text(&image)]).ok();
        tool("mmd", ["-i", text(&image), "::/Long directory"]).ok();
        tool("mcopy", ["-i", text(&image), text(&file), "::/Long directory/A disk image.raw"]).ok();
        let server = serve("fat", &image, &["fat-file=/Long directory/A disk image.raw"]);
        assert_content(&server, &bytes, width);
        assert_holes_are_zero(&extents(&server), &bytes, width);
    }
}
