//! CD images of genisoimage.

use std::rc::Rc;

use rbdkit_filter_formats::iso9660::{INFO, open_file};
use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};
use rbdkit_filter_sdk::image::Source;

#[test]
fn iso9660_file_systems() {
    let dir = Dir::new("fuzz-iso9660");
    let tree = dir.path("tree");
    std::fs::create_dir_all(format!("{tree}/dir")).unwrap();
    std::fs::write(format!("{tree}/dir/file"), sample(60_001, 1)).unwrap();
    std::os::unix::fs::symlink("dir/../dir/file", format!("{tree}/f")).unwrap();
    let image = |options: &&[&str]| {
        let image = dir.path("image");
        run("genisoimage", &[&["-quiet", "-no-pad", "-o", &image][..], options, &[&tree]].concat());
        std::fs::read(&image).unwrap()
    };
    let seeds: Vec<_> = [&["-R"][..], &["-J"], &[]].iter().map(image).collect();
    fuzz("iso9660", &seeds, |below| {
        let _ = ((INFO.probe)(&*below)?, (INFO.report)(&below)?);
        let file = match open_file(Rc::clone(&below), "/f") {
            Ok(file) => file,
            Err(_) => open_file(below, "/dir/file")?,
        };
        Ok(Rc::new(file) as Rc<dyn Source>)
    });
}
