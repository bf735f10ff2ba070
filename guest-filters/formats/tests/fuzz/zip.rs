//! The decoder of zip.

use std::rc::Rc;

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};
use rbdkit_filter_formats::unpack::Storage;
use rbdkit_filter_formats::zip::{INFO, find, open_entry};

/// Archives of two files: stored, deflated, with sizes after the data, with 64-bit sizes.
fn archives() -> Vec<Vec<u8>> {
    let dir = Dir::new("fuzz-zip");
    dir.file("disk", &sample(20_000, 1));
    dir.file("other.txt", b"text");
    let at = dir.path("");
    let made = |options: &str| {
        run("sh", &["-c", &format!("cd {at} && rm -f a.zip && zip -q {options} disk other.txt")]);
        std::fs::read(dir.path("a.zip")).expect("the archive")
    };
    [made("-0 a.zip"), made("-9 a.zip"), made("-fd a.zip"), made("-fz a.zip")].into()
}

#[test]
fn mutated_zip_archives_give_a_line_or_a_file() {
    fuzz("zip", &archives(), |image| {
        (INFO.report)(&image)?;
        (INFO.probe)(&*image)?;
        let _ = (INFO.open)(Rc::clone(&image));
        let entry = find(&image, b"disk")?;
        open_entry(image, &entry, &Storage::default())
    });
}
