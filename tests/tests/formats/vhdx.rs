//! VHDX images that qemu made, one that it could not close, and differencing ones made of them.

use std::path::{Path, PathBuf};

use rbdkit_tests::server::filter;
use rbdkit_tests::{Launch, TempDir, tool};

use crate::shared::{
    Run, assert_content, assert_holes_are_zero, content, converted, extents, qemu_img, qemu_map, serve,
};

const MIB: usize = 1 << 20;

/// Where qemu puts the block allocation table, the metadata and its items, with a log of 1 MiB.
const BAT: usize = 2 * MIB;
const METADATA: usize = 3 * MIB;
const ITEMS: usize = METADATA + (64 << 10);

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What qemu reads of an image.
fn read_by_qemu(dir: &TempDir, image: &Path) -> Vec<u8> {
    let raw = dir.join("read-by-qemu");
    let paths = [image.to_str().expect("UTF-8"), raw.to_str().expect("UTF-8")];
    qemu_img(&[&["convert", "-f", "vhdx", "-O", "raw"][..], &paths].concat());
    std::fs::read(raw).expect("what qemu reads")
}

/// The runs of blocks that the table has a place for. `qemu-img map` does not tell them.
fn allocated(image: &[u8], size: usize) -> Vec<Run> {
    let number = |at: usize| u64_at(image, at) as usize;
    // The log may be larger: the regions are behind it.
    let regions = (192 << 10) + 16;
    let is_bat = |at: usize| image[at..at + 4] == [0x66, 0x77, 0xc2, 0x2d];
    let (bat, metadata) = if is_bat(regions) { (regions, regions + 32) } else { (regions + 32, regions) };
    let (bat, items) = (number(bat + 16), number(metadata + 16) + (64 << 10));
    let block = u32::from_le_bytes(image[items..items + 4].try_into().expect("four bytes")) as usize;
    let chunk = (1 << 23) * 512 / block;
    let mut runs: Vec<Run> = Vec::new();
    for n in 0..size.div_ceil(block) {
        let is_hole = image[bat + (n + n / chunk) * 8] & 7 != 6;
        let length = block.min(size - n * block) as u64;
        match runs.last_mut() {
            Some(run) if run.hole == is_hole => run.length += length,
            _ => runs.push(Run { start: (n * block) as u64, length, hole: is_hole, zero: is_hole }),
        }
    }
    runs
}

/// The start and the end of each hole.
fn holes(runs: &[Run]) -> Vec<(u64, u64)> {
    runs.iter().filter(|run| run.hole).map(|run| (run.start, run.start + run.length)).collect()
}

#[test]
fn dynamic_and_fixed_images_of_qemu_are_read_with_their_extents() {
    for (nth, size) in [512, MIB, 3 * MIB + 1536, 40 << 20].into_iter().enumerate() {
        let dir = TempDir::new();
        let mut content = content(size, nth as u64 + 1);
        if size > 4 * MIB {
            content[2 * MIB..35 * MIB + 5].fill(0);
        }
        for options in [
            "subformat=dynamic,block_size=1M",
            "subformat=fixed,block_size=1M",
            "subformat=dynamic,block_size=16M,log_size=5M",
            "subformat=dynamic,block_size=2M,block_state_zero=on",
            "subformat=fixed",
        ] {
            let image = converted(&dir, &format!("{options}.vhdx"), &content, &["-O", "vhdx", "-o", options]);
            let (server, what) = (serve("vhdx", &image, &[]), format!("{options}, {size} bytes"));
            assert_eq!(read_by_qemu(&dir, &image), content, "{what}: what qemu reads");
            assert_content(&server, &content, &what);
            let told = extents(&server);
            assert_holes_are_zero(&told, &content, &what);
            let all = Run { start: 0, length: size as u64, hole: false, zero: false };
            assert_eq!(qemu_map(&image, "vhdx"), [all], "{what}: qemu calls everything data");
            let allocated = allocated(&std::fs::read(&image).expect("the image"), size);
            if options.contains("fixed") {
                // Zeroes that the file below knows of are zeroes here as well, and no holes.
                assert_eq!(holes(&told), holes(&allocated), "{what}: the holes");
            } else {
                assert_eq!(told, allocated, "{what}: the extents");
            }
        }
    }
}

