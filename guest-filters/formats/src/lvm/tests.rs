use super::*;
use crate::testing::lvm::{EXTENT, FIRST, metadata, physical, put_text, seal_area, seal_label, segment};
use crate::testing::{read_all, source};

fn content(image: &[u8], name: Option<&str>) -> Result<Vec<u8>, String> {
    open_volume(source(image), name).and_then(|volume| read_all(&*volume)).map_err(|error| error.to_string())
}

fn extents_of(image: &[u8], first: usize, count: usize) -> &[u8] {
    &image[FIRST + first * EXTENT..FIRST + (first + count) * EXTENT]
}

#[test]
fn linear_and_striped_volumes_are_read() {
    let (one, two) = (segment(0, 2, 1, "\"pv0\", 5"), segment(2, 3, 1, "\"pv0\", 20"));
    let striped = segment(0, 4, 2, "\"pv0\", 30,\n\"pv0\", 40");
    let text = metadata(7, &[("root", &[&one, &two]), ("fast", &[&striped])]);
    let image = physical(&text);
    let root = [extents_of(&image, 5, 2), extents_of(&image, 20, 3)].concat();
    assert!(content(&image, Some("vg0/root")).as_ref() == Ok(&root));
    assert!(content(&image, Some("root")).as_ref() == Ok(&root));
    let (left, right) = (extents_of(&image, 30, 2), extents_of(&image, 40, 2));
    let stripes = left.chunks(16 * 512).zip(right.chunks(16 * 512));
    let fast: Vec<u8> = stripes.flat_map(|(left, right)| [left, right].concat()).collect();
    assert!(content(&image, Some("fast")).as_ref() == Ok(&fast));
    let choose =
        "the volume group 'vg0' does not have exactly one volume: choose with lvm-volume=; there are 'root', 'fast'";
    assert_eq!(content(&image, None).unwrap_err(), choose);
    let none = "there is no volume 'vg1/root'; the volume group 'vg0' has 'root', 'fast'";
    assert_eq!(content(&image, Some("vg1/root")).unwrap_err(), none);
    let only = physical(&metadata(1, &[("root", &[&one])]));
    assert!(content(&only, None).is_ok());
    let report = report(&source(&image)).unwrap();
    assert_eq!(report.facts[..2], [("volume group", "'vg0'".into()), ("volumes", "'root', 'fast'".into())]);
    assert!(probe(&image).unwrap() && !probe(&vec![0; 4096]).unwrap());
    // The text runs over the end of the ring.
    let mut image = image;
    put_text(&mut image, 4096, (64 << 10) - 512, &text);
    assert!(content(&image, Some("root")).as_ref() == Ok(&root));
}

#[test]
fn the_newer_of_two_metadata_areas_counts() {
    let (old, new) = (segment(0, 1, 1, "\"pv0\", 1"), segment(0, 1, 1, "\"pv0\", 2"));
    let mut image = physical(&metadata(3, &[("a", &[&old])]));
    let second = 512 << 10;
    image[512 + 120..512 + 128].copy_from_slice(&(second as u64).to_le_bytes());
    seal_label(&mut image);
    put_text(&mut image, second, 512, &metadata(4, &[("a", &[&new])]));
    assert!(content(&image, None).unwrap() == extents_of(&image, 2, 1));
    let danger = "two areas have metadata of different age, 3 and 4: the newer counts";
    assert_eq!(report(&source(&image)).unwrap().dangers, [danger]);
}

#[test]
fn volumes_that_are_not_here_alone_are_refused() {
    let refused = |segment: &str| content(&physical(&metadata(1, &[("a", &[segment])])), None).unwrap_err();
    let mirror = segment(0, 1, 1, "\"pv0\", 1").replace("striped", "thin-pool");
    assert_eq!(refused(&mirror), "segment 1 of 'a' is of the type 'thin-pool'; linear and striped ones are supported");
    let other =
        "segment 1 of 'a' is on the physical volume 'pv1', and this is 'pv0': volumes on several are not supported";
    assert_eq!(refused(&segment(0, 1, 1, "\"pv1\", 1")), other);
}

