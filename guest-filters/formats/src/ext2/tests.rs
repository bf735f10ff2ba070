//! File systems that mke2fs has made, and damaged ones.

use super::*;
use crate::testing::{Dir, cut_anywhere, read_all, run, sample, source};

/// A file system with a few files, and its bytes.
fn made(name: &str, options: &[&str], size: &str) -> Vec<u8> {
    let dir = Dir::new(&format!("ext2-{name}"));
    let tree = dir.path("tree");
    std::fs::create_dir_all(format!("{tree}/disks/deep/er")).unwrap();
    std::fs::write(format!("{tree}/disks/disk.raw"), sample(700_001, 1)).unwrap();
    std::fs::write(format!("{tree}/disks/deep/er/small"), b"hello").unwrap();
    std::fs::write(format!("{tree}/disks/deep/er/medium"), (1..=130).collect::<Vec<u8>>()).unwrap();
    std::fs::write(format!("{tree}/zeroes"), [0; 130]).unwrap();
    std::fs::write(format!("{tree}/empty"), b"").unwrap();
    std::os::unix::fs::symlink("../../disks/disk.raw", format!("{tree}/disks/link")).unwrap();
    std::os::unix::fs::symlink(format!("/{}disks/link", "./".repeat(60)), format!("{tree}/long")).unwrap();
    let image = dir.path("image");
    run("truncate", &["-s", size, &image]);
    run("/sbin/mke2fs", &[&["-q", "-F", "-d", &tree][..], options, &[&image]].concat());
    std::fs::read(&image).unwrap()
}

fn open(bytes: &[u8], path: &str) -> Result<File, Error> {
    File::open(source(bytes), path, Journal::Refuse)
}

fn line_of(bytes: &[u8], path: &str) -> String {
    match open(bytes, path).and_then(|file| read_all(&file)) {
        Err(Error::Image(line)) => line,
        other => panic!("{path}: {other:?}"),
    }
}

/// Where the inode of a path is, as debugfs says.
fn inode_at(bytes: &[u8], number: u32) -> usize {
    let superblock = Superblock::read(&bytes.to_vec()).unwrap();
    superblock.inode_offset(number, |at, into| bytes.to_vec().read(at, into)).unwrap() as usize
}

fn number_of(bytes: &[u8], path: &str) -> u32 {
    let below = source(bytes);
    let superblock = Superblock::read(&*below).unwrap();
    paths::find(&System::new(below, superblock), path).unwrap().number
}

#[test]
fn files_of_every_kind_of_file_system_are_read() {
    for (name, options) in [
        ("2-1k", &["-t", "ext2", "-b", "1024"][..]),
        ("2-4k", &["-t", "ext2", "-b", "4096"]),
        ("rev0", &["-t", "ext2", "-r", "0"]),
        ("3-2k", &["-t", "ext3", "-b", "2048"]),
        ("4-1k", &["-t", "ext4", "-b", "1024"]),
        ("4-4k", &["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"]),
        ("4-64k", &["-t", "ext4", "-b", "65536"]),
        ("inline", &["-t", "ext4", "-O", "inline_data", "-I", "256"]),
        ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "16384", "-b", "1024"]),
        ("meta", &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "512"]),
        ("sparse2", &["-t", "ext4", "-O", "sparse_super2,meta_bg,^resize_inode", "-b", "1024", "-g", "256"]),
        ("ea", &["-t", "ext4", "-O", "ea_inode,large_dir,encrypt,verity,project,quota,mmp"]),
    ] {
        let bytes = made(name, options, "24M");
        let read =
            |path: &str| read_all(&open(&bytes, path).unwrap_or_else(|error| panic!("{name}: {error}"))).unwrap();
        // With inline_data mke2fs cuts a file that ends in zeroes. debugfs says what is there.
        let dir = Dir::new(&format!("ext2-dump-{name}"));
        run("/sbin/debugfs", &["-R", &format!("dump /disks/disk.raw {}", dir.path("out")), &dir.file("fs", &bytes)]);
        let disk = std::fs::read(dir.path("out")).unwrap();
        assert!(name == "inline" || disk == sample(700_001, 1), "{name}");
        for path in ["/disks/disk.raw", "/disks/link", "/long", "/disks/../disks/disk.raw"] {
            assert!(read(path) == disk, "{name}: {path}");
        }
        assert_eq!(read("/disks/deep/er/small"), b"hello", "{name}");
        assert_eq!(read("/disks/deep/er/medium"), (1..=130).collect::<Vec<u8>>(), "{name}");
        assert_eq!(read("/zeroes"), [0; 130], "{name}");
        assert_eq!(read("/empty"), b"", "{name}");
        let line = "there is no file '/disks/none': '/disks' has no 'none'";
        assert_eq!(line_of(&bytes, "/disks/none"), line, "{name}");
        let report = report(&source(&bytes)).unwrap();
        assert_eq!(report.dangers, [""; 0], "{name}");
    }
}