/// Makes an image of this size whose log qemu leaves. It writes to the log and then to the table,
/// and fails to write this sector of the table: the last command fails, and so does closing.
fn left_by_qemu(dir: &TempDir, size: &str, commands: &[String], sector: usize) -> PathBuf {
    let image = dir.join(&format!("{size}.vhdx"));
    let path = image.to_str().expect("UTF-8");
    qemu_img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, size]);
    let failing = BAT / 512 + sector;
    let options = format!(
        "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},\
         file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector={failing},\
         file.inject-error.0.errno=5"
    );
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let output = tool("qemu-io", commands.chain(["--image-opts", &options])).fails();
    assert!(output.contains("write failed: Input/output error"), "{output}");
    image
}

#[test]
fn a_log_that_qemu_left_is_replayed_in_memory() {
    let dir = TempDir::new();
    let first = left_by_qemu(&dir, "20M", &["write -P 7 3M 2M".into()], 0);
    // Each block makes an entry of 8 KiB, so 141 of them go around the log. The last one is in the
    // second 4 KiB of the table.
    let many = (0..140).map(|n| format!("write -P {} {n}M 3k", n + 1)).chain(["write -P 9 600M 1M".into()]);
    let second = left_by_qemu(&dir, "700M", &many.collect::<Vec<_>>(), 8);
    for (image, at, byte) in [(first, 3 * MIB, 7), (second, 600 * MIB, 9)] {
        let dirty = std::fs::read(&image).expect("the image");
        let server = serve("vhdx", &image, &[]);
        let replayed = dir.file("replayed.vhdx", &dirty);
        qemu_img(&["check", "-r", "all", replayed.to_str().expect("UTF-8")]);
        let expected = read_by_qemu(&dir, &replayed);
        assert_eq!((expected[at], expected[at + MIB]), (byte, 0), "the log has this block");
        assert_content(&server, &expected, "the image with its log");
        assert_eq!(extents(&server), allocated(&std::fs::read(replayed).expect("the image"), expected.len()));
        assert!(std::fs::read(&image).expect("the image") == dirty, "the image is not written");
    }
}

