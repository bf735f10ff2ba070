//! VMDK images that qemu-img made.

use std::path::{Path, PathBuf};

use rbdkit_tests::server::filter;
use rbdkit_tests::{TempDir, tool};

use crate::shared::{
    Run, assert_content, assert_holes_are_zero, content, converted, extents, qemu_img, qemu_map, serve,
};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn made(dir: &TempDir, name: &str, content: &[u8], options: &str) -> PathBuf {
    converted(dir, name, content, &["-O", "vmdk", "-o", options])
}

/// What `qemu-img convert` makes of an image.
fn raw(dir: &TempDir, image: &Path) -> Vec<u8> {
    let copy = dir.join("raw-copy");
    qemu_img(&["convert", "-f", "vmdk", "-O", "raw", text(image), text(&copy)]);
    std::fs::read(copy).expect("the copy")
}

/// Serves an image, and compares it with what it has to be and with what qemu-img says of it.
fn compare(image: &Path, parameters: &[&str], content: &[u8], what: &str) -> Vec<Run> {
    let server = serve("vmdk", image, parameters);
    assert_content(&server, content, what);
    let told = extents(&server);
    assert_holes_are_zero(&told, content, what);
    told
}

#[test]
fn every_subformat_of_qemu_is_read_with_its_extents() {
    for (nth, size) in [512, 65536, (1 << 20) + 512, (3 << 20) + 1536, 40 << 20].into_iter().enumerate() {
        let (dir, content) = (TempDir::new(), content(size, nth as u64 + 1));
        for subformat in
            ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
        {
            let name = format!("{subformat}.vmdk");
            let image = made(&dir, &name, &content, &format!("subformat={subformat}"));
            let extent = dir.join(&match subformat {
                "monolithicFlat" => format!("{subformat}-flat.vmdk"),
                "twoGbMaxExtentSparse" => format!("{subformat}-s001.vmdk"),
                _ => format!("{subformat}-f001.vmdk"),
            });
            let parameter = format!("vmdk-extent={}", text(&extent));
            let parameters: &[&str] = if extent.exists() { &[&parameter] } else { &[] };
            let what = format!("{subformat} of {size} bytes");
            let told = compare(&image, parameters, &content, &what);
            assert_eq!(told, qemu_map(&image, "vmdk"), "{what}: the extents");
        }
    }
}

#[test]
fn grains_of_zeroes_are_told_as_qemu_tells_them() {
    let (dir, bytes) = (TempDir::new(), content(1 << 20, 9));
    let image = made(&dir, "zeroed.vmdk", &bytes, "subformat=monolithicSparse,zeroed_grain=on");
    tool("qemu-io", ["-f", "vmdk", "-c", "write -z 128k 192k", text(&image)]).ok();
    let told = compare(&image, &[], &raw(&dir, &image), "zeroed grains");
    assert_eq!(told, qemu_map(&image, "vmdk"));
}

#[test]
fn a_directory_at_the_end_is_read_as_qemu_reads_it() {
    let (dir, bytes) = (TempDir::new(), content((2 << 20) + 512, 11));
    let image = made(&dir, "stream.vmdk", &bytes, "subformat=streamOptimized");
    let mut stream = std::fs::read(&image).expect("the image");
    stream.resize(stream.len().next_multiple_of(512), 0);
    let header = stream[..512].to_vec();
    stream[56..64].fill(0xff);
    let mut marker = [0; 512];
    (marker[0], marker[12]) = (1, 3);
    stream.extend([&marker[..], &header, &[0; 512]].concat());
    let image = dir.file("footer.vmdk", &stream);
    assert!(raw(&dir, &image) == bytes, "qemu reads it");
    let told = compare(&image, &[], &bytes, "a directory at the end");
    assert_eq!(told, qemu_map(&image, "vmdk"));
}

