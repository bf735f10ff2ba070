//! Images of Parallels that qemu-img made.

use rbdkit_tests::TempDir;

use crate::shared::{assert_content, assert_holes_are_zero, content, converted, extents, qemu_map, serve};

#[test]
fn images_of_qemu_are_read_with_their_extents() {
    for (nth, size) in [512, 1 << 20, (3 << 20) + 512, 20 << 20].into_iter().enumerate() {
        let (dir, content) = (TempDir::new(), content(size, nth as u64 + 1));
        for option in ["cluster_size=1M", "cluster_size=64k"] {
            let options = ["-O", "parallels", "-o", option];
            let image = converted(&dir, &format!("{option}.hds"), &content, &options);
            let (server, what) = (serve("parallels", &image, &[]), format!("{option}, {size} bytes"));
            assert_content(&server, &content, &what);
            let told = extents(&server);
            assert_holes_are_zero(&told, &content, &what);
            assert_eq!(told, qemu_map(&image, "parallels"), "{what}: the extents");
        }
    }
}

#[test]
fn the_older_format_and_one_that_was_not_closed_are_read_as_qemu_reads_them() {
    let (dir, content) = (TempDir::new(), content((2 << 20) + 1024, 5));
    let image = converted(&dir, "disk.hds", &content, &["-O", "parallels", "-o", "cluster_size=64k"]);
    let mut bytes = std::fs::read(&image).expect("the image");
    bytes[..16].copy_from_slice(b"WithoutFreeSpace");
    let entries = u32::from_le_bytes(bytes[32..36].try_into().expect("4 bytes")) as usize;
    for at in (64..64 + entries * 4).step_by(4) {
        let cluster = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        bytes[at..at + 4].copy_from_slice(&(cluster * 128).to_le_bytes());
    }
    let older = dir.file("older.hds", &bytes);
    let server = serve("parallels", &older, &[]);
    assert_content(&server, &content, "the older format");
    assert_eq!(extents(&server), qemu_map(&older, "parallels"));
    bytes[44..48].copy_from_slice(&0x746f_6e59u32.to_le_bytes());
    let server = serve("parallels", &dir.file("open.hds", &bytes), &[]);
    assert_content(&server, &content, "not closed");
    server.wait_for_log("the image was not closed by the program that wrote it: its last writes may be missing");
}
