//! File systems of mkfs.fat.

use std::rc::Rc;

use rbdkit_filter_formats::fat::{INFO, open_file};
use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};
use rbdkit_filter_sdk::image::Source;

#[test]
fn fat_file_systems() {
    let dir = Dir::new("fuzz-fat");
    let file = dir.file("file", &sample(60_001, 1));
    let image = |(width, sectors, size): &(&str, &str, &str)| {
        let image = dir.file("image", &[]);
        run("truncate", &["-s", size, &image]);
        run("/sbin/mkfs.fat", &["-F", width, "-s", sectors, &image]);
        run("mmd", &["-i", &image, "::/dir"]);
        run("mcopy", &["-i", &image, &file, "::/dir/a long name of a file"]);
        // Most of FAT32's smallest file system is empty.
        let mut bytes = std::fs::read(&image).unwrap();
        bytes.truncate(3 << 20);
        bytes
    };
    let seeds: Vec<_> = [("12", "1", "200K"), ("16", "1", "3M"), ("32", "1", "40M")].iter().map(image).collect();
    fuzz("fat", &seeds, |below| {
        let _ = ((INFO.probe)(&*below)?, (INFO.report)(&below)?);
        Ok(Rc::new(open_file(below, "/dir/a long name of a file")?) as Rc<dyn Source>)
    });
}