#[test]
fn numbers_at_the_edges_of_a_superblock_give_a_line() {
    let bytes = made("superblock", &["-t", "ext4", "-b", "1024"], "4M");
    for (at, value, line) in [
        (
            88,
            &[3u8, 0][..],
            "the superblock is damaged: the size of an inode is 3, and has to be a power of two from 128 to 1024",
        ),
        (40, &[0; 4], "the superblock is damaged: the number of inodes in a group is 0, and has to be 1 to 8192"),
        (32, &[0; 4], "the superblock is damaged: the number of blocks in a group is 0, and has to be at least 8"),
        (20, &[2, 0, 0, 0], "the superblock is damaged: the first data block is 2, and has to be 0 or 1"),
        (
            96,
            &[1, 0, 0, 0x80],
            "the file system has features that are not supported: compression, incompatible 0x80000000",
        ),
        (
            96,
            &[6, 2, 0, 0],
            "the journal has changes that are not in their places: the file system is in use, or was not \
          unmounted. Run e2fsck on it, or read what is in place with ext2-journal=ignore",
        ),
        (56, &[0, 0], "it is not an ext2, ext3 or ext4 file system: it has no superblock at 1024"),
        (0, &[1, 0, 0, 0], "there is no inode 2: the file system has 1"),
    ] {
        let mut bytes = bytes.clone();
        bytes[1024 + at..][..value.len()].copy_from_slice(value);
        assert_eq!(line_of(&bytes, "/empty"), line);
    }
    assert!(!(INFO.probe)(&bytes[..1500].to_vec()).unwrap());
    let mut bytes = bytes;
    bytes[1024 + 96] |= 4;
    assert!(File::open(source(&bytes), "/empty", Journal::Ignore).is_ok_and(|file| !file.is_writable()));
    // The descriptor of the first group names a table past the end.
    bytes[1024 + 96] &= !4;
    bytes[2048 + 8..][..4].copy_from_slice(&[0xff; 4]);
    let line = "the descriptor of group 0 has inodes at block 4294967295, and there are 4096";
    assert_eq!(line_of(&bytes, "/empty"), line);
}

