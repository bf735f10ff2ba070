use super::*;
use crate::testing::lvm::{
    EXTENT, FIRST, metadata, other_physical, physical, put_text, seal_area, seal_label, segment,
};
use crate::testing::{cut_anywhere, read_all, sample, source};

fn content(image: &[u8], name: Option<&str>) -> Result<Vec<u8>, String> {
    open_volume(source(image), Vec::new(), name)
        .and_then(|volume| read_all(&*volume))
        .map_err(|error| error.to_string())
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

fn with_others(image: &[u8], others: &[&[u8]]) -> Result<Vec<u8>, String> {
    let others = others.iter().map(|other| source(other)).collect();
    open_volume(source(image), others, None).and_then(|volume| read_all(&*volume)).map_err(|error| error.to_string())
}

#[test]
fn volumes_on_several_physical_volumes_are_read() {
    let (one, two) = (segment(0, 2, 1, "\"pv0\", 5"), segment(2, 3, 1, "\"pv1\", 20"));
    let striped = segment(5, 4, 2, "\"pv1\", 30,\n\"pv0\", 40");
    let text = metadata(7, &[("root", &[&one, &two, &striped])]);
    let (first, second) = (physical(&text), other_physical(Some(&text)));
    let stripes = extents_of(&second, 30, 2).chunks(16 * 512).zip(extents_of(&first, 40, 2).chunks(16 * 512));
    let striped: Vec<u8> = stripes.flat_map(|(left, right)| [left, right].concat()).collect();
    let root = [extents_of(&first, 5, 2), extents_of(&second, 20, 3), &striped].concat();
    assert!(with_others(&first, &[&second]).as_ref() == Ok(&root));
    assert!(with_others(&second, &[&first]).as_ref() == Ok(&root), "any of them is the layer below");
    // Only one of them has the metadata.
    let bare = other_physical(None);
    assert!(with_others(&first, &[&bare]).as_ref() == Ok(&root));
    assert!(with_others(&bare, &[&first]).as_ref() == Ok(&root));
    // The other has newer metadata.
    let newer =
        other_physical(Some(&metadata(8, &[("root", &[&two.replace("start_extent = 2", "start_extent = 0")])])));
    assert!(with_others(&first, &[&newer]).unwrap() == extents_of(&newer, 20, 3));
}

/// The labels that `pvcreate` 2.03.16 wrote on `pv0`, and on `pv1` with `--metadatacopies 0`.
const LABELS: [&str; 2] = [
    "4c4142454c4f4e450100000000000000add8ec8d200000004c564d32203030313361526e49464265774e48724c6e59596a4b703566326d\
     736d304350575a476300000004000000000000100000000000000000000000000000000000000000000000000000000000001000000000\
     000000f00f0000000000000000000000000000000000000000000200000001",
    "4c4142454c4f4e45010000000000000042ba6db2200000004c564d3220303031565879353534725174696934626557654d627765455962\
     64746756774c64306900000004000000000000100000000000000000000000000000000000000000000000000000000000000000000000\
     000000000000000000000200000001",
];

/// What `lvcreate` 2.03.16 wrote for the volumes `stripe` and `span`, without the lines about the
/// host and the time.
const METADATA: &str = include_str!("lvcreate.txt");

#[test]
fn what_the_programs_of_lvm_wrote_is_understood() {
    const EXTENT: usize = 1 << 20;
    let disk = |label: &str, seed: u64| {
        let mut image = sample(64 << 20, seed);
        let digits = label.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let label: Vec<u8> = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        image[..8192].fill(0);
        image[512..512 + label.len()].copy_from_slice(&label);
        image
    };
    let (mut first, second) = (disk(LABELS[0], 1), disk(LABELS[1], 2));
    put_text(&mut first, 4096, 3072, METADATA);
    let volume = |name: &str| {
        let volume = open_volume(source(&first), vec![source(&second)], Some(name)).unwrap();
        read_all(&*volume).unwrap()
    };
    // As `lvs -o devices,seg_pe_ranges` has it: 10-62 of pv0, 10-26 of pv1. Data begins at 1 MiB.
    let of = |disk: &[u8], from: usize, to: usize| disk[(1 + from) * EXTENT..(2 + to) * EXTENT].to_vec();
    assert!(volume("vg0/span") == [of(&first, 10, 62), of(&second, 10, 26)].concat());
    let stripes = [of(&first, 0, 9), of(&second, 0, 9)];
    let rows = stripes[0].chunks(64 << 10).zip(stripes[1].chunks(64 << 10));
    assert!(volume("stripe") == rows.flat_map(|(left, right)| [left, right].concat()).collect::<Vec<u8>>());
}

#[test]
fn extents_of_a_volume_on_two_physical_volumes_are_those_of_each() {
    use rbdkit_filter_sdk::ExtentType;
    use rbdkit_filter_sdk::image::ExtentList;
    /// A disk whose second half is a hole.
    struct Half(Vec<u8>);
    impl Source for Half {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
            self.0.read(offset, into)
        }
        fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
            while !list.is_full() {
                let left = (self.size() / 2).saturating_sub(list.at());
                if left > 0 { list.push_data(left) } else { list.push_hole(list.left()) }
            }
            Ok(())
        }
    }
    // The second half begins in extent 42 of 100.
    let (one, two) = (segment(0, 2, 1, "\"pv0\", 90"), segment(2, 2, 1, "\"pv1\", 3"));
    let text = metadata(1, &[("a", &[&one, &two])]);
    let disks = [physical(&text), other_physical(None)].map(|disk| Rc::new(Half(disk)) as Rc<dyn Source>);
    let [first, second] = disks;
    let volume = open_volume(first, vec![second], None).unwrap();
    let mut list = ExtentList::new(0, volume.size());
    volume.extents(&mut list).unwrap();
    let kinds: Vec<_> = list.into_answer().unwrap().iter().map(|extent| (extent.length, extent.kind)).collect();
    let two_extents = 2 * EXTENT as u64;
    assert_eq!(kinds, [(two_extents, ExtentType::HOLE | ExtentType::ZERO), (two_extents, ExtentType::empty())]);
}

