//! Sparse and compressed VMDK files, descriptors, and what they say of themselves.

use std::rc::Rc;

use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample, source};
use rbdkit_filter_formats::vmdk::{Given, INFO, Vmdk};
use rbdkit_filter_sdk::image::Source;

#[test]
fn vmdk_images_never_make_it_panic_or_loop() {
    let dir = Dir::new("fuzz-vmdk");
    let raw = dir.file("raw", &sample(400_000 / 512 * 512, 1));
    let made = |kind: &str| {
        let image = dir.path(&format!("{kind}.vmdk"));
        let option = format!("subformat={kind}");
        run("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", &option, &raw, &image]);
        std::fs::read(image).unwrap()
    };
    let mut seeds: Vec<Vec<u8>> =
        ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse", "monolithicFlat"].map(made).into();
    let mut footed = seeds[1].clone();
    footed.resize(footed.len().next_multiple_of(512), 0);
    footed[56..64].fill(0xff);
    let mut marker = [0; 512];
    (marker[0], marker[12]) = (1, 3);
    footed.extend([&marker[..], &seeds[1][..512], &[0; 512]].concat());
    seeds.push(footed);
    let mut esx = vec![0; 20_000];
    esx[..4].copy_from_slice(b"COWD");
    for (at, byte) in [(4, 1), (12, 200), (16, 8), (20, 4), (24, 1), (2048, 5), (2560, 30), (2564, 31)] {
        esx[at] = byte;
    }
    seeds.push(esx);
    let extent = std::fs::read(dir.path("twoGbMaxExtentSparse-s001.vmdk")).unwrap();
    fuzz("vmdk", &seeds, |below| {
        let _ = (INFO.report)(&below)?;
        // The operator gives what the image asks for, if it asks for one disk.
        let mut error = match Vmdk::open(Rc::clone(&below), Given::default()) {
            Ok(image) => return Ok(Rc::new(image) as Rc<dyn Source>),
            Err(error) => error,
        };
        for (has_extent, has_parent) in [(true, false), (false, true), (true, true)] {
            let given = Given {
                extents: has_extent.then(|| source(&extent)).into_iter().collect(),
                parent: has_parent.then(|| source(&extent)),
            };
            match Vmdk::open(Rc::clone(&below), given) {
                Ok(image) => return Ok(Rc::new(image)),
                Err(other) => error = other,
            }
        }
        Err(error)
    });
}
