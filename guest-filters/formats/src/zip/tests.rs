use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, read};

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};
use crate::unpack::Unpacked;
use crate::unpack::checks::{random_reads, same, starts_of_a_sequential_read};

fn content(archive: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let image = source(archive);
    let entry = find(&image, name.as_bytes()).map_err(|error| error.to_string())?;
    let again = entry_at(&image, entry.at).map_err(|error| error.to_string())?;
    assert_eq!((again.name, again.local), (entry.name.clone(), entry.local));
    open_entry(image, &entry, &Storage::default())
        .and_then(|member| read_all(&*member))
        .map_err(|error| error.to_string())
}

fn line(archive: &[u8], name: &str) -> String {
    content(archive, name).unwrap_err()
}

/// What a script makes of an archive with Python's zipfile: `z` is it, opened for writing, and
/// `data` holds the bytes of the file `data`.
fn python(dir: &Dir, script: &str) -> Vec<u8> {
    let path = dir.path("python.zip");
    let _ = std::fs::remove_file(&path);
    let code = format!(
        "import sys, zipfile\nS, D = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED\ndata = open(sys.argv[2], 'rb').read()\n\
         class Pipe:\n def __init__(self, f): self.f = f\n def write(self, b): return self.f.write(b)\n \
         def flush(self): pass\n\
         with open(sys.argv[1], 'wb') as f:\n with zipfile.ZipFile(f, 'w', D) as z:\n  {script}\n"
    );
    run("/usr/bin/python3", &["-W", "ignore", "-c", &code, &path, &dir.path("data")]);
    std::fs::read(path).unwrap()
}

#[test]
fn what_the_programs_archived_is_what_it_was() {
    let dir = Dir::new("zip-oracle");
    let data = sample(3_000_001, 5);
    dir.file("data", &data);
    dir.file("empty", b"");
    let (path, at) = (dir.path("a.zip"), dir.path(""));
    for level in ["-0", "-1", "-9"] {
        let _ = std::fs::remove_file(&path);
        run("sh", &["-c", &format!("cd {at} && zip -q {level} a.zip data empty")]);
        let archive = std::fs::read(&path).unwrap();
        assert!(probe(&archive).unwrap());
        assert!(content(&archive, "data").as_ref() == Ok(&data), "zip {level}");
        assert_eq!(content(&archive, "empty"), Ok(vec![]));
        assert_eq!(report(&source(&archive)).unwrap().dangers, [""; 0]);
    }
    // To a pipe: with data descriptors.
    run("sh", &["-c", &format!("cd {at} && zip -q - data empty | cat > piped.zip; zip -q -fz large.zip data")]);
    for name in ["piped.zip", "large.zip"] {
        let archive = std::fs::read(dir.path(name)).unwrap();
        let read = content(&archive, "data");
        assert!(read.as_ref() == Ok(&data), "{name}: {:?}", read.err());
    }
    let archive = python(&dir, "z.writestr('data', data, S); z.open('z', 'w', force_zip64=True).close()");
    assert!(content(&archive, "data").as_ref() == Ok(&data), "Python's");
    assert_eq!(content(&archive, "z"), Ok(vec![]));
    // bsdtar writes descriptors as well, and an entry for the directory.
    run("bsdtar", &["-c", "-f", &path, "--format=zip", "-C", &at, "data"]);
    assert!(content(&std::fs::read(&path).unwrap(), "data").as_ref() == Ok(&data), "bsdtar's");
    // More members than 16 bits can count: a zip64 end record.
    let many = python(&dir, "[z.writestr(f'm{n}', b'x', S) for n in range(66000)]; z.writestr('data', data)");
    assert!(content(&many, "data").as_ref() == Ok(&data), "66000 members");
}

/// The deflated member `data` of an archive.
fn deflated(archive: &[u8], storage: &Storage) -> Unpacked<inflate::Deflated> {
    let image = source(archive);
    let entry = find(&image, b"data").unwrap();
    let start = data_of(&*image, &Directory::find(&*image).unwrap(), &entry).unwrap();
    inflate::open(Rc::new(Part::new(image, start, entry.stored).unwrap()), &entry, storage).unwrap()
}

#[test]
fn a_deflated_member_is_read_in_any_order() {
    let dir = Dir::new("zip-random");
    for size in [1, 300_000, 5_000_000, 30_000_000] {
        let data = sample(size, 6);
        dir.file("data", &data);
        let archive = python(&dir, "z.writestr('data', data)");
        same(&deflated(&archive, &Storage::Memory(0)), &data);
        same(&deflated(&archive, &Storage::Memory(1 << 30)), &data);
    }
}

