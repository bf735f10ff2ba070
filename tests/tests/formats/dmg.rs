//! DMG images. No tool for Linux makes them: a script writes them with Python's compressors and
//! property lists. qemu-img and dmg2img read the same.

use std::path::{Path, PathBuf};

use rbdkit_tests::{TempDir, tool};

use crate::shared::{assert_content, assert_holes_are_zero, content, extents, qemu_img, serve};

/// Writes an image: the content, the image, the bytes before the data, and the kinds of chunks in
/// turn. Chunks have 100 sectors, and there are three tables.
const WRITER: &str = r#"
import bz2, lzma, plistlib, struct, sys, zlib
raw, image, before, *kinds = sys.argv[1:]
kinds = [(0x80000000 if kind != 'raw' else 0) + {'raw': 1, 'zlib': 5, 'bzip2': 6, 'xz': 8}[kind] for kind in kinds]
pack = {1: bytes, 0x80000005: zlib.compress, 0x80000006: bz2.compress, 0x80000008: lzma.compress}
content = open(raw, 'rb').read()
size, data, tables, number = len(content) // 512, b'', [], 0
part = -(-size // 3)
for begin in range(0, size, part):
    end, chunks = min(begin + part, size), []
    for first in range(begin, end, 100):
        last, number = min(first + 100, end), number + 1
        bytes_ = content[first * 512:last * 512]
        kind = kinds[number % len(kinds)] if any(bytes_) else number % 2 * 2
        packed = pack[kind](bytes_) if any(bytes_) else b''
        chunks.append((kind, 0, first - begin, last - first, len(data), len(packed)))
        data += packed
    chunks.append((0xffffffff, 0, end - begin, 0, len(data), 0))
    crc = zlib.crc32(content[begin * 512:end * 512])
    head = struct.pack('>4sIQQQII', b'mish', 1, begin, end - begin, 0, 520, number) + bytes(24)
    head += struct.pack('>III', 2, 32, crc) + bytes(124) + struct.pack('>I', len(chunks))
    tables.append(head + b''.join(struct.pack('>IIQQQQ', *chunk) for chunk in chunks))
blkx = [{'Attributes': '0x0050', 'CFName': 'disk', 'Data': table, 'ID': str(n), 'Name': 'disk & more'}
        for n, table in enumerate(tables)]
xml = plistlib.dumps({'resource-fork': {'blkx': blkx, 'plst': [{'Data': bytes(1032), 'ID': '0'}]}})
before = int(before)
koly = struct.pack('>4sIIIQQQQQII', b'koly', 4, 512, 1, 0, before, len(data), 0, 0, 1, 1) + bytes(16)
koly += struct.pack('>III', 2, 32, zlib.crc32(data)) + bytes(124)
koly += struct.pack('>QQ', before + len(data), len(xml)) + bytes(120)
koly += struct.pack('>III', 2, 32, 0) + bytes(124) + struct.pack('>IQ', 1, size) + bytes(12)
assert len(koly) == 512
open(image, 'wb').write(b'\xee' * before + data + xml + koly)
"#;

/// An image of this content, in a directory with the content as `raw`.
fn made(dir: &TempDir, content: &[u8], before: &str, kinds: &[&str]) -> PathBuf {
    let (raw, image) = (dir.file("raw", content), dir.join("disk.dmg"));
    let paths = [raw.to_str().expect("UTF-8"), image.to_str().expect("UTF-8")];
    tool("python3", [&["-c", WRITER][..], &paths, &[before], kinds].concat()).ok();
    image
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn chunks_of_each_type_are_read_as_qemu_and_dmg2img_read_them() {
    // A size that is no multiple of a chunk, and of the three tables.
    let content = content(4001 * 512, 1);
    for (before, kinds, qemu, dmg2img) in [
        ("0", &["raw"][..], true, true),
        ("0", &["zlib"], true, true),
        ("4096", &["zlib", "raw"], true, false),
        ("0", &["bzip2"], false, true),
        ("0", &["raw", "bzip2", "zlib"], false, true),
        ("777", &["xz"], false, false),
        ("0", &["xz", "raw", "bzip2", "zlib"], false, false),
    ] {
        let dir = TempDir::new();
        let image = made(&dir, &content, before, kinds);
        let (server, what) = (serve("dmg", &image, &[]), format!("{kinds:?}, {before} bytes before"));
        assert_content(&server, &content, &what);
        let told = extents(&server);
        assert_holes_are_zero(&told, &content, &what);
        assert!(told.iter().any(|run| run.hole && run.zero), "{what}: {told:?}");
        let plain = dir.join("plain");
        if qemu {
            qemu_img(&["convert", "-f", "dmg", "-O", "raw", text(&image), text(&plain)]);
            assert!(std::fs::read(&plain).expect("qemu's disk") == content, "{what}: qemu");
        }
        if dmg2img {
            tool("dmg2img", ["-s", text(&image), text(&plain)]).ok();
            assert!(std::fs::read(&plain).expect("dmg2img's disk") == content, "{what}: dmg2img");
        }
    }
}

#[test]
fn auto_finds_an_image_by_its_trailer() {
    let (dir, content) = (TempDir::new(), content(1000 * 512, 2));
    let server = serve("auto", &made(&dir, &content, "0", &["zlib"]), &[]);
    assert_content(&server, &content, "auto");
    server.wait_for_log("the image is dmg; the disk has 512000 bytes");
    // Its first bytes are those of a bzip2 file.
    let image = made(&dir, &content, "0", &["bzip2"]);
    assert_content(&serve("auto", &image, &["format=dmg"]), &content, "format=dmg");
    let server = serve("auto", &image, &[]);
    assert_ne!(tool("nbdinfo", ["--size", &server.uri()]).code, 0);
    server.wait_for_log("it has the signatures of dmg and bzip2; format=NAME says which one it is");
}

#[test]
fn encrypted_and_split_and_cut_images_are_refused_with_a_line() {
    let dir = TempDir::new();
    let bytes = std::fs::read(made(&dir, &content(1000 * 512, 3), "0", &["zlib"])).expect("the image");
    let split = {
        let mut bytes = bytes.clone();
        let at = bytes.len() - 512 + 63;
        bytes[at] = 3;
        bytes
    };
    for (name, bytes, line) in [
        ("encrypted", [b"encrcdsa", &bytes[..]].concat(), "the image is encrypted (version 2 of Apple's format)"),
        ("split", split, "the image is part 1 of 3, and images in several files are not supported"),
        ("cut", bytes[..bytes.len() - 1].to_vec(), "it is not a DMG image: no trailer with the signature koly"),
    ] {
        let server = serve("dmg", &dir.file(name, &bytes), &[]);
        tool("nbdinfo", [&server.uri()]).fails();
        server.wait_for_log(line);
    }
}
