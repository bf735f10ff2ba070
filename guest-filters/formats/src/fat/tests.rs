//! File systems that mkfs.fat and mtools have made, and damaged ones.

use super::*;
use crate::testing::{Dir, cut_anywhere, read_all, run, sample, source};

/// A file system with some files. Every other one of the small files is deleted before the large
/// one is written, so that it lies in pieces.
fn made(width: &str, sectors: &str, size: &str) -> Vec<u8> {
    let dir = Dir::new(&format!("fat-{width}-{sectors}-{:?}", std::thread::current().id()));
    let image = dir.path("image");
    run("truncate", &["-s", size, &image]);
    run("/sbin/mkfs.fat", &["-F", width, "-s", sectors, "-n", "A LABEL", &image]);
    let small = dir.file("small", &sample(3000, 9));
    let large = dir.file("large", &sample(300_001, 1));
    let empty = dir.file("empty", b"");
    run("mmd", &["-i", &image, "::/disks", "::/disks/A long directory name"]);
    for n in 0..20 {
        run("mcopy", &["-i", &image, &small, &format!("::/disks/{n}.bin")]);
    }
    for n in (0..20).step_by(2) {
        run("mdel", &["-i", &image, &format!("::/disks/{n}.bin")]);
    }
    run("mcopy", &["-i", &image, &large, "::/disks/A long directory name/Größe of a long name.img"]);
    run("mcopy", &["-i", &image, &large, "::/SHORT.IMG"]);
    run("mcopy", &["-i", &image, &empty, "::/empty"]);
    std::fs::read(&image).unwrap()
}

const LONG: &str = "/disks/A long directory name/Größe of a long name.img";

fn read(bytes: &[u8], path: &str) -> Result<Vec<u8>, Error> {
    open_file(source(bytes), path).and_then(|file| read_all(&file))
}

fn line_of(bytes: &[u8], path: &str) -> String {
    match read(bytes, path) {
        Err(Error::Image(line)) => line,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn files_of_all_three_widths_are_read_at_any_place() {
    for (width, sectors, size) in [("12", "1", "1440K"), ("12", "4", "4M"), ("16", "1", "8M"), ("32", "1", "40M")] {
        let bytes = made(width, sectors, size);
        for path in [LONG, "/DISKS/a LONG directory name/grÖße of a long name.IMG", "/short.img"] {
            assert!(read(&bytes, path).unwrap() == sample(300_001, 1), "{width} {sectors} {path}");
        }
        assert_eq!(read(&bytes, "/disks/7.bin").unwrap(), sample(3000, 9));
        assert_eq!(read(&bytes, "/empty").unwrap(), b"");
        let file = open_file(source(&bytes), LONG).unwrap();
        for at in [300_000, 5, 150_000, 149_000, 0] {
            assert_eq!(image::read(&file, at, 1).unwrap()[..], sample(300_001, 1)[at as usize..][..1]);
        }
        let report = report(&source(&bytes)).unwrap();
        assert_eq!(report.facts[..2], [("version", format!("FAT{width}")), ("label", "'A LABEL'".to_string())]);
        assert_eq!(report.dangers, [""; 0]);
    }
}

#[test]
fn what_is_wrong_in_a_file_system_gives_a_line() {
    let bytes = made("16", "1", "8M");
    assert_eq!(line_of(&bytes, "/disks/none"), "there is no file '/disks/none': '/disks' has no 'none'");
    assert_eq!(line_of(&bytes, "/disks"), "'/disks' is a directory, and no file");
    let boot = Boot::read(&bytes.to_vec()).unwrap();
    let entry = directory::find(&bytes[boot.root.0 as usize..], "short.img").unwrap().unwrap();
    let next = |bytes: &mut Vec<u8>, cluster: u32, to: u16| {
        bytes[(boot.table + 2 * u64::from(cluster)) as usize..][..2].copy_from_slice(&to.to_le_bytes());
    };
    let first = entry.first;
    let last = boot.clusters + 1;
    for (from, to, line) in [
        (first + 10, first as u16 + 4, format!("the chain of 'SHORT.IMG' comes back to cluster {}", first + 7)),
        (first, first as u16, format!("the chain of 'SHORT.IMG' comes back to cluster {first}")),
        (first + 2, 0xffff, "the chain of 'SHORT.IMG' ends after 3 clusters, and its size needs 586".to_string()),
        (first, 0, format!("a chain leads to cluster 0, and clusters have the numbers 2 to {last}")),
        (first, 0xfff0, format!("a chain leads to cluster 65520, and clusters have the numbers 2 to {last}")),
    ] {
        let mut bytes = bytes.clone();
        next(&mut bytes, from, to);
        assert_eq!(line_of(&bytes, "/short.img"), line);
    }
    // A directory whose chain is a circle.
    let disks = directory::find(&bytes[boot.root.0 as usize..], "disks").unwrap().unwrap();
    let mut circle = bytes.clone();
    next(&mut circle, disks.first, disks.first as u16);
    let line = format!("the chain of 'DISKS' comes back to cluster {}", disks.first);
    assert_eq!(line_of(&circle, "/disks/x").to_uppercase(), line.to_uppercase());
    for (at, value, line) in [
        (19, &[1u8, 0][..], "the boot sector says 1 sectors, and 160 are needed for the tables"),
        (22, &[1, 0], "the boot sector says 16318 clusters, and a table of 1 sectors has no room for them"),
        (3, b"NTFS    ", "this is an NTFS file system; only FAT12, FAT16 and FAT32 are read"),
        (3, b"EXFAT   ", "this is an exFAT file system; only FAT12, FAT16 and FAT32 are read"),
        (11, &[0, 0], "it is not a FAT file system: it has no boot sector of one"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..][..value.len()].copy_from_slice(value);
        let there = line_of(&bytes, "/short.img");
        let digits = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(digits(&there), digits(line), "{there}");
    }
    let mut large = bytes.clone();
    let at = boot.root.0 as usize
        + bytes[boot.root.0 as usize..].chunks(32).position(|e| e.starts_with(b"SHORT")).unwrap() * 32;
    large[at + 28..][..4].fill(0xff);
    assert!(
        line_of(&large, "/short.img")
            .starts_with("'SHORT.IMG' has a size of 4294967295, and the file system has room for")
    );
    assert!(!probe(&bytes[..511].to_vec()).unwrap());
}

#[test]
fn a_file_system_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for (width, sectors, size) in [("12", "2", "2M"), ("16", "1", "9M"), ("32", "1", "41M")] {
        cut_anywhere(&made(width, sectors, size), 0..2048, &sample(300_001, 1), |image| {
            open_file(image, LONG).and_then(|file| read_all(&file))
        });
    }
}