#[test]
fn numbers_that_lie_give_a_line() {
    let refused = |segment: &str| content(&physical(&metadata(1, &[("a", &[segment])])), None).unwrap_err();
    let s = "segment 1 of 'a'";
    let most = u64::MAX;
    let beyond = "beyond the end of the physical volume";
    assert_eq!(refused(&segment(0, 1, 1, "\"pv0\", 100")), format!("{s} has 65536 bytes at extent 100, {beyond}"));
    assert_eq!(
        refused(&segment(0, 1, 1, &format!("\"pv0\", {most}"))),
        format!("{s} has 65536 bytes at extent {most}, {beyond}")
    );
    assert_eq!(refused(&segment(0, most, 1, "\"pv0\", 0")), format!("{s} has {most} extents on 1 stripes"));
    assert_eq!(refused(&segment(0, 0, 1, "\"pv0\", 0")), format!("{s} has 0 extents on 1 stripes"));
    assert_eq!(refused(&segment(0, 3, 2, "\"pv0\", 0, \"pv0\", 9")), format!("{s} has 3 extents on 2 stripes"));
    assert_eq!(
        refused(&segment(1, 1, 1, "\"pv0\", 0")),
        format!("{s} begins at extent 1, and the one before ends at 0")
    );
    assert_eq!(refused(&segment(0, 1, 5, "\"pv0\", 0")), format!("{s} has 5 stripes and 2 values for them"));
    assert_eq!(
        refused(&segment(0, 1, 1, "0, \"pv0\"")),
        format!("{s} has stripes that are not a name and a number each")
    );
    let odd = segment(0, 2, 2, "\"pv0\", 0, \"pv0\", 9");
    assert_eq!(refused(&odd.replace("= 16", "= 0")), format!("{s} has stripes of 0 bytes, and extents have 65536"));
    assert_eq!(refused("type = 1"), format!("the metadata of LVM has no text type in {s}"));
    let segments = metadata(1, &[("a", &[])]);
    assert_eq!(
        content(&physical(&segments), None).unwrap_err(),
        "the volume 'a' has 0 segments; 1 to 10000 are supported"
    );
    let many = segments.replace("segment_count = 0", "segment_count = 9000");
    assert_eq!(content(&physical(&many), None).unwrap_err(), "the volume 'a' has no segment 1");
}

#[test]
fn a_label_and_areas_that_are_wrong_give_a_line() {
    let whole = physical(&metadata(1, &[("a", &[&segment(0, 1, 1, "\"pv0\", 1")])]));
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = whole.clone();
        change(&mut image);
        content(&image, None).unwrap_err()
    };
    let no_label = "it is not a physical volume of LVM2: none of the first four sectors has its label";
    assert_eq!(refused(&|image| image[512] = 0), no_label);
    let label = "the label of LVM in sector 1";
    assert_eq!(refused(&|image| image[600] ^= 1), format!("{label} has a wrong checksum"));
    assert_eq!(refused(&|image| image[520] = 2), format!("{label} says that it is in 2"));
    let changed = |at: usize, bytes: &[u8]| {
        refused(&|image| {
            image[512 + at..512 + at + bytes.len()].copy_from_slice(bytes);
            seal_label(image);
        })
    };
    assert!(changed(20, &[0xff; 4]).contains("the label of LVM has 512 bytes, and a field at 4294967295"));
    let endless = changed(72, &[1; 512 - 72]);
    assert_eq!(endless, "the label of LVM names more than 16 areas");
    assert_eq!(
        changed(104, &[0xff; 7]),
        "the image names 512 bytes at 72057594037927935, and ends after 7602176 bytes"
    );
    let none = "the physical volume has no metadata: it is in no volume group, or others keep it";
    assert_eq!(changed(104, &[0; 8]), none);
    assert!(changed(32, b"z").starts_with("the metadata of LVM does not name this physical volume, 'zbcdef"));
    let area = "the metadata area of LVM at 4096";
    assert_eq!(refused(&|image| image[4096 + 50] ^= 1), format!("{area} has a wrong checksum"));
    assert_eq!(refused(&|image| image[4096 + 1030] ^= 1), format!("{area} has a text with a wrong checksum"));
    let huge = refused(&|image| {
        image[4096 + 48..4096 + 56].fill(0xff);
        seal_area(image, 4096);
    });
    let most = "at most 1048576 are read";
    assert_eq!(huge, format!("{area} of 65536 bytes says that its text has {} bytes at 1024; {most}", u64::MAX));
    for length in (0..8192).step_by(37) {
        assert!(content(&whole[..length], None).is_err(), "cut after {length} bytes");
    }
}

#[test]
fn text_that_is_wrong_gives_its_place() {
    let line = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
    let at =
        |at: usize, what: &str, here: &str| format!("the metadata of LVM is wrong at byte {at}: {what}, not '{here}'");
    assert_eq!(line("}"), at(0, "a name is expected", "}"));
    assert_eq!(line("a"), at(1, "= or { is expected", ""));
    assert_eq!(line("a ="), at(3, "a text or a number is expected", ""));
    assert_eq!(line("a = 99999999999999999999"), at(4, "a text or a number is expected", "99999999999999999999"));
    assert_eq!(line("a = \"x"), at(6, "the end of a text is expected", ""));
    assert_eq!(line("a = \"x\\"), at(8, "the end of a text is expected", ""));
    assert_eq!(line("a = [1 2]"), at(7, "a comma or ] is expected", "2]"));
    assert_eq!(line("a {"), at(3, "a name is expected", ""));
    let deep = line(&"a {".repeat(100_000));
    assert!(deep.contains("at most 8 sections are in each other"), "{deep}");
    let section = parse(b"a = [\"x\", 1,] # c\nb { c = \"\\\"\" }").unwrap();
    assert_eq!(section.get("a"), Some(&Value::List(vec![Value::Text("x".into()), Value::Number(1)])));
    assert_eq!(section.section("b").unwrap().text("c", "b"), Ok("\""));
}
