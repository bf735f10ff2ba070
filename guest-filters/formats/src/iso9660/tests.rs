//! Images that genisoimage has made, and damaged ones.

use super::*;
use crate::testing::{Dir, cut_anywhere, read_all, run, sample, source};

fn made(name: &str, options: &[&str]) -> Vec<u8> {
    let dir = Dir::new(&format!("iso-{name}"));
    let tree = dir.path("tree");
    std::fs::create_dir_all(format!("{tree}/disks/2/3/4/5/6/7/8/9/10")).unwrap();
    std::fs::write(format!("{tree}/disks/disk.img"), sample(70_001, 1)).unwrap();
    std::fs::write(format!("{tree}/disks/2/3/4/5/6/7/8/9/10/deep.img"), b"deep").unwrap();
    std::fs::write(format!("{tree}/disks/{}.img", "long".repeat(12)), b"long").unwrap();
    std::fs::write(format!("{tree}/empty"), b"").unwrap();
    for n in 0..100 {
        std::fs::write(format!("{tree}/disks/file{n}"), [n]).unwrap();
    }
    std::os::unix::fs::symlink("/./disks/../disks/disk.img", format!("{tree}/link")).unwrap();
    let image = dir.path("image");
    run("genisoimage", &[&["-quiet", "-V", "A_LABEL", "-D", "-o", &image][..], options, &[&tree]].concat());
    std::fs::read(&image).unwrap()
}

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
fn files_are_found_by_each_kind_of_name() {
    let long = format!("/disks/{}.img", "long".repeat(12));
    for (name, options) in [("rock", &["-R"][..]), ("both", &["-R", "-J"]), ("joliet", &["-J"])] {
        let bytes = made(name, options);
        assert!(read(&bytes, "/disks/disk.img").unwrap() == sample(70_001, 1), "{name}");
        assert_eq!(read(&bytes, "/disks/2/3/4/5/6/7/8/9/10/deep.img").unwrap(), b"deep", "{name}");
        assert_eq!(read(&bytes, "/disks/file77").unwrap(), [77], "{name}");
        assert_eq!(read(&bytes, "/empty").unwrap(), b"", "{name}");
        assert_eq!(read(&bytes, &long).unwrap(), b"long", "{name}");
        if name != "joliet" {
            assert!(read(&bytes, "/link").unwrap() == sample(70_001, 1), "{name}");
            assert!(read(&bytes, "/disks/DISK.IMG").is_err(), "{name}");
        }
        let report = report(&source(&bytes)).unwrap();
        assert_eq!((report.facts[0].1.as_str(), report.dangers.len()), ("'A_LABEL'", 0));
    }
    let plain = made("plain", &[]);
    for path in ["/DISKS/DISK.IMG;1", "/disks/disk.img", "/Disks/Disk.img"] {
        assert!(read(&plain, path).unwrap() == sample(70_001, 1), "{path}");
    }
}

#[test]
fn directories_that_were_moved_are_found_where_they_were() {
    let dir = Dir::new("iso-moved");
    let tree = dir.path("tree");
    std::fs::create_dir_all(format!("{tree}/1/2/3/4/5/6/7/8/9/10")).unwrap();
    std::fs::write(format!("{tree}/1/2/3/4/5/6/7/8/9/10/deep"), b"deep").unwrap();
    run("genisoimage", &["-quiet", "-R", "-o", &dir.path("image"), &tree]);
    let bytes = std::fs::read(dir.path("image")).unwrap();
    assert_eq!(read(&bytes, "/1/2/3/4/5/6/7/8/9/10/deep").unwrap(), b"deep");
}

#[test]
fn a_file_in_pieces_is_put_together() {
    let pieces = Pieces::new(&[(10, 2048), (0, 0), (30, 100)], 2048);
    assert_eq!(pieces.size(), 2148);
    assert_eq!(pieces.run(2047), Ok(Run { length: 1, place: Place::At(20480 + 2047) }));
    assert_eq!(pieces.run(2050), Ok(Run { length: 98, place: Place::At(61442) }));
    assert!(pieces.run(2148).is_err());
}

