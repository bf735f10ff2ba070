//! Images of Parallels in both formats.

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};

#[test]
fn parallels_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-parallels");
    let raw = dir.file("raw", &sample(200_000 / 512 * 512, 1));
    let image = dir.path("image");
    run("qemu-img", &["convert", "-f", "raw", "-O", "parallels", "-o", "cluster_size=64k", &raw, &image]);
    let newer = std::fs::read(image).unwrap();
    let mut older = newer.clone();
    older[..16].copy_from_slice(b"WithoutFreeSpace");
    fuzz("parallels", &[newer, older], rbdkit_filter_formats::parallels::INFO.open);
}
