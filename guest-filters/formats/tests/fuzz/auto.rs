//! Finding out what an image is: formats within each other.

use rbdkit_filter_formats::auto::{Wanted, open};
use rbdkit_filter_formats::testing::{Dir, fuzz, piped, run, sample};
use rbdkit_filter_sdk::image::Error;

/// A qcow2 image alone, in gzip, in xz in tar, and in a zip archive; and a disk with partitions.
fn images() -> Vec<Vec<u8>> {
    let dir = Dir::new("fuzz-auto");
    let (raw, image, at) = (dir.file("raw", &sample(70_000, 1)), dir.path("image"), dir.path(""));
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let qcow2 = std::fs::read(&image).expect("the image");
    dir.file("image.xz", &piped("xz", &["-0"], &qcow2));
    run("sh", &["-c", &format!("cd {at} && tar -cf a.tar image.xz && zip -q a.zip image")]);
    let disk = dir.file("disk", &vec![0; 256 << 10]);
    piped("/sbin/sfdisk", &["-q", &disk], b"label: gpt\n,64K\n");
    let read = |name: &str| std::fs::read(dir.path(name)).expect("the file");
    vec![piped("gzip", &[], &qcow2), read("a.tar"), read("a.zip"), read("disk"), qcow2]
}

#[test]
fn mutated_images_of_any_format_are_found_out_or_refused() {
    fuzz("auto", &images(), |image| {
        let (found, image) = open(image, &Wanted::Found { depth: 4 })?;
        let _ = rbdkit_filter_formats::auto::json(&found, 1);
        image.ok_or_else(|| Error::Image(found.refused.unwrap_or_default()))
    });
}
