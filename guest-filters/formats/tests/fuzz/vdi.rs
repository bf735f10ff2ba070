//! Dynamic and fixed VDI images.

use std::rc::Rc;

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample, source};
use rbdkit_filter_formats::vdi::{INFO, Vdi};
use rbdkit_filter_sdk::image::Source;

#[test]
fn vdi_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-vdi");
    let raw = dir.file("raw", &sample((1 << 20) + 1536, 1));
    let mut seeds: Vec<Vec<u8>> = ["static=off", "static=on"]
        .iter()
        .map(|option| {
            let image = dir.path(option);
            run("qemu-img", &["convert", "-f", "raw", "-O", "vdi", "-o", option, &raw, &image]);
            std::fs::read(image).unwrap()
        })
        .collect();
    // A differencing one. Block 0 is the parent's.
    let mut differencing = seeds[0].clone();
    differencing[0x4c] = 4;
    differencing[0x1a8] = 1;
    let map = u32::from_le_bytes(differencing[0x154..0x158].try_into().unwrap()) as usize;
    differencing[map..map + 4].fill(0xff);
    seeds.push(differencing);
    let parent = source(&sample(1 << 20, 2));
    fuzz("vdi", &seeds, |image| {
        (INFO.report)(&image)?;
        let open = |parent| Vdi::open(Rc::clone(&image), parent).map(|image| Rc::new(image) as Rc<dyn Source>);
        open(Some(Rc::clone(&parent))).or_else(|_| open(None))
    });
}
