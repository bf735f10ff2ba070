//! File systems of mkfs.ext2, mkfs.ext3 and mkfs.ext4.

use std::rc::Rc;

use rbdkit_filter_formats::ext2::{File, INFO, Journal};
use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};
use rbdkit_filter_sdk::image::Source;

#[test]
fn ext2_file_systems() {
    let dir = Dir::new("fuzz-ext2");
    let tree = dir.path("tree");
    std::fs::create_dir_all(format!("{tree}/dir")).unwrap();
    std::fs::write(format!("{tree}/dir/file"), sample(100_001, 1)).unwrap();
    std::os::unix::fs::symlink("dir/../dir/file", format!("{tree}/f")).unwrap();
    let options = [
        &["-t", "ext2", "-b", "1024"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^has_journal"],
        &["-t", "ext4", "-b", "2048", "-O", "^has_journal,^64bit,meta_bg,^resize_inode"],
        &["-t", "ext4", "-b", "1024", "-O", "^has_journal,inline_data", "-I", "256"],
    ];
    let image = |options: &&[&str]| {
        let image = dir.file("image", &[]);
        run("truncate", &["-s", "400K", &image]);
        run("/sbin/mke2fs", &[&["-q", "-F", "-N", "16", "-d", &tree][..], options, &[&image]].concat());
        std::fs::read(&image).unwrap()
    };
    let seeds: Vec<_> = options.iter().map(image).collect();
    fuzz("ext2", &seeds, |below| {
        let _ = ((INFO.probe)(&*below)?, (INFO.report)(&below)?);
        Ok(Rc::new(File::open(below, "/f", Journal::Ignore)?) as Rc<dyn Source>)
    });
}
