//! VDI images that qemu-img made.

use rbdkit_tests::{TempDir, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, converted, extents, qemu_map, serve};

#[test]
fn dynamic_and_fixed_images_of_qemu_are_read_with_their_extents() {
    for (nth, size) in [512, 1 << 20, (3 << 20) + 512, 20 << 20].into_iter().enumerate() {
        let (dir, content) = (TempDir::new(), content(size, nth as u64 + 1));
        for option in ["static=off", "static=on"] {
            let image = converted(&dir, &format!("{option}.vdi"), &content, &["-O", "vdi", "-o", option]);
            let (server, what) = (serve("vdi", &image, &[]), format!("{option}, {size} bytes"));
            assert_content(&server, &content, &what);
            let told = extents(&server);
            assert_holes_are_zero(&told, &content, &what);
            assert_eq!(told, qemu_map(&image, "vdi"), "{what}: the extents");
        }
    }
}

#[test]
fn a_block_that_was_discarded_is_a_hole() {
    let (dir, mut content) = (TempDir::new(), vec![7; 3 << 20]);
    let image = converted(&dir, "disk.vdi", &content, &["-O", "vdi"]);
    let mut bytes = std::fs::read(&image).expect("the image");
    bytes[512 + 4..512 + 8].copy_from_slice(&0xffff_fffeu32.to_le_bytes());
    let image = dir.file("discarded.vdi", &bytes);
    content[1 << 20..2 << 20].fill(0);
    let server = serve("vdi", &image, &[]);
    assert_content(&server, &content, "discarded");
    assert_eq!(extents(&server), qemu_map(&image, "vdi"));
}

#[test]
fn a_differencing_image_is_refused_with_its_parent() {
    let dir = TempDir::new();
    let image = converted(&dir, "disk.vdi", &[1; 512], &["-O", "vdi"]);
    let mut bytes = std::fs::read(&image).expect("the image");
    (bytes[0x4c], bytes[0x1b8]) = (4, 1);
    let server = serve("vdi", &dir.file("child.vdi", &bytes), &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("VDI images of the kind differencing with the parent 00000001-0000-0000-0000-000000000000 are");
}