#[test]
fn a_large_member_is_decoded_once_and_resumed_at_points() {
    let dir = Dir::new("zip-points");
    let data = sample(30 << 20, 7);
    dir.file("data", &data);
    let archive = python(&dir, "z.writestr('data', data)");
    let file = deflated(&archive, &Storage::Memory(0));
    assert!((5..=8).contains(&file.points()), "{} points", file.points());
    assert_eq!(starts_of_a_sequential_read(&file), 1, "a sequential reader continues one decoder");
    let file = deflated(&archive, &Storage::Memory(1 << 30));
    random_reads(&file, &data, 30);
    assert_eq!(file.starts(), 0, "all of it is kept");
    // One that fits in memory is decoded when it is read, and once.
    dir.file("data", &data[..8 << 20]);
    let file = deflated(&python(&dir, "z.writestr('data', data)"), &Storage::Memory(0));
    random_reads(&file, &data[..8 << 20], 100);
    assert!(file.starts() <= 2, "{} starts", file.starts());
}

#[test]
fn the_disk_of_an_archive_is_found_without_a_name() {
    let dir = Dir::new("zip-only");
    dir.file("data", b"disk");
    let archive = python(&dir, "z.writestr('README.txt', b'x'); z.writestr('d/', b''); z.writestr('d/disk.raw', data)");
    assert_eq!(read_all(&*open(source(&archive)).unwrap()), Ok(b"disk".to_vec()));
    let archive = python(&dir, "z.writestr('a', b'x'); z.writestr('b', data)");
    let refused = "the archive has 2 files, and none is the only disk: choose with zip-entry=: 'a', 'b'";
    assert_eq!(open(source(&archive)).err(), Some(Error::image(refused)));
    assert_eq!(line(&archive, "c"), "the archive has no member 'c'; it has 'a', 'b'");
    assert_eq!(line(&python(&dir, "pass"), "c"), "the archive has no member 'c'; it has no members");
}

#[test]
fn members_that_are_no_plain_files_are_refused() {
    let dir = Dir::new("zip-refused");
    dir.file("data", b"disk");
    let script = "i = zipfile.ZipInfo('l'); i.create_system = 3; i.external_attr = 0xa1ff << 16; \
                  z.writestr(i, b'/etc/passwd'); z.writestr('d/', b''); z.writestr('b', data, zipfile.ZIP_BZIP2); \
                  z.writestr('../x', data); z.writestr('e', data, S); z.writestr('e', data, S)";
    let archive = python(&dir, script);
    assert_eq!(line(&archive, "l"), "'l' is a symbolic link: choose the file, links are not followed");
    assert_eq!(line(&archive, "d/"), "'d/' is a directory");
    let method = "'b' is compressed by method 12; stored (0) and deflated (8) members are supported";
    assert_eq!(line(&archive, "b"), method);
    assert_eq!(line(&archive, "e"), "two members have the name 'e'");
    let dangers = [
        "'l' is a symbolic link",
        "a member's name leads out of the directory: '../x'",
        "two members have the name 'e'",
    ];
    assert_eq!(report(&source(&archive)).unwrap().dangers, dangers);
    let (path, at) = (dir.path("secret.zip"), dir.path(""));
    run("sh", &["-c", &format!("cd {at} && zip -q -P secret secret.zip data")]);
    assert_eq!(line(&std::fs::read(path).unwrap(), "data"), "'data' is encrypted, which is not supported");
}

/// An archive of one stored member, `a` with the bytes `12345`, and where its entry and its end
/// record begin.
fn small() -> (Vec<u8>, usize, usize) {
    let dir = Dir::new(&format!("zip-small-{:?}", std::thread::current().id()));
    dir.file("data", b"12345");
    let archive = python(&dir, "z.writestr('a', data, S)");
    let entry = archive.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let end = archive.len() - 22;
    (archive, entry, end)
}

#[test]
fn headers_that_do_not_agree_are_refused() {
    let (archive, entry, _) = small();
    assert_eq!(content(&archive, "a").unwrap(), b"12345");
    let refused = |at: usize, byte: u8| {
        let mut archive = archive.clone();
        archive[at] = byte;
        line(&archive, "a")
    };
    let differ = |what: &str| format!("'a': the local header at 0 and the central directory do not agree: {what}");
    assert_eq!(refused(30, b'b'), differ("the name is 'b'"));
    assert_eq!(refused(8, 8), differ("methods 8 and 0"));
    assert_eq!(refused(6, 1), differ("flags 0x1 and 0x0"));
    assert_eq!(refused(14, 0), differ("checksum and sizes (cbf53a00, 5, 5) and (cbf53a1c, 5, 5)"));
    assert_eq!(refused(18, 4), differ("checksum and sizes (cbf53a1c, 4, 5) and (cbf53a1c, 5, 5)"));
    assert_eq!(refused(0, 0), "'a' has no local header at 0");
    assert_eq!(refused(entry + 42, 200), "'a' is not within the archive: it has 5 bytes from 200 on");
    assert_eq!(refused(entry + 23, 1), "'a' is not within the archive: it has 16777221 bytes from 0 on");
    assert_eq!(refused(26, 0xff), "'a' is not within the archive: it has 5 bytes from 0 on");
    let mut stored = archive.clone();
    (stored[22], stored[entry + 24]) = (6, 6);
    assert_eq!(line(&stored, "a"), "'a' is stored as it is, with 5 bytes, and claims 6");
}