#[test]
fn a_striped_volume_is_looked_at_in_bounded_steps() {
    use rbdkit_filter_sdk::image::ExtentList;
    // 1600 stripes of 8 KiB.
    let text = metadata(1, &[("a", &[&segment(0, 200, 2, "\"pv0\", 0, \"pv1\", 0")])]);
    let volume = open_volume(source(&physical(&text)), vec![source(&other_physical(None))], None).unwrap();
    let mut list = ExtentList::new(0, volume.size());
    volume.extents(&mut list).unwrap();
    let told: u64 = list.into_answer().unwrap().iter().map(|extent| extent.length).sum();
    assert_eq!(told, 1024 * 16 * 512);
}

#[test]
fn volumes_that_are_not_here_are_refused() {
    let with = |segment: &str| physical(&metadata(1, &[("a", &[segment])]));
    let refused = |segment: &str| content(&with(segment), None).unwrap_err();
    let mirror = segment(0, 1, 1, "\"pv0\", 1").replace("striped", "thin-pool");
    assert_eq!(refused(&mirror), "segment 1 of 'a' is of the type 'thin-pool'; linear and striped ones are supported");
    let other = "others-GHIJ-KLmn-opQR-STuv-wxYZ-012345";
    let missing = format!("the volume 'a' is also on 1 other physical volume: give 'pv1' ('{other}') as lvm-pv=DISK");
    let on_both = segment(0, 2, 2, "\"pv0\", 1, \"pv1\", 1");
    assert_eq!(refused(&segment(0, 1, 1, "\"pv1\", 1")), missing);
    assert_eq!(refused(&on_both), missing);
    let nowhere = "segment 1 of 'a' is on the physical volume 'sda', which the volume group does not have";
    assert_eq!(refused(&segment(0, 1, 1, "\"sda\", 1")), nowhere);
    let no_metadata = "the physical volume has no metadata: it is in no volume group, or others keep it (lvm-pv=DISK \
                       gives them)";
    assert_eq!(content(&other_physical(None), None).unwrap_err(), no_metadata);
}

