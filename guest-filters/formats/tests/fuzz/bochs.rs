//! Growing images of Bochs.

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};

#[test]
fn bochs_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-bochs");
    let raw = dir.file("raw", &sample(200_000 / 512 * 512, 1));
    let image = dir.path("image");
    run("bximage", &["-func=convert", "-imgmode=growing", "-q", &raw, &image]);
    fuzz("bochs", &[std::fs::read(image).unwrap()], rbdkit_filter_formats::bochs::INFO.open);
}