#[test]
fn directories_that_lie_are_refused() {
    let (archive, entry, end) = small();
    let refused = |at: usize, byte: u8| {
        let mut archive = archive.clone();
        archive[at] = byte;
        line(&archive, "a")
    };
    let none = "it is not a zip archive, or it was cut: it has no end of a central directory";
    assert_eq!(refused(end, 0), none);
    assert_eq!(refused(end + 20, 1), none);
    let split = "the archive is split into several files, which is not supported";
    assert_eq!(refused(end + 10, 2), split);
    let mut two = archive.clone();
    (two[end + 8], two[end + 10]) = (2, 2);
    assert_eq!(line(&two, "a"), "the central directory has 1 members, and its end record says 2");
    (two[end + 8], two[end + 10]) = (0, 0);
    assert_eq!(line(&two, "a"), "the central directory has more members than its end record says, 0");
    assert!(refused(end + 16, 0).ends_with(&format!("does not end where its end record begins, at {end}")));
    assert_eq!(refused(entry, 0), format!("the entry of the central directory at {entry} has no signature"));
    assert!(refused(entry + 28, 0xff).contains("has 47 bytes, and a field at 46 of 255 bytes"));
    // A comment with another end record: programs look from different sides.
    let mut trick = archive.clone();
    trick[end + 20] = 22;
    trick.extend_from_slice(&archive[end..]);
    let line_of_two = "the archive has 2 ends of a central directory: programs do not agree which counts";
    assert_eq!(line(&trick, "a"), line_of_two);
    for length in 0..archive.len() {
        assert!(content(&archive[..length], "a").is_err(), "cut after {length} bytes");
    }
    let mut large = archive.clone();
    (large[end + 8..end + 12]).fill(0xff);
    assert_eq!(line(&large, "a"), "the central directory has 1 members, and its end record says 65535");
}

#[test]
fn an_archive_of_ten_million_members_is_refused() {
    let count = 10_000_000u64.to_le_bytes();
    // The end record with 64 bits, where it is, and the end record that says so.
    let mut archive = [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 12], &count, &count, &[0; 16]].concat();
    archive.extend([&b"PK\x06\x07"[..], &[0; 12], &[1, 0, 0, 0]].concat());
    archive.extend([&b"PK\x05\x06"[..], &[0; 4], &[0xff; 12], &[0; 2]].concat());
    let refused = "the central directory has 10000000 members in 0 bytes; at most 1000000 in 268435456 are read";
    assert_eq!(line(&archive, "a"), refused);
}

#[test]
fn deflated_data_that_lies_gives_a_line() {
    let dir = Dir::new("zip-lies");
    dir.file("data", &sample(300_000, 8));
    let archive = python(&dir, "z.writestr('a', data)");
    let entry = archive.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    let with_size = |size: u32| {
        let mut archive = archive.clone();
        archive[22..26].copy_from_slice(&size.to_le_bytes());
        archive[entry + 24..entry + 28].copy_from_slice(&size.to_le_bytes());
        line(&archive, "a")
    };
    let data = "'a': its deflated data";
    assert_eq!(with_size(300_001), format!("{data} gives 300000 bytes, and 300001 are promised"));
    assert_eq!(with_size(299_999), format!("{data} gives more than the 299999 bytes that are promised"));
    assert!(with_size(0xffff_fff0).starts_with("'a' claims 4294967280 bytes, more than "));
    let mut wrong = archive.clone();
    wrong[31..200].fill(0xff);
    assert_eq!(line(&wrong, "a"), format!("{data} is wrong around its byte 1"));
    // A wrong checksum in both headers.
    let mut wrong = archive.clone();
    wrong[14..18].fill(0);
    wrong[entry + 16..entry + 20].fill(0);
    let found = u32::from_le_bytes(archive[14..18].try_into().unwrap());
    let crc = format!("{data} gives the wrong CRC: the directory says 00000000, and the data has {found:08x}");
    assert_eq!(line(&wrong, "a"), crc);
    // The deflated data is cut, and both headers say so.
    let stored = u32::from_le_bytes(archive[18..22].try_into().unwrap()) - 1000;
    let mut wrong = archive.clone();
    wrong[18..22].copy_from_slice(&stored.to_le_bytes());
    wrong[entry + 20..entry + 24].copy_from_slice(&stored.to_le_bytes());
    let cut = line(&wrong, "a");
    assert!(cut.starts_with(&format!("{data} ends after 29")) && cut.ends_with("of 300000 bytes"), "{cut}");
}

#[test]
fn a_bomb_takes_no_room() {
    let dir = Dir::new("zip-bomb");
    dir.file("data", &vec![0; 200 << 20]);
    let archive = python(&dir, "z.writestr('data', data)");
    assert!(archive.len() < 300 << 10);
    let file = deflated(&archive, &Storage::Memory(0));
    assert_eq!(file.size(), 200 << 20);
    assert!(read(&file, 150 << 20, 1 << 20).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(file.starts(), 0, "what is known to be zero is not decoded again");
}
