use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};

/// A header block with a right checksum.
fn block(name: &str, kind: u8, size: u64, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// A member: its header, its data and the padding.
fn member(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = block(name, kind, data.len() as u64, |_| ());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn link(name: &str, kind: u8, to: &str) -> Vec<u8> {
    block(name, kind, 0, |block| block[157..157 + to.len()].copy_from_slice(to.as_bytes()))
}

fn records(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend(format!("{length} {key}={value}\n").bytes());
    }
    bytes
}

fn content(archive: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let image = source(archive);
    let found = find(&image, name.as_bytes(), Limits::default()).map_err(|error| error.to_string())?;
    let again = member_at(&image, found.header).map_err(|error| error.to_string())?;
    assert_eq!((&again.name, again.data), (&found.name, found.data), "the header alone says as much");
    open_member(image, found).and_then(|content| read_all(&content)).map_err(|error| error.to_string())
}

fn line(archive: &[u8], name: &str) -> String {
    content(archive, name).unwrap_err()
}

#[test]
fn what_the_programs_archived_is_what_it_was() {
    let dir = Dir::new("tar-oracle");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(180));
    std::fs::create_dir(dir.path(&"d".repeat(120))).unwrap();
    let files = [("empty", 0), ("one", 1), ("disk.img", 70_001), (long.as_str(), 512), ("\u{e4} b'c", 513)];
    for (n, (name, size)) in files.iter().enumerate() {
        dir.file(name, &sample(*size, n as u64));
    }
    std::fs::hard_link(dir.path("disk.img"), dir.path("linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path("symbolic")).unwrap();
    let names = [&files.map(|(name, _)| name)[..], &["linked", "symbolic"]].concat();
    for (program, format) in
        [("tar", "gnu"), ("tar", "oldgnu"), ("tar", "posix"), ("bsdtar", "pax"), ("bsdtar", "gnutar")]
    {
        let (format, archive, at) = (format!("--format={format}"), dir.path("a.tar"), dir.path(""));
        let args = ["-cf", &archive, &format, "-C", &at];
        run(program, &[&args[..], &names].concat());
        let archive = std::fs::read(&archive).unwrap();
        assert!(probe(&archive).unwrap());
        for (n, (name, size)) in files.iter().enumerate() {
            assert!(content(&archive, name) == Ok(sample(*size, n as u64)), "{program} {format}: {name}");
        }
        assert!(content(&archive, "linked") == Ok(sample(70_001, 2)), "{program} {format}: the hard link");
        let refused = "'symbolic' is a symbolic link to '/etc/passwd': choose the file, links are not followed";
        assert_eq!(line(&archive, "symbolic"), refused);
        let report = report(&source(&archive)).unwrap();
        assert_eq!(report.dangers, ["'symbolic' is a link that leads out of the directory: '/etc/passwd'"]);
        assert_eq!(report.facts[..2], [("members", "7".into()), ("files", "5".into())]);
    }
    let (archive, at) = (dir.path("v7.tar"), dir.path(""));
    run("tar", &["-cf", &archive, "--format=v7", "-C", &at, "one", "disk.img"]);
    let archive = std::fs::read(&archive).unwrap();
    assert!(content(&archive, "disk.img") == Ok(sample(70_001, 2)));
    assert!(!probe(&archive).unwrap(), "it has no signature");
}

/// A file with holes, data at its end, and more runs of data than a header has room for.
fn with_holes(dir: &Dir, name: &str, runs: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(dir.path(name)).unwrap();
    for run in 0..runs {
        file.write_all_at(&sample(5000, run), 4096 + run * 65_536).unwrap();
    }
    file.set_len(runs * 65_536 + 100_003).unwrap();
    std::fs::read(dir.path(name)).unwrap()
}

#[test]
fn members_with_holes_are_read_in_all_versions_of_the_map() {
    let dir = Dir::new("tar-holes");
    for runs in [0, 1, 3, 30, 60] {
        let bytes = with_holes(&dir, "sparse", runs);
        let mut stored = Vec::new();
        for options in [
            &["--format=gnu"][..],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ] {
            let (archive, at) = (dir.path("a.tar"), dir.path(""));
            run("tar", &[&["-cSf", &archive][..], options, &["-C", &at, "sparse"]].concat());
            let archive = std::fs::read(&archive).unwrap();
            assert!(content(&archive, "sparse").as_ref() == Ok(&bytes), "{options:?} with {runs} runs");
            let image = source(&archive);
            let content = open_member(Rc::clone(&image), find(&image, b"sparse", Limits::default()).unwrap()).unwrap();
            assert_eq!(content.start(), None, "{options:?}");
            let mut list = ExtentList::new(0, content.size());
            content.extents(&mut list).unwrap();
            let extents = list.into_answer().unwrap();
            let end = extents.last().map(|last| last.offset + last.length);
            assert_eq!(end, Some(bytes.len() as u64));
            let mut data = 0;
            for extent in &extents {
                let range = extent.offset as usize..(extent.offset + extent.length) as usize;
                match extent.kind.is_empty() {
                    true => data += extent.length,
                    false => assert!(bytes[range].iter().all(|byte| *byte == 0), "{extent:?}"),
                }
            }
            stored.push((extents.len(), data));
        }
        assert!(stored.iter().all(|of| of == &stored[0]), "{stored:?}");
        if runs > 0 {
            assert!(stored[0].1 < bytes.len() as u64 / 2, "holes are told: {stored:?}");
        }
    }
}

#[test]
fn the_disk_of_an_archive_is_found_without_a_name() {
    let ova =
        [member("a.ovf", b'0', b"<Envelope/>"), member("a-disk1.vmdk", b'0', b"KDMV"), member("a.mf", b'0', b"x")];
    assert_eq!(read_all(&*open(source(&ova.concat())).unwrap()).unwrap(), b"KDMV");
    let two = [member("a", b'0', b"1"), member("b", b'0', b"2")].concat();
    let refused = "the archive has 2 files, and none is the only disk: choose with tar-entry=: 'a', 'b'";
    assert_eq!(open(source(&two)).err(), Some(Error::image(refused)));
    assert_eq!(line(&two, "c"), "the archive has no member 'c'; it has 'a', 'b'");
    assert_eq!(line(&[0; 1024], "c"), "the tar archive has no members");
}

#[test]
fn of_two_members_with_one_name_the_first_is_served_and_the_report_says_so() {
    let two = [member("a", b'0', b"1"), member("a", b'0', b"2")].concat();
    assert_eq!(content(&two, "a").unwrap(), b"1");
    assert_eq!(report(&source(&two)).unwrap().dangers, ["two members have the name 'a'"]);
    let names = [member("/etc/passwd", b'0', b"1"), member("../x", b'0', b"2")].concat();
    let dangers = report(&source(&names)).unwrap().dangers;
    let line = "a member's name leads out of the directory: ";
    assert_eq!(dangers, [format!("{line}'/etc/passwd'"), format!("{line}'../x'")]);
}

#[test]
fn hard_links_end_at_a_file_before_them() {
    let links = [member("a", b'0', b"1"), link("b", b'1', "a"), link("c", b'1', "b"), member("a", b'0', b"2")].concat();
    assert_eq!(content(&links, "c").unwrap(), b"1");
    let none = "'c' is a hard link to 'c', and no member before it has that name";
    assert_eq!(line(&link("c", b'1', "c"), "c"), none);
    assert!(line(&[link("c", b'1', "d"), link("d", b'1', "c")].concat(), "c").contains("no member before it"));
    let mut chain = member("0", b'0', b"1");
    for n in 1..12 {
        chain.extend(link(&n.to_string(), b'1', &(n - 1).to_string()));
    }
    assert_eq!(content(&chain, "8").unwrap(), b"1");
    assert_eq!(line(&chain, "10"), "'2' is a hard link behind more than 8 hard links");
    assert_eq!(
        line(&link("s", b'1', "../../etc/passwd"), "s"),
        none.replace("'c'", "'s'").replacen("to 's'", "to '../../etc/passwd'", 1,)
    );
}

#[test]
fn numbers_that_lie_give_a_line() {
    let base256 = |size: [u8; 12]| block("a", b'0', 0, |block| block[124..136].copy_from_slice(&size));
    let mut large = [0; 12];
    (large[0], large[10], large[11]) = (0x80, 1, 2);
    let archive = [base256(large), vec![7; 512]].concat();
    assert_eq!(content(&archive, "a").unwrap(), [7; 258]);
    let ends = "looking for 'a': the header at 0 says that";
    let most = base256([0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(
        line(&most, "a"),
        format!("{ends} 18446744073709551615 bytes follow, and the archive ends after 512 bytes")
    );
    assert!(line(&base256([0xff; 12]), "a").contains("it is not a tar archive: the header at 0 is wrong: its size is"));
    assert!(line(&base256([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "a").contains("its size is"));
    assert!(line(&base256(*b"99999999999\0"), "a").contains("its size is '99999999999\\0'"));
    let directory = line(&block("a/", b'5', 1024, |_| ()), "b");
    assert!(directory.contains("is of a directory or device and has a size, 1024"), "{directory}");
    let mut wrong = member("a", b'0', b"1");
    wrong[0] = b'b';
    assert!(line(&wrong, "a").contains("its checksum is "), "{}", line(&wrong, "a"));
    let cut = [member("a", b'0', b"1"), vec![1; 100]].concat();
    let ends = "looking for 'b': the archive ends within a header: 100 bytes are at 1024, and a header has 512";
    assert_eq!(line(&cut, "b"), ends);
}

#[test]
fn extended_headers_are_limited_and_checked() {
    let pax =
        |records_of: &[(&str, &str)]| [member("x", b'x', &records(records_of)), member("a", b'0', b"12345")].concat();
    assert_eq!(content(&pax(&[("path", "longer"), ("size", "3")]), "longer").unwrap(), b"123");
    assert!(line(&pax(&[("size", "-1")]), "a").ends_with("is wrong: 'size'='-1' is not a number"));
    assert!(line(&pax(&[("size", "99999999999999999999")]), "a").contains("is not a number"));
    let global = [member("x", b'g', &records(&[("size", "1")])), member("a", b'0', b"12345")].concat();
    assert!(line(&global, "a").contains("of all members, which is not supported"));
    let harmless = [member("x", b'g', &records(&[("comment", "1")])), member("a", b'0', b"12345")].concat();
    assert_eq!(content(&harmless, "a").unwrap(), b"12345");
    for wrong in ["5", "999 a=b\n", "0 a=b\n", "7 ab\n..", "18446744073709551615 a=b\n", "6 a=b"] {
        assert!(
            line(&member("x", b'x', wrong.as_bytes()), "a").contains("the extended header at 0 is wrong"),
            "{wrong}"
        );
    }
    let huge = "the extended header at 0 has 1048577 bytes, and at most 1048576 are read";
    assert!(line(&block("x", b'L', (1 << 20) + 1, |_| ()), "a").ends_with(huge));
    assert!(line(&member("x", b'L', b"name"), "a").ends_with("no member follows the extended header at 0"));
    let chain = member("x", b'L', b"name").repeat(100);
    let refused = line(&[chain, member("a", b'0', b"1")].concat(), "name");
    assert!(refused.contains("the first 64 headers of the archive"), "{refused}");
}

#[test]
fn maps_that_lie_give_a_line() {
    let map = |map: &str, size: &str, data: &[u8]| {
        let records = records(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]);
        line(&[member("x", b'x', &records), member("a", b'0', data)].concat(), "a")
    };
    let wrong = |why: &str| format!("the map of the sparse member at 0 is wrong: {why}");
    assert_eq!(map("0,1", "10", b"12"), wrong("it has 1 bytes of data, and 2 are stored"));
    assert_eq!(map("5,1,5,1", "10", b"12"), wrong("data at 5 begins before the data in front of it ends, at 6"));
    assert_eq!(map("9,2", "10", b"12"), wrong("data of 2 bytes at 9 ends beyond its size, 10"));
    let end = wrong("data of 2 bytes at 18446744073709551615 ends beyond its size, 18446744073709551615");
    assert_eq!(map("18446744073709551615,2", "18446744073709551615", b"12"), end);
    assert!(map("5", "10", b"12").ends_with("GNU.sparse.map has an odd number of numbers"));
    let before = |map: &str| {
        let records = records(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "10")]);
        line(&[member("x", b'x', &records), member("a", b'0', map.as_bytes())].concat(), "a")
    };
    let no_number = "the map of the sparse member at 0 has a line that is not a number";
    assert_eq!(before("x\n"), no_number);
    assert_eq!(before("3\n1\n"), no_number);
    assert_eq!(before("200001\n"), "the map of the sparse member at 0 has more than 200000 runs of data");
    assert_eq!(before("0\n"), "the map of the sparse member at 0 ends beyond the member");
    let endless = block("a", b'S', 0, |block| block[482] = 1);
    assert!(line(&endless, "a").ends_with("the archive ends within the map of the sparse member at 0"));
}

/// An archive of empty members, made when it is read.
struct Endless {
    members: u64,
    header: Vec<u8>,
    reads: std::cell::Cell<u64>,
}

impl Source for Endless {
    fn size(&self) -> u64 {
        self.members * 512
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.reads.set(self.reads.get() + 1);
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = self.header[(offset as usize + at) % 512];
        }
        Ok(())
    }
}

#[test]
fn an_archive_of_ten_million_members_ends_the_walk_at_its_limit() {
    let archive = Rc::new(Endless { members: 10_000_000, header: member("x", b'0', b""), reads: Default::default() });
    let image: Rc<dyn Source> = Rc::clone(&archive) as _;
    let told = find(&image, b"disk", Limits::default()).err().map(|error| error.to_string());
    let limit = "looking for 'disk': the first 1000000 headers of the archive, up to offset 512000000, do not have it, \
                 and no more are read";
    assert_eq!(told.as_deref(), Some(limit));
    assert!(archive.reads.get() < 10_000, "{} reads: headers are read many at once", archive.reads.get());
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    let told = find(&image, b"disk", limits).err().map(|error| error.to_string());
    let limit =
        "looking for 'disk': the first 1048576 bytes of the archive do not have it, and tar-limit allows no more";
    assert_eq!(told.as_deref(), Some(limit));
    let report = report(&image).unwrap();
    assert!(
        report.dangers.iter().any(|line| line.starts_with("the list of members ends early: the first 100000 headers"))
    );
    let refused = open(image).err().unwrap().to_string();
    assert!(refused.contains("the first 1000000 headers"), "{refused}");
}

#[test]
fn an_archive_that_is_cut_at_any_byte_gives_a_line_or_the_member() {
    let whole = [member("x", b'x', &records(&[("path", "long")])), member("a", b'0', b"12345")].concat();
    for length in 0..whole.len() {
        match content(&whole[..length], "long") {
            Ok(bytes) => assert!(bytes == b"12345" && length >= 1024 + 512 + 5),
            Err(line) => assert!(!line.is_empty()),
        }
    }
}
