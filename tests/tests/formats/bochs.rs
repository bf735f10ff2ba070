//! Growing images that bximage made.

use rbdkit_tests::{TempDir, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, extents, qemu_img, serve};

#[test]
fn growing_images_are_read_and_sectors_without_data_are_holes() {
    for (nth, size) in [512, 1 << 20, (5 << 20) + 512].into_iter().enumerate() {
        let (dir, content) = (TempDir::new(), content(size, nth as u64 + 1));
        let (raw, image, copy) = (dir.file("raw", &content), dir.join("disk.img"), dir.join("copy"));
        let (raw, image_text) = (raw.to_str().expect("UTF-8"), image.to_str().expect("UTF-8"));
        tool("bximage", ["-func=convert", "-imgmode=growing", "-q", raw, image_text]).ok();
        qemu_img(&["convert", "-f", "bochs", "-O", "raw", image_text, copy.to_str().expect("UTF-8")]);
        let expected = std::fs::read(&copy).expect("qemu's copy");
        assert!(expected == content, "{size} bytes: what qemu reads");
        let (server, what) = (serve("bochs", &image, &[]), format!("{size} bytes"));
        assert_content(&server, &content, &what);
        let told = extents(&server);
        assert_holes_are_zero(&told, &content, &what);
        let zeroes = content.chunks(512).filter(|sector| sector.iter().all(|byte| *byte == 0)).count() as u64;
        let holes: u64 = told.iter().filter(|run| run.hole).map(|run| run.length.div_ceil(512)).sum();
        assert_eq!(holes, zeroes, "{what}: bximage writes no sector of zeroes");
    }
}

#[test]
fn an_image_that_needs_another_is_refused_by_its_name() {
    let dir = TempDir::new();
    let image = dir.join("disk.img");
    tool("bximage", ["-func=create", "-hd=10M", "-imgmode=growing", "-q", image.to_str().expect("UTF-8")]).ok();
    let mut bytes = std::fs::read(&image).expect("the image");
    bytes[48..57].copy_from_slice(b"Undoable\0");
    let server = serve("bochs", &dir.file("undoable.img", &bytes), &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("images of the subtype 'Undoable' are not supported");
}
