//! The decoder of tar.

use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rbdkit_filter_formats::tar::{INFO, Limits, find, open_member};
use rbdkit_filter_formats::testing::{Dir, fuzz, read_all, run, sample, source};
use rbdkit_filter_sdk::image::{Error, Source};

/// Archives of three small files, in each form, of which `disk` has holes.
pub fn archives(dir: &Dir) -> Vec<Vec<u8>> {
    let disk = std::fs::File::create(dir.path("disk")).expect("a file");
    for at in 0..12 {
        disk.write_all_at(&sample(500, at), at * 20_000).expect("data");
    }
    disk.set_len(300_000).expect("a hole at the end");
    dir.file("other", &sample(700, 1));
    std::fs::hard_link(dir.path("other"), dir.path("linked")).expect("a link");
    let long = "n".repeat(150);
    dir.file(&long, b"long");
    let forms = [
        &["--format=ustar"][..],
        &["--format=gnu"],
        &["--format=gnu", "-S"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ];
    let archive = |form: &&[&str]| {
        let (path, at) = (dir.path("a.tar"), dir.path(""));
        let names: &[&str] = if form[0].ends_with("ustar") { &["disk"] } else { &["disk", &long] };
        run("tar", &[&["-cf", &path][..], form, &["-C", &at, "other"], names, &["linked"]].concat());
        std::fs::read(path).expect("the archive")
    };
    forms.iter().map(archive).collect()
}

/// The archive with right checksums in what looks like headers, so that what is behind them is
/// reached.
fn with_checksums(image: &dyn Source) -> Result<Rc<dyn Source>, Error> {
    let mut bytes = read_all(image)?;
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(source(&bytes))
}

#[test]
fn mutated_tar_archives_give_a_line_or_a_file() {
    let archives = archives(&Dir::new("fuzz-tar"));
    let number = std::cell::Cell::new(0);
    fuzz("tar", &archives, |image| {
        number.set(number.get() + 1);
        let image = if number.get() % 4 == 0 { image } else { with_checksums(&*image)? };
        (INFO.report)(&image)?;
        (INFO.probe)(&*image)?;
        let _ = (INFO.open)(Rc::clone(&image));
        let _ = find(&image, b"linked", Limits::default());
        let member = find(&image, b"disk", Limits::default())?;
        Ok(Rc::new(open_member(image, member)?))
    });
}