#[test]
fn physical_volumes_that_do_not_belong_are_refused() {
    let text = metadata(1, &[("a", &[&segment(0, 2, 2, "\"pv0\", 1, \"pv1\", 1")])]);
    let (first, second) = (physical(&text), other_physical(None));
    let refused = |others: &[&[u8]]| with_others(&first, others).unwrap_err();
    let it = "it is the physical volume";
    let ids = ["abcdef-GHIJ-KLmn-opQR-STuv-wxYZ-012345", "others-GHIJ-KLmn-opQR-STuv-wxYZ-012345"];
    assert_eq!(refused(&[&first]), format!("disk 1 of lvm-pv: {it} '{}', as is the layer below", ids[0]));
    assert_eq!(refused(&[&second, &second]), format!("disk 2 of lvm-pv: {it} '{}', as is disk 1", ids[1]));
    let no_label = "it is not a physical volume of LVM2: none of the first four sectors has its label";
    assert_eq!(refused(&[&second, &[0; 4096]]), format!("disk 2 of lvm-pv: {no_label}"));
    let mut unknown = second.clone();
    unknown[512 + 32] = b'z';
    seal_label(&mut unknown);
    let id = ids[1].replace("other", "zther");
    assert_eq!(
        refused(&[&unknown]),
        format!("disk 1 of lvm-pv: the metadata of LVM does not name this physical volume, '{id}'")
    );
    let stranger = other_physical(Some(&text.replace("vg0 {\nid = \"x\"", "vg9 {\nid = \"y\"")));
    assert_eq!(
        refused(&[&stranger]),
        "disk 1 of lvm-pv: the metadata is that of the volume group 'vg9' ('y'), and other metadata is that of 'vg0' \
         ('x')"
    );
    // It is shorter than the metadata says.
    let short = &second[..FIRST + EXTENT + 100];
    let size = short.len();
    assert_eq!(
        refused(&[short]),
        format!(
            "segment 1 of 'a' has 65536 bytes at extent 1, beyond the end of the physical volume 'pv1' of {size} bytes"
        )
    );
}

#[test]
fn numbers_that_lie_give_a_line() {
    let refused = |segment: &str| content(&physical(&metadata(1, &[("a", &[segment])])), None).unwrap_err();
    let s = "segment 1 of 'a'";
    let most = u64::MAX;
    let beyond = "beyond the end of the physical volume 'pv0' of 7602176 bytes";
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
    assert!(changed(104, &[0; 8]).starts_with("the physical volume has no metadata: "));
    assert!(changed(32, b"z").starts_with("the metadata of LVM does not name this physical volume, 'zbcdef-"));
    let area = "the metadata area of LVM at 4096";
    assert_eq!(refused(&|image| image[4096 + 50] ^= 1), format!("{area} has a wrong checksum"));
    assert_eq!(refused(&|image| image[4096 + 1030] ^= 1), format!("{area} has a text with a wrong checksum"));
    let huge = refused(&|image| {
        image[4096 + 48..4096 + 56].fill(0xff);
        seal_area(image, 4096);
    });
    let most = "at most 1048576 are read";
    assert_eq!(huge, format!("{area} of 65536 bytes says that its text has {} bytes at 1024; {most}", u64::MAX));
    let expected = extents_of(&whole, 1, 1).to_vec();
    cut_anywhere(&whole, 0..8192, &expected, |image| {
        open_volume(image, Vec::new(), None).and_then(|volume| read_all(&*volume))
    });
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
