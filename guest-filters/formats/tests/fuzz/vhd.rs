//! Dynamic and fixed VHD images, and differencing ones.

use std::rc::Rc;

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample};
use rbdkit_filter_sdk::image::Source;

#[test]
fn vhd_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-vhd");
    let raw = dir.file("raw", &sample((1 << 20) + 1536, 1));
    let mut seeds = Vec::new();
    for option in ["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on", "subformat=dynamic"] {
        let image = dir.path(option);
        run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", option, &raw, &image]);
        seeds.push(std::fs::read(image).unwrap());
    }
    // The dynamic image as a differencing one.
    let mut differencing = seeds[0].clone();
    let end = differencing.len() - 512;
    for start in [0, end] {
        differencing[start + 63] = 4;
    }
    seeds.push(differencing);
    // Checksums are made right, since a mutated image would not be opened otherwise.
    fuzz("vhd", &seeds, |image| {
        let mut bytes = rbdkit_filter_formats::testing::read_all(&*image)?;
        let footer = bytes.len().saturating_sub(512);
        for (start, length, at) in [(0, 512, 64), (512, 1024, 36), (footer, 512, 64)] {
            if let Some(part) = bytes.get_mut(start..start + length) {
                part[at..at + 4].fill(0);
                let sum = !part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
                part[at..at + 4].copy_from_slice(&sum.to_be_bytes());
            }
        }
        let parent = || Ok(Some(Rc::new(vec![1u8; 500_000]) as Rc<dyn Source>));
        Ok(Rc::new(rbdkit_filter_formats::vhd::open(Rc::new(bytes), parent)?))
    });
}