#[test]
fn trees_of_extents_that_are_wrong_give_a_line() {
    let bytes = made("extents", &["-t", "ext4", "-b", "1024"], "4M");
    let number = number_of(&bytes, "/disks/deep/er/medium");
    let map = inode_at(&bytes, number) + 40;
    for (at, value, line) in [
        (0, &[1u8, 2][..], "a node of its extents begins with 0x201, not with 0xf30a"),
        (2, &[5, 0], "a node of its extents has 5 entries, and room for 4"),
        (6, &[6, 0], "the tree of its extents has a depth of 6, and at most 5 is right"),
        (16, &[0, 0], "the extent at block 0 of the file has no blocks"),
        (
            20,
            &[0xff; 4],
            "blocks from block 0 of the file on are at block 4294967295, and the file system has 4096 blocks",
        ),
    ] {
        let mut bytes = bytes.clone();
        bytes[map + at..][..value.len()].copy_from_slice(value);
        let there = line_of(&bytes, "/disks/deep/er/medium");
        assert!(there.starts_with(&format!("inode {number}: ")) && there.ends_with(line), "{there}");
    }
    // A node that names itself as its child: the depth has to go down.
    let mut looped = bytes.clone();
    let block = 4000u32;
    let mut node = vec![0x0a, 0xf3, 1, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    node.extend(block.to_le_bytes());
    node.extend([0; 4]);
    looped[map..][..24].copy_from_slice(&node);
    looped[block as usize * 1024..][..24].copy_from_slice(&node);
    let line = format!("inode {number}: a node of its extents has the depth 1, and its place 0");
    assert_eq!(line_of(&looped, "/disks/deep/er/medium"), line);
    // A size beyond what blocks can be counted for.
    let mut large = bytes.clone();
    large[map - 40 + 108..][..4].copy_from_slice(&[0xff; 4]);
    let line = line_of(&large, "/disks/deep/er/medium");
    assert!(line.ends_with("and a file has at most 4398046511104 bytes"), "{line}");
}

#[test]
fn directories_and_maps_of_ext2_that_are_wrong_give_a_line() {
    let bytes = made("blocks", &["-t", "ext2", "-b", "1024"], "4M");
    let number = number_of(&bytes, "/disks/disk.raw");
    let map = inode_at(&bytes, number) + 40;
    let mut past = bytes.clone();
    past[map..][..4].copy_from_slice(&9999u32.to_le_bytes());
    let line = format!(
        "inode {number}: 1 blocks from block 0 of the file on are at block 9999, and the file system has 4096 blocks"
    );
    assert_eq!(line_of(&past, "/disks/disk.raw"), line);
    // A map that names its own indirect block ends all the same.
    let mut looped = bytes.clone();
    let indirect = u32::from_le_bytes(looped[map + 48..][..4].try_into().unwrap());
    looped[map + 52..][..4].copy_from_slice(&indirect.to_le_bytes());
    looped[indirect as usize * 1024..][..1024].copy_from_slice(&indirect.to_le_bytes().repeat(256));
    assert!(read_all(&open(&looped, "/disks/disk.raw").unwrap()).is_ok());
    // A size that the map cannot have.
    let mut long = bytes.clone();
    long[map - 40 + 108..][..4].copy_from_slice(&[0, 1, 0, 0]);
    let file = open(&long, "/disks/disk.raw").unwrap();
    let line = format!("inode {number}: a block map has 16843020 blocks, and the file is longer");
    assert_eq!(file.read(file.size() - 1, &mut [0]), Err(Error::image(line)));
    // An entry whose name crosses the end of its block, a directory that is its own child.
    let disks = number_of_directory(&bytes, b"disks");
    let block = u32::from_le_bytes(bytes[inode_at(&bytes, disks) + 40..][..4].try_into().unwrap()) as usize * 1024;
    let mut crossing = bytes.clone();
    crossing[block + 12 + 6] = 250;
    let line = format!(
        "the directory of inode {disks} is damaged: it has an entry of 12 bytes with a name of 250 at 12 of a block"
    );
    assert_eq!(line_of(&crossing, "/disks/disk.raw"), line);
    let mut circle = bytes.clone();
    let at = circle[block..block + 1024].windows(4).position(|bytes| bytes == b"deep").unwrap() + block;
    circle[at - 8..][..4].copy_from_slice(&disks.to_le_bytes());
    assert!(open(&circle, "/disks/deep/deep/deep/disk.raw").is_ok());
}

fn number_of_directory(bytes: &[u8], name: &[u8]) -> u32 {
    let below = source(bytes);
    let system = System::new(below.clone(), Superblock::read(&*below).unwrap());
    system.lookup(&system.root(), name).unwrap().unwrap().number
}

#[test]
fn holes_and_encrypted_files_are_told() {
    let dir = Dir::new("ext2-fallocated");
    let bytes = made("holes", &["-t", "ext4", "-b", "1024", "-O", "encrypt"], "8M");
    let number = number_of(&bytes, "/disks/disk.raw");
    let mut secret = bytes.clone();
    let flags = inode_at(&bytes, number) + 32;
    secret[flags + 1] |= 8;
    assert_eq!(
        line_of(&secret, "/disks/disk.raw"),
        "'/disks/disk.raw' is encrypted, and the key is not in the file system"
    );
    // fallocate leaves blocks that nobody wrote.
    let image = dir.file("image", &bytes);
    run("/sbin/debugfs", &["-w", "-R", "fallocate /empty 4 9", &image]);
    run("/sbin/debugfs", &["-w", "-R", "sif /empty size 20000000000", &image]);
    let file = open(&std::fs::read(&image).unwrap(), "/empty").unwrap();
    assert_eq!(file.size(), 20_000_000_000);
    let mut list = ExtentList::new(0, file.size());
    file.extents(&mut list).unwrap();
    let told: Vec<_> = list.into_answer().unwrap().iter().map(|e| (e.length, e.kind.bits())).collect();
    assert_eq!(told, [(4096, 3), (6144, 2), (20_000_000_000 - 10240, 3)]);
    assert_eq!(image::read(&file, 19_999_999_000, 1000), Ok(vec![0; 1000]));
}

#[test]
fn a_file_system_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for (name, options) in [("cut-2", &["-t", "ext2", "-b", "1024"][..]), ("cut-4", &["-t", "ext4", "-b", "4096"])] {
        cut_anywhere(&made(name, options, "24M"), 0..4608, &sample(700_001, 1), |image| {
            File::open(image, "/disks/link", Journal::Refuse).and_then(|file| read_all(&file))
        });
    }
}