#[test]
fn a_file_of_esx_is_read_as_qemu_reads_it() {
    let dir = TempDir::new();
    let mut bytes = vec![0; 2048];
    bytes[..4].copy_from_slice(b"COWD");
    // 300 sectors in grains of 64 KiB, of which the file has the second and third.
    for (at, number) in [(4, 1u32), (8, 3), (12, 300), (16, 128), (20, 4), (24, 1)] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    // qemu looks for this where other files have their descriptor.
    let lines = b"CID=00000001\nparentCID=ffffffff\n";
    bytes[512..512 + lines.len()].copy_from_slice(lines);
    let mut tables = vec![0; 512 + 4 * 4096];
    (tables[0], tables[512 + 4], tables[512 + 9]) = (5, 37, 1);
    bytes.extend(tables);
    bytes.resize(256 * 512, 0);
    bytes[37 * 512..].fill(3);
    bytes.extend([7; 65536]);
    let image = dir.file("esx.vmdk", &bytes);
    let told = compare(&image, &[], &raw(&dir, &image), "COWD");
    assert_eq!(told, qemu_map(&image, "vmdk"));
}

#[test]
fn a_snapshot_is_read_over_the_parent_that_is_given() {
    let (dir, bytes) = (TempDir::new(), content((1 << 20) + 512, 13));
    let base = made(&dir, "base.vmdk", &bytes, "subformat=monolithicSparse");
    let child = dir.join("child.vmdk");
    qemu_img(&["create", "-q", "-f", "vmdk", "-b", text(&base), "-F", "vmdk", text(&child)]);
    let writes = ["-f", "vmdk", "-c", "write -P 7 64k 100k", "-c", "write -P 9 1M 512", text(&child)];
    tool("qemu-io", writes).ok();
    let expected = raw(&dir, &child);
    assert!(expected != bytes);
    let component = filter("vmdk");
    let parent = format!("vmdk-parent=chain:--wasm-filter={} file {}", text(&component), text(&base));
    let told = compare(&child, &[&parent], &expected, "a snapshot");
    assert_eq!(told, qemu_map(&child, "vmdk"));
    // Without it nobody opens the file that the image names.
    let server = serve("vmdk", &child, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("the image holds only what differs from the parent '");
    server.wait_for_log("base.vmdk': give that disk as vmdk-parent=DISK");
}

#[test]
fn a_disk_of_several_files_is_read_in_their_order() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk", (2 << 30) + (1 << 20));
    tool("qemu-io", ["-f", "raw", "-c", "write -P 5 2147418112 128k", "-c", "write -P 6 0 512", text(&disk)]).ok();
    for (subformat, letter) in [("twoGbMaxExtentSparse", 's'), ("twoGbMaxExtentFlat", 'f')] {
        let image = dir.join(&format!("{subformat}.vmdk"));
        let option = format!("subformat={subformat}");
        qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", &option, text(&disk), text(&image)]);
        let extent =
            |nth: u32| format!("vmdk-extent={}", text(&dir.join(&format!("{subformat}-{letter}{nth:03}.vmdk"))));
        let server = serve("vmdk", &image, &[&extent(1), &extent(2)]);
        qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&disk), &server.uri()]);
        assert_eq!(extents(&server), qemu_map(&image, "vmdk"), "{subformat}");
        drop(server);
        let server = serve("vmdk", &image, &[&extent(2), &extent(1)]);
        tool("nbdinfo", [&server.uri()]).fails();
        server.wait_for_log(&format!("extent 1 ('{subformat}-{letter}001.vmdk'): the file given for it has "));
    }
}

#[test]
fn a_descriptor_that_names_files_of_the_host_opens_none_of_them() {
    let dir = TempDir::new();
    let secret = dir.file("secret", &[b's'; 512]);
    let lines = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 1 FLAT \"{}\" 0\n",
        text(&secret)
    );
    let server = serve("vmdk", &dir.file("disk.vmdk", lines.as_bytes()), &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log(&format!("give extent 1 of 1, which it calls '{}', as vmdk-extent=FILE", text(&secret)));
}