#[test]
fn what_is_wrong_in_an_image_gives_a_line() {
    let bytes = made("wrong", &[]);
    assert_eq!(line_of(&bytes, "/disks/none"), "there is no file '/disks/none': '/disks' has no 'none'");
    assert_eq!(
        line_of(&bytes[..32768], "/x"),
        "it is not an ISO 9660 file system: it has no primary volume descriptor"
    );
    let root = Descriptors::read(&bytes.to_vec()).unwrap().primary.root.0 as usize * 2048;
    let find = |name: &[u8]| bytes.windows(name.len()).position(|there| there == name).unwrap() - 33;
    let empty = find(b"EMPTY.;1");
    for (at, value, line) in [
        (32768 + 128, &[3u8, 0][..], "the volume descriptor says blocks of 3 bytes, and not 512 to 2048".to_string()),
        (root, &[33], "a directory is damaged: it has a record of 33 bytes with a name of 1".to_string()),
        (root + 32, &[200], "a directory is damaged: it has a record of 34 bytes with a name of 200".to_string()),
        (empty, &[40], "a directory is damaged: it has a record of 40 bytes with a name of 8".to_string()),
        (empty + 25, &[0x80], "the last piece of 'empty' is missing in its directory".to_string()),
        (empty + 26, &[1], "'/empty' is interleaved with others, which is not supported".to_string()),
        (empty + 10, &[1, 0, 0, 0x10], "the image names 2048 bytes".to_string()),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..][..value.len()].copy_from_slice(value);
        if line.starts_with("the image names") {
            let file = open_file(source(&bytes), "/empty").unwrap();
            let there = file.read(file.size() - 1, &mut [0]).unwrap_err().to_string();
            assert!(there.contains(&format!("and ends after {} bytes", bytes.len())), "{there}");
            continue;
        }
        assert_eq!(line_of(&bytes, "/empty"), line);
    }
    // A directory beyond the end, and one that is its own child.
    // The name is in the path table too, which lies in front.
    let disks = root + bytes[root..].windows(5).position(|there| there == b"DISKS").unwrap() - 33;
    let mut past = bytes.clone();
    past[disks + 2..][..4].copy_from_slice(&[0xff; 4]);
    let line = format!(
        "a directory has {} bytes at {}, and the image ends after {}",
        8192,
        0xffff_ffffu64 * 2048,
        bytes.len()
    );
    let there = line_of(&past, "/disks/x");
    assert_eq!(there.split_once(" at ").unwrap().1, line.split_once(" at ").unwrap().1);
    let mut circle = bytes.clone();
    circle[disks + 2..][..4].copy_from_slice(&((root / 2048) as u32).to_le_bytes());
    assert_eq!(read(&circle, "/disks/disks/disks/empty").unwrap(), b"");
    assert!(!probe(&bytes[..34000].to_vec()).unwrap());
}

#[test]
fn zisofs_is_refused_and_a_field_that_goes_on_for_ever_ends() {
    let bytes = made("fields", &["-R"]);
    let at = bytes.windows(10).position(|there| there == b"NM\x0a\x01\x00empty").unwrap();
    let px = at + bytes[at..].windows(2).position(|there| there == b"TF").unwrap();
    let mut zisofs = bytes.clone();
    zisofs[px..px + 2].copy_from_slice(b"ZF");
    assert_eq!(line_of(&zisofs, "/empty"), "'/empty' is compressed with zisofs, which is not supported");
    // The field goes on at an area that goes on at itself.
    let mut area = b"CE\x1c\x01".to_vec();
    for number in [1u32, 0, 28] {
        area.extend(number.to_le_bytes());
        area.extend(number.to_be_bytes());
    }
    let mut endless = bytes.clone();
    endless[2048..][..28].copy_from_slice(&area);
    let px = at + bytes[at..].windows(2).position(|there| there == b"PX").unwrap();
    endless[px..][..28].copy_from_slice(&area);
    assert_eq!(line_of(&endless, "/empty"), "the Rock Ridge field of a file goes on too often, or at a wrong place");
}

#[test]
fn an_image_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for (name, options, path) in [("cut", &["-R"][..], "/link"), ("cut-joliet", &["-J"], "/disks/disk.img")] {
        // Up to the end of the second descriptor.
        cut_anywhere(&made(name, options), 32 << 10..(32 << 10) + 4096, &sample(70_001, 1), |image| {
            open_file(image, path).and_then(|file| read_all(&file))
        });
    }
}
