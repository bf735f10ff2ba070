//! The filter qcow2 over images of qemu-img and qemu-io, with libnbd's clients.

use std::path::Path;

use rbdkit_tests::server::filter;
use rbdkit_tests::{Launch, Rng, TempDir, tool};

use crate::shared::{
    Run, assert_content, assert_holes_are_zero, content, converted, extents, qemu_img, qemu_map, serve,
};

fn qemu_io(image: &Path, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io", ["-f", "qcow2"].into_iter().chain(commands).chain([text(image)])).ok();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What qemu-img reads.
fn qemu_reads(dir: &TempDir, image: &Path) -> Vec<u8> {
    let raw = dir.join("qemu.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(image), text(&raw)]);
    std::fs::read(raw).expect("the disk")
}

/// Runs of data and of what is not data.
fn data(runs: &[Run]) -> Vec<(u64, u64, bool)> {
    let mut all: Vec<(u64, u64, bool)> = Vec::new();
    for run in runs {
        let is_data = !run.hole && !run.zero;
        match all.last_mut() {
            Some(last) if last.2 == is_data => last.1 += run.length,
            _ => all.push((run.start, run.length, is_data)),
        }
    }
    all
}

/// The last line of the log about a client that could not open the export.
fn refusal(image: &Path, parameters: &[&str]) -> String {
    let server = serve("qcow2", image, parameters);
    tool("nbdinfo", [server.uri()]).fails();
    let log = server.stop().stderr;
    let line = log.lines().find(|line| line.starts_with("rbdkit: error: qcow2: ")).unwrap_or_else(|| panic!("{log}"));
    line.trim_start_matches("rbdkit: error: qcow2: ").to_string()
}

#[test]
fn a_client_reads_what_qemu_converted_and_sees_its_extents() {
    let dir = TempDir::new();
    for (n, (size, options)) in [
        ((5 << 20) + 512, &["-O", "qcow2"][..]),
        ((3 << 20) + 1024, &["-O", "qcow2", "-o", "compat=0.10,cluster_size=512"]),
        ((3 << 20) + 1024, &["-c", "-O", "qcow2"]),
        ((3 << 20) + 1024, &["-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=1M"]),
        ((3 << 20) + 1024, &["-O", "qcow2", "-o", "extended_l2=on"]),
    ]
    .into_iter()
    .enumerate()
    {
        let content = content(size, n as u64);
        let image = converted(&dir, &format!("image{n}"), &content, options);
        let server = serve("qcow2", &image, &[]);
        assert_content(&server, &content, &format!("{options:?}"));
        let seen = extents(&server);
        assert_holes_are_zero(&seen, &content, &format!("{options:?}"));
        assert_eq!(data(&seen), data(&qemu_map(&image, "qcow2")), "{options:?}");
    }
}

#[test]
fn reads_at_any_offset_and_of_any_length_are_right() {
    let dir = TempDir::new();
    let content = content((4 << 20) + 512, 11);
    let image = converted(&dir, "image", &content, &["-c", "-O", "qcow2", "-o", "cluster_size=4k"]);
    qemu_io(&image, &["write -P 1 1M 700k", "write -z 3M 100k", "discard 2M 64k"]);
    let expected = qemu_reads(&dir, &image);
    let server = serve("qcow2", &image, &[]);
    let mut client = server.client();
    let seed = rbdkit_tests::seed();
    let mut rng = Rng::new(seed);
    for _ in 0..200 {
        let offset = rng.below(expected.len() as u64 - 1);
        let length = 1 + rng.below((expected.len() as u64 - offset).min(300_000) - 1);
        let read = client.read(offset, length as u32).expect("a read");
        let there = &expected[offset as usize..(offset + length) as usize];
        assert!(read == there, "{length} bytes at {offset}, seed {seed}");
    }
}

#[test]
fn disks_that_the_operator_gives_stand_in_for_the_names_in_an_image() {
    let dir = TempDir::new();
    let base = content((1 << 20) + 512, 3);
    let base_path = dir.file("base.img", &base);
    let top = dir.join("top");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(&base_path), "-F", "raw", text(&top), "2M"]);
    qemu_io(&top, &["write -P 7 100k 3k", "write -P 8 1020k 30k"]);
    let expected = qemu_reads(&dir, &top);
    let name = text(&base_path);
    assert_eq!(
        refusal(&top, &[]),
        format!(
            "the image names the backing file '{name}' of the format 'raw', and names in an image are not followed: \
             give the disk with qcow2-backing="
        )
    );
    let server = serve("qcow2", &top, &[&format!("qcow2-backing={name}")]);
    assert_content(&server, &expected, "a backing file");
    assert_holes_are_zero(&extents(&server), &expected, "a backing file");

    // An image below an image: the chain decodes it.
    let over = dir.join("over");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(&top), "-F", "qcow2", text(&over), "3M"]);
    qemu_io(&over, &["write -P 9 1M 64k"]);
    let component = filter("qcow2");
    let chain = format!("chain:--wasm-filter={} file {} qcow2-backing={name}", text(&component), text(&top));
    let server = serve("qcow2", &over, &[&format!("qcow2-backing={chain}")]);
    assert_content(&server, &qemu_reads(&dir, &over), "two images");

    let data = dir.join("data");
    let image = dir.join("with-data");
    let options = format!("data_file={}", text(&data));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, text(&image), "1M"]);
    qemu_io(&image, &["write -P 5 0 100k", "write -P 6 700k 1k"]);
    assert_eq!(
        refusal(&image, &[]),
        format!(
            "the image names the data file '{}', and names in an image are not followed: give the disk with \
             qcow2-data=",
            text(&data)
        )
    );
    let server = serve("qcow2", &image, &[&format!("qcow2-data={}", text(&data))]);
    assert_content(&server, &qemu_reads(&dir, &image), "a data file");
}

