//! VDI images that qemu-img made.

use rbdkit_tests::server::filter;
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
    (bytes[0x4c], bytes[0x1a8]) = (4, 1);
    let server = serve("vdi", &dir.file("child.vdi", &bytes), &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("from the image 00000001-0000-0000-0000-000000000000: give that disk as vdi-parent=DISK");
}

/// The parent is a VDI image as well, which a chain of its own decodes.
#[test]
fn a_differencing_image_is_read_with_the_parent_that_is_given() {
    let (dir, size) = (TempDir::new(), (6 << 20) + 512);
    let (base, change) = (content(size, 7), content(size, 8));
    let parent = converted(&dir, "base.vdi", &base, &["-O", "vdi"]);
    let mut bytes = std::fs::read(converted(&dir, "change.vdi", &change, &["-O", "vdi"])).expect("the image");
    // Of the kind "differencing", with a parent. Every other block was never written, and one was
    // discarded.
    (bytes[0x4c], bytes[0x1a8]) = (4, 1);
    let map = |block: usize| 512 + 4 * block..512 + 4 * block + 4;
    for block in [0, 2, 4, 6] {
        bytes[map(block)].fill(0xff);
    }
    bytes[map(5)].copy_from_slice(&0xffff_fffeu32.to_le_bytes());
    let image = dir.file("snapshot.vdi", &bytes);
    let mut expected = base.clone();
    for block in [1, 3] {
        expected[block << 20..(block + 1) << 20].copy_from_slice(&change[block << 20..(block + 1) << 20]);
    }
    expected[5 << 20..6 << 20].fill(0);
    let component = filter("vdi");
    let chain = format!("vdi-parent=chain:--wasm-filter={} file {}", component.display(), parent.display());
    let server = serve("vdi", &image, &[&chain]);
    assert_content(&server, &expected, "a differencing image");
    assert_holes_are_zero(&extents(&server), &expected, "a differencing image");
}