/// Makes a differencing image of an image of qemu's with blocks of 1 MiB, in which only every third
/// sector is there. Returns it, and puts these sectors into `disk`.
fn differencing(base: &[u8], image: &[u8], child: &[u8], disk: &mut [u8]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    bytes[ITEMS + 4] |= 2;
    // The sixth item: the parent locator.
    bytes[METADATA + 10] = 6;
    let entry = METADATA + 32 + 5 * 32;
    let locator_guid = 0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c_u128;
    bytes[entry..entry + 16].copy_from_slice(&guid(locator_guid));
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let header = [64 << 10, 128 << 10].into_iter().max_by_key(|at| u64_at(base, at + 8)).expect("two");
    let id: [u8; 16] = base[header + 32..header + 48].try_into().expect("sixteen bytes");
    let hex: String = guid(u128::from_be_bytes(id)).iter().map(|byte| format!("{byte:02x}")).collect();
    let linkage = format!("{{{}-{}-{}-{}-{}}}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let mut locator = guid(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913).to_vec();
    locator.extend([0, 0, 2, 0]);
    let mut texts = Vec::new();
    for (key, value) in [("parent_linkage", linkage.as_str()), ("relative_path", "..\\base.vhdx")] {
        let (key, value, at) = (utf16(key), utf16(value), 44 + texts.len() as u32);
        locator.extend([at.to_le_bytes(), (at + key.len() as u32).to_le_bytes()].concat());
        locator.extend([(key.len() as u16).to_le_bytes(), (value.len() as u16).to_le_bytes()].concat());
        texts.extend([key, value].concat());
    }
    locator.extend(texts);
    bytes[entry + 16..entry + 20].copy_from_slice(&(80u32 << 10).to_le_bytes());
    bytes[entry + 20..entry + 24].copy_from_slice(&(locator.len() as u32).to_le_bytes());
    bytes[entry + 24] = 4;
    bytes[METADATA + (80 << 10)..][..locator.len()].copy_from_slice(&locator);
    // The bitmap of the first chunk, behind all blocks. It is entry 4096.
    bytes.resize(bytes.len().next_multiple_of(MIB), 0);
    let bitmap = bytes.len();
    bytes.resize(bitmap + MIB, 0);
    bytes[BAT + 4096 * 8..][..8].copy_from_slice(&(bitmap as u64 | 6).to_le_bytes());
    for block in 0..disk.len().div_ceil(MIB) {
        let state = &mut bytes[BAT + block * 8];
        match *state & 7 {
            6 => *state += 1,
            // A zero block hides the parent's.
            _ => {
                *state &= !7;
                continue;
            }
        }
        for sector in (block * 2048..(block + 1) * 2048).step_by(3) {
            bytes[bitmap + sector / 8] |= 1 << (sector % 8);
            let at = sector * 512;
            if at < disk.len() {
                disk[at..at + 512].copy_from_slice(&child[at..at + 512]);
            }
        }
    }
    bytes
}

/// A GUID as images have it, from its digits or back.
fn guid(digits: u128) -> [u8; 16] {
    let mut bytes = digits.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[test]
fn the_parent_of_a_differencing_image_is_what_the_operator_gave() {
    let size = 5 * MIB + 1536;
    let dir = TempDir::new();
    let mut contents = [7, 8, 9].map(|seed| content(size, seed));
    // The parent's third block shows through two children.
    contents[1][2 * MIB..3 * MIB].fill(0);
    contents[2][2 * MIB..4 * MIB].fill(0);
    let options = ["-O", "vhdx", "-o", "block_size=1M"];
    let images: Vec<Vec<u8>> = (0..3)
        .map(|n| std::fs::read(converted(&dir, &format!("{n}.vhdx"), &contents[n], &options)).expect("the image"))
        .collect();
    let (base, raw) = (dir.join("0.vhdx"), dir.join("0.vhdx.raw"));
    let mut disk = contents[0].clone();
    let middle = differencing(&images[0], &images[1], &contents[1], &mut disk);
    let (path, component) = (dir.file("middle.vhdx", &middle), filter("vhdx"));
    let chain = format!("chain:--wasm-filter={} file {}", component.display(), base.display());
    for parent in [base.to_str().expect("UTF-8"), raw.to_str().expect("UTF-8"), &chain] {
        let server = serve("vhdx", &path, &[&format!("vhdx-parent={parent}")]);
        assert_content(&server, &disk, parent);
        assert_holes_are_zero(&extents(&server), &disk, parent);
    }
    // A child of the child: its parent is a chain that has a parent of its own.
    let child = differencing(&middle, &images[2], &contents[2], &mut disk);
    let child = dir.file("child.vhdx", &child);
    let (component, middle) = (component.display(), path.display());
    let chain = format!("chain:--wasm-filter={component} file {middle} vhdx-parent={}", base.display());
    let server = serve("vhdx", &child, &[&format!("vhdx-parent={chain}")]);
    assert_content(&server, &disk, "a child of a child");
    // What is refused.
    let server = serve("vhdx", &path, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("names the parent '..\\\\base.vhdx': no file is opened by its name, give the parent with");
    let server = serve("vhdx", &path, &[&format!("vhdx-parent={}", dir.join("2.vhdx").display())]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("vhdx-parent= is not the disk that the image was made for, or was changed since");
    let server = serve("vhdx", &child, &[&format!("vhdx-parent={middle}")]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("vhdx-parent= is a differencing disk itself: give it as a chain");
}

#[test]
fn the_filter_is_built_in() {
    let (dir, content) = (TempDir::new(), content(3 * MIB, 10));
    let image = converted(&dir, "image.vhdx", &content, &["-O", "vhdx"]);
    for name in ["vhdx", "auto"] {
        let server = Launch::new(["-r", &format!("--filter={name}"), "file", image.to_str().expect("UTF-8")]).start();
        assert_content(&server, &content, name);
    }
}
