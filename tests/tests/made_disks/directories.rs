//! Disks of directories and images: floppy, linuxdisk, iso, cdi and the examples.

use std::path::{Path, PathBuf};

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

use crate::{copy, leftovers, nbdkit, text};

/// A directory with files and directories of all kinds of names.
fn tree(dir: &TempDir) -> PathBuf {
    let root = dir.join("tree");
    let put = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    };
    put("README.TXT", b"read me");
    put("a long name with blanks.html", &[b'x'; 40_000]);
    put("longname-1.txt", b"one");
    put("longname-2.txt", b"two");
    put("empty", b"");
    put("sub/deeper/häuser.txt", "größer".as_bytes());
    put("sub/many/0", b"0");
    for number in 1..600 {
        put(&format!("sub/many/file number {number}"), number.to_string().as_bytes());
    }
    std::os::unix::fs::symlink("README.TXT", root.join("link")).expect("a link");
    root
}

/// The relative names of all files, in order.
fn names(root: &Path) -> Vec<String> {
    let listing = tool("find", [text(root), "-type", "f", "-printf", "%P\n"]).ok();
    let mut names: Vec<String> = listing.lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// The bytes of the first partition, which begins at 1 MiB, in a file.
fn partition(server: &Server, dir: &TempDir, name: &str) -> PathBuf {
    dir.file(name, &copy(server)[1 << 20..])
}

/// The FAT file system of a directory, in a sparse file.
fn fat(dir: &TempDir, root: &Path, arguments: &[&str]) -> PathBuf {
    let server = Launch::new(["--filter=offset", "floppy", "offset=1M"]).path("dir", root).args(arguments).start();
    let disk = dir.join("fat");
    tool("nbdcopy", [&server.uri(), text(&disk)]).ok();
    disk
}

/// A size with which the file system has enough clusters for mtools to take it for FAT32.
const MTOOLS: &str = "size=1100M";

#[test]
fn a_floppy_has_all_files_and_is_a_sound_file_system() {
    let dir = TempDir::new();
    let root = tree(&dir);
    for arguments in [&[][..], &["size=40000000"], &[MTOOLS, "label=MY FILES"]] {
        let disk = fat(&dir, &root, arguments);
        let checked = tool("/sbin/fsck.fat", ["-n", "-v", text(&disk)]).ok();
        assert!(!checked.contains("differ") && !checked.to_lowercase().contains("error"), "{checked}");
    }
    let disk = dir.join("fat");
    let out = dir.join("out");
    std::fs::create_dir(&out).expect("a directory");
    tool("mcopy", ["-s", "-n", "-i", text(&disk), "::/", text(&out)]).ok();
    assert_eq!(names(&out), names(&root));
    tool("diff", ["-r", "--exclude=link", text(&root), text(&out)]).ok();
    assert!(tool("mdir", ["-i", text(&disk), "::/"]).ok().contains("MY FILES"));
    let server = Launch::new(["floppy", "size=40000001"]).path("dir", &root).start();
    assert_eq!(tool("nbdinfo", ["--size", &server.uri()]).ok(), "40000001\n");
}

#[test]
fn a_floppy_has_the_files_that_nbdkits_has() {
    let dir = TempDir::new();
    let root = tree(&dir);
    let list = |disk: &Path| {
        // nbdkit's is not sound: fsck.fat wants to repair each `..` that leads to the root.
        let listed = tool("/sbin/fsck.fat", ["-n", "-l", text(disk)]).stdout;
        // The short name, which may differ, is in parentheses.
        let long = |line: &str| line.strip_prefix("Checking file ")?.split_once(" (").map(|(name, _)| name.to_owned());
        let mut names: Vec<String> = listed.lines().filter_map(long).collect();
        names.sort();
        names
    };
    let theirs = nbdkit(&["floppy", text(&root)]).start();
    let theirs = list(&partition(&theirs, &dir, "theirs"));
    assert_eq!(list(&fat(&dir, &root, &[])), theirs);
    assert!(theirs.contains(&"/a long name with blanks.html".to_owned()), "{theirs:?}");
}

#[test]
fn a_file_of_a_floppy_that_changes_is_an_error_and_a_link_in_its_place_is_not_followed() {
    let dir = TempDir::new();
    let root = dir.join("tree");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::write(root.join("file"), [7; 4096]).expect("a file");
    let server = Launch::new(["floppy"]).arg(&root).start();
    // The file has the last cluster.
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
at = h.get_size() - 16384
print(fails(lambda: h.pread(4096, at)))
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "success\n");
    std::fs::write(root.join("file"), [7; 100]).expect("a file");
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO\n");
    std::fs::remove_file(root.join("file")).expect("a file");
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO\n");
    std::os::unix::fs::symlink("/etc/services", root.join("file")).expect("a link");
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO\n");
}

