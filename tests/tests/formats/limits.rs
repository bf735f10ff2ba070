//! Large and hostile images, within the limits that a filter has if nobody says anything.
//!
//! `RBDKIT_XZ_MIB` is the size of the disk in the xz files: 160 MiB within the tests, 5 GiB in
//! `make soak`.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_tests::server::filter;
use rbdkit_tests::{Rng, Server, TempDir, tool};

use crate::compression::compressed;
use crate::shared::{extents, serve};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs a command of the shell for as long as it takes, and says whether it succeeded.
fn shell(command: &str) -> bool {
    let status = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).status();
    status.expect("sh").success()
}

#[test]
fn a_large_xz_file_is_served_with_default_memory_and_time() {
    let size = std::env::var("RBDKIT_XZ_MIB").map_or(160, |size| size.parse().expect("a number of MiB")) << 20;
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk", size);
    let file = std::fs::File::options().write(true).open(&disk).expect("the disk");
    let mut rng = Rng::new(11);
    for _ in 0..size >> 25 {
        let at = rng.below(size - (2 << 20));
        file.write_all_at(&rng.bytes(1 << 20), at).expect("noise");
        file.write_all_at(&b"text".repeat(200_000), at + (1 << 20)).expect("text");
    }
    for (name, options) in [("blocks.xz", "-T2 --block-size=16MiB"), ("single.xz", "-T1")] {
        let image = dir.join(name);
        assert!(shell(&format!("xz -0 {options} -c {} >{}", text(&disk), text(&image))), "{name}");
        let server = serve("xz", &image, &[]);
        assert!(shell(&format!("nbdcopy '{}' - | cmp - {}", server.uri(), text(&disk))), "{name}: the content");
    }
}

/// The header of an empty file.
fn tar_header() -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..1].copy_from_slice(b"a");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(b"00000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The plugin puts the archive together from one small file that it has many times.
#[test]
fn an_archive_of_ten_million_members_from_a_plugin_is_refused_with_a_line() {
    const TIMES: usize = 320;
    let dir = TempDir::new();
    let headers = dir.file("headers", &tar_header().repeat(10_000_000 / TIMES));
    let component = filter("tar");
    let fixed = ["-r", "--wasm-filter", text(&component), "split", "tar-entry=disk.img"];
    let server = Server::start(fixed.into_iter().chain(std::iter::repeat_n(text(&headers), TIMES)));
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("the first 1000000 headers");
}

/// Each layer gives a thousand times as much as it has.
#[test]
fn bombs_within_each_other_are_a_disk_of_zeroes() {
    let (dir, size) = (TempDir::new(), 256 << 20);
    let mut image = vec![0; size];
    for _ in 0..3 {
        image = std::fs::read(compressed(&dir, "bomb", "gzip", &["-9"], &image)).expect("the bomb");
    }
    assert!(image.len() < 4096, "{} bytes", image.len());
    let server = serve("auto", &dir.file("bomb", &image), &[]);
    assert_eq!(tool("nbdinfo", ["--size", &server.uri()]).ok().trim(), size.to_string());
    let told = extents(&server);
    assert!(told.iter().all(|run| run.zero), "{told:?}");
    server.wait_for_log("the image is gzip in gzip in gzip");
}