#[test]
fn an_image_that_is_encrypted_with_luks_is_read_with_its_passphrase() {
    let dir = TempDir::new();
    let image = dir.join("image");
    let secret = ["--object", "secret,id=key,data=correct horse"];
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,cluster_size=4k";
    qemu_img(&[&["create", "-q", "-f", "qcow2"], &secret[..], &["-o", options, text(&image), "2M"]].concat());
    let source = format!("driver=qcow2,file.filename={},encrypt.key-secret=key", text(&image));
    let commands = ["-c", "write -P 5 0 100k", "-c", "write -P 6 1M 1k", "-c", "write -z 64k 8k"];
    tool("qemu-io", [&secret[..], &["--image-opts", &source], &commands].concat()).ok();
    let raw = dir.join("raw");
    qemu_img(&[&["convert"], &secret[..], &["--image-opts", &source, "-O", "raw", text(&raw)]].concat());
    let expected = std::fs::read(raw).expect("the disk");

    let server = serve("qcow2", &image, &["qcow2-passphrase=correct horse"]);
    assert_content(&server, &expected, "LUKS");
    let mut client = server.client();
    for (offset, length) in [(1, 1), (511, 2), (70_000, 4097), (102_399, 3), (1_048_000, 2000)] {
        let there = &expected[offset..offset + length];
        assert!(client.read(offset as u64, length as u32).expect("a read") == there, "{length} bytes at {offset}");
    }
    assert_eq!(
        refusal(&image, &["qcow2-passphrase=wrong"]),
        "LUKS: the passphrase does not open key slot 0, which is the only one"
    );
    assert_eq!(refusal(&image, &[]), "the image is encrypted with LUKS: give the passphrase with qcow2-passphrase=");
    let plain = converted(&dir, "plain", &[1; 512], &["-O", "qcow2"]);
    assert_eq!(refusal(&plain, &["qcow2-passphrase=x"]), "qcow2-passphrase= is given, and the image is not encrypted");
}

#[test]
fn a_disk_of_10_tib_is_served_with_the_default_limits() {
    let dir = TempDir::new();
    let image = dir.join("image");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "10T"]);
    qemu_io(&image, &["write -P 1 0 64k", "write -P 2 5T 1M", "write -P 3 10995116212224 64k"]);
    let server = serve("qcow2", &image, &[]);
    assert_eq!(data(&extents(&server)), data(&qemu_map(&image, "qcow2")));
    let mut client = server.client();
    assert_eq!(client.read((5 << 40) + 1000, 4).expect("a read"), [2; 4]);
    assert_eq!(client.read((10 << 40) - 4, 4).expect("a read"), [3; 4]);
    assert_eq!(client.read(4 << 40, 4).expect("a read"), [0; 4]);
}

#[test]
fn a_corrupt_image_is_served_with_a_warning_for_each_connection() {
    let dir = TempDir::new();
    let content = content(1 << 20, 8);
    let image = converted(&dir, "image", &content, &["-O", "qcow2"]);
    let mut bytes = std::fs::read(&image).expect("the image");
    // The incompatible feature bits: corrupt.
    bytes[79] |= 2;
    std::fs::write(&image, bytes).expect("the image");
    let server = serve("qcow2", &image, &[]);
    assert_content(&server, &content, "a corrupt image");
    let log = server.stop().stderr;
    assert!(
        log.contains("qcow2: the image is marked as corrupt: what it serves may be wrong ('qemu-img check' says more)"),
        "{log}"
    );
}

#[test]
fn the_filter_has_the_name_that_nbdkit_has_for_it() {
    let dir = TempDir::new();
    let content = content(300_000, 9);
    let image = converted(&dir, "image", &content[..299_520], &["-O", "qcow2"]);
    for name in ["qcow2", "qcow2dec"] {
        let server = Launch::new(["-r", &format!("--filter={name}"), "file", text(&image)]).start();
        assert_content(&server, &content[..299_520], name);
    }
}
