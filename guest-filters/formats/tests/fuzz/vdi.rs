//! Dynamic and fixed VDI images.

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};

#[test]
fn vdi_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-vdi");
    let raw = dir.file("raw", &sample((1 << 20) + 1536, 1));
    let seeds: Vec<Vec<u8>> = ["static=off", "static=on"]
        .iter()
        .map(|option| {
            let image = dir.path(option);
            run("qemu-img", &["convert", "-f", "raw", "-O", "vdi", "-o", option, &raw, &image]);
            std::fs::read(image).unwrap()
        })
        .collect();
    fuzz("vdi", &seeds, rbdkit_filter_formats::vdi::INFO.open);
}