#[test]
fn a_linux_disk_has_all_files_and_is_a_sound_file_system() {
    let dir = TempDir::new();
    let root = tree(&dir);
    for (kind, arguments) in [("ext2", &[][..]), ("ext4", &["type=ext4", "label=it's me", "size=+2M"])] {
        let server = Launch::new(["linuxdisk"]).path("dir", &root).args(arguments).start();
        assert_eq!(leftovers(server.dir()), Vec::<String>::new());
        let disk = partition(&server, &dir, "ext");
        // The table at the end of the disk is not of the file system.
        let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("the copy");
        file.set_len(std::fs::metadata(&disk).expect("the copy").len() - 33 * 512).expect("the copy");
        tool("/sbin/e2fsck", ["-f", "-n", text(&disk)]).ok();
        let read = tool("/sbin/debugfs", ["-R", "cat /sub/deeper/häuser.txt", text(&disk)]).ok();
        assert_eq!(read, "größer", "{kind}");
        let linked = tool("/sbin/debugfs", ["-R", "stat /link", text(&disk)]).ok();
        assert!(linked.contains("README.TXT"), "{linked}");
        let about = tool("/sbin/dumpe2fs", ["-h", text(&disk)]).ok();
        assert!(about.contains("has_journal") == (kind == "ext4"), "{about}");
        assert!(about.contains("it's me") == (kind == "ext4"), "{about}");
        let socket = format!("socket={}", text(server.socket()));
        let reader = nbdkit(&["--filter=partition", "nbd", &socket, "partition=1"]).start();
        assert!(copy(&reader) == std::fs::read(&disk).expect("the copy"));
    }
}

#[test]
fn an_image_of_a_cd_has_all_files() {
    let dir = TempDir::new();
    let (root, more) = (tree(&dir), dir.join("mo're"));
    std::fs::create_dir(&more).expect("a directory");
    std::fs::write(more.join("extra"), "extra").expect("a file");
    let arguments = ["iso", text(&root), text(&more), "params=-JrT -V 'My Disk'"];
    // Debian's nbdkit knows only xorriso. This stands in for it.
    let xorriso = "#!/bin/sh\n[ \"$1 $2\" = '-as mkisofs' ] && shift 2 && exec genisoimage \"$@\"\n";
    let list = |server: &Server| {
        let image = dir.file("iso", &copy(server));
        let about = tool("isoinfo", ["-d", "-i", text(&image)]).ok();
        assert!(about.contains("Volume id: My Disk\n"), "{about}");
        (tool("isoinfo", ["-R", "-f", "-i", text(&image)]).ok(), image)
    };
    let server = Launch::new(arguments).arg("prog=genisoimage").start();
    assert_eq!(leftovers(server.dir()), Vec::<String>::new());
    let (ours, image) = list(&server);
    for name in ["/README.TXT\n", "/extra\n", "/sub/deeper/häuser.txt\n", "/a long name with blanks.html\n"] {
        assert!(ours.contains(name), "{name}: {ours}");
    }
    let read = tool("isoinfo", ["-R", "-i", text(&image), "-x", "/sub/many/file number 599"]).ok();
    assert_eq!(read, "599");
    assert_eq!(ours, list(&nbdkit(&arguments).with_program(&dir, "xorriso", xorriso).start()).0);
    assert_eq!(ours, list(&Launch::new(arguments).with_program(&dir, "xorriso", xorriso).start()).0);
}

