//! VHD images that qemu-img made, and differencing ones made of them.

use rbdkit_tests::server::filter;
use rbdkit_tests::{Launch, TempDir, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, converted, extents, qemu_img, qemu_map, serve};

/// The bytes of each block but the last one: qemu makes blocks of this size.
const BLOCK: usize = 2 << 20;

/// The sum of the bytes but the four at `at`, complemented, at `at`.
fn sign(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn dynamic_and_fixed_images_of_qemu_are_read_with_their_extents() {
    for (nth, size) in [512, BLOCK, 2 * BLOCK + 1536, 20 << 20].into_iter().enumerate() {
        let (dir, content) = (TempDir::new(), content(size, nth as u64 + 1));
        for option in
            ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size", "subformat=fixed,force_size"]
        {
            let image = converted(&dir, &format!("{option}.vhd"), &content, &["-O", "vpc", "-o", option]);
            let (server, what) = (serve("vhd", &image, &[]), format!("{option}, {size} bytes"));
            // The size is that of whole cylinders unless it is forced.
            let raw = dir.join(&format!("{option}.converted"));
            let paths = [image.to_str().expect("UTF-8"), raw.to_str().expect("UTF-8")];
            qemu_img(&[&["convert", "-f", "vpc", "-O", "raw"][..], &paths].concat());
            let expected = std::fs::read(raw).expect("what qemu reads");
            assert_eq!(expected[..size], content, "{what}: what qemu reads");
            assert_content(&server, &expected, &what);
            let told = extents(&server);
            assert_holes_are_zero(&told, &expected, &what);
            assert_eq!(told, qemu_map(&image, "vpc"), "{what}: the extents");
        }
    }
}

#[test]
fn the_parent_of_a_differencing_image_is_what_the_operator_gave() {
    let (dir, parent, child) = (TempDir::new(), content(2 * BLOCK + 1536, 7), content(2 * BLOCK + 1536, 8));
    let base = converted(&dir, "base.vhd", &parent, &["-O", "vpc", "-o", "subformat=dynamic,force_size"]);
    let image = converted(&dir, "child.vhd", &child, &["-O", "vpc", "-o", "subformat=dynamic,force_size"]);
    let mut bytes = std::fs::read(image).expect("the image");
    // The image becomes a differencing one, of which every third sector is there.
    let end = bytes.len() - 512;
    for footer in [0, end] {
        bytes[footer + 63] = 4;
        sign(&mut bytes[footer..footer + 512], 64);
    }
    bytes[512 + 65] = b'p';
    sign(&mut bytes[512..1536], 36);
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let table = number(512 + 20) as usize;
    let mut expected = parent;
    for block in 0..expected.len().div_ceil(BLOCK) {
        let entry = u32::from_be_bytes(bytes[table + block * 4..][..4].try_into().expect("four bytes"));
        if entry == u32::MAX {
            continue;
        }
        let bitmap = entry as usize * 512;
        bytes[bitmap..bitmap + 512].fill(0);
        for sector in (0..BLOCK / 512).step_by(3) {
            bytes[bitmap + sector / 8] |= 0x80 >> (sector % 8);
            let at = block * BLOCK + sector * 512;
            if at < expected.len() {
                expected[at..at + 512].copy_from_slice(&child[at..at + 512]);
            }
        }
    }
    let image = dir.file("differencing.vhd", &bytes);
    let raw = dir.join("base.vhd.raw");
    let chain = format!("chain:--wasm-filter={} file {}", filter("vhd").display(), base.display());
    for parent in [raw.to_str().expect("UTF-8"), &chain] {
        let server = serve("vhd", &image, &[&format!("vhd-parent={parent}")]);
        assert_content(&server, &expected, parent);
        assert_holes_are_zero(&extents(&server), &expected, parent);
    }
    let server = serve("vhd", &image, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("names the parent 'p': no file is opened by its name, give the parent with vhd-parent=");
}

#[test]
fn the_filter_has_the_name_that_qemu_has_for_the_format() {
    let (dir, content) = (TempDir::new(), content(2 * BLOCK + 1536, 9));
    let image = converted(&dir, "image.vhd", &content, &["-O", "vpc", "-o", "force_size"]);
    for name in ["vhd", "vpc"] {
        let server = Launch::new(["-r", &format!("--filter={name}"), "file", image.to_str().expect("UTF-8")]).start();
        assert_content(&server, &content, name);
    }
}