#[test]
fn a_program_that_fails_or_is_missing_ends_the_start_with_one_line() {
    let dir = TempDir::new();
    let root = text(dir.path());
    for (arguments, expected) in [
        (["iso", root, "prog=/no/such"], "iso: /no/such is needed, and it is not there (Debian has it in"),
        (["iso", root, "params=--no-such-option"], "failed: exit status: "),
        (["linuxdisk", root, "type=xfs"], "type=xfs: is not one of ext2, ext3, ext4"),
        (["linuxdisk", root, "size=1k"], "linuxdisk: mke2fs failed: exit status: 1"),
        (["floppy", root, "size=1M"], "floppy: filesystem is larger than \"size\" bytes: the files need at least "),
        (["floppy", root, "label=123456789012"], "label=123456789012: is not a label: up to 11 ASCII characters"),
    ] {
        let outcome = Launch::new(arguments).try_start().err().expect("it does not start");
        assert!(outcome.stderr.contains(expected), "{arguments:?}: {}", outcome.stderr);
    }
}

/// Stands in for podman: saves an image of two layers, and writes down what it was asked for.
const PODMAN: &str = r#"#!/bin/sh
echo "$*" >>"$ASKED"
[ "$1" = pull ] && exit "${PULL_FAILS:-0}"
while [ "$1" != -o ]; do shift; done
mkdir -p "$2"
printf first >"$2/aa11"
printf second >"$2/bb22"
echo '{"layers": [{"digest": "sha256:aa11"}, {"digest": "sha256:bb22"}]}' >"$2/manifest.json"
"#;

#[test]
fn a_layer_of_a_container_image_is_served_and_nothing_is_left() {
    let dir = TempDir::new();
    let asked = dir.join("asked");
    let launch = |arguments: &[&str]| {
        Launch::new(["cdi"]).args(arguments).with_program(&dir, "podman", PODMAN).env("ASKED", &asked)
    };
    for (arguments, expected) in [
        (&["quay.io/me/disk:1"][..], "first"),
        (&["quay.io/me/disk:1", "layer=1"], "second"),
        (&["name=quay.io/me/disk:1", "layer=-2"], "first"),
    ] {
        let server = launch(arguments).start();
        assert_eq!(leftovers(server.dir()), Vec::<String>::new());
        assert_eq!(copy(&server), expected.as_bytes(), "{arguments:?}");
    }
    let words = std::fs::read_to_string(&asked).expect("what podman was asked");
    assert!(words.starts_with("pull -- quay.io/me/disk:1\nsave --format oci-dir -o "), "{words}");
    let no = |launch: Launch, expected: &str| {
        let outcome = launch.try_start().err().expect("it does not start");
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    };
    no(launch(&["x", "layer=2"]), "cdi: the image has no layer 2");
    no(launch(&["x"]).env("PULL_FAILS", "125"), "cdi: podman failed: exit status: 125");
}

#[test]
fn the_examples_serve_what_their_pages_say() {
    let first = copy(&Server::start(["example1"]));
    assert_eq!((first.len(), &first[510..512]), (100 << 20, &[0x55, 0xaa][..]));
    let dir = TempDir::new();
    let file = dir.file("disk", &[7; 5000]);
    let server = Launch::new(["example2"]).path("file", &file).start();
    assert_eq!(copy(&server), [7; 5000]);
    let script = "
def write(at):
    h = nbd.NBD()
    h.connect_uri(uri)
    before = bytes(h.pread(4, 4096))
    h.pwrite(b'mine', 4096, nbd.CMD_FLAG_FUA if at else 0)
    h.flush()
    return h, before
one = write(0)
two = write(1)
print(one[0].get_size(), one[1], two[1], bytes(one[0].pread(4, 4096)))
";
    let server = Server::start(["example3"]);
    assert_eq!(
        nbdsh(&server.uri(), script).ok(),
        "104857600 b'\\x00\\x00\\x00\\x00' b'\\x00\\x00\\x00\\x00' b'mine'\n"
    );
    assert_eq!(leftovers(server.dir()), Vec::<String>::new());
    let server = Server::start(["example4", "size=1M"]);
    assert_eq!(nbdsh(&server.uri(), script).ok(), "1048576 b'\\x00\\x00\\x00\\x00' b'mine' b'mine'\n");
}
