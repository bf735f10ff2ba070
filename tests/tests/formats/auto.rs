//! What an image is: the filter `auto`, and `rbdkit-filter image`.

use std::path::Path;

use rbdkit_tests::server::root;
use rbdkit_tests::{TempDir, tool};
use serde_json::Value;

use crate::compression::compressed;
use crate::shared::{assert_content, content, converted, extents, qemu_img, qemu_map, serve};

/// Runs `rbdkit-filter image` with a report in JSON.
fn report(image: &Path, arguments: &[&str]) -> (i32, Value, String) {
    let program = root().join("target/release/rbdkit-filter");
    let words = [&["image", "--json"], arguments, &[image.to_str().expect("UTF-8")]].concat();
    let finished = tool(program.to_str().expect("UTF-8"), words);
    let report = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
    (finished.code, report, finished.stderr)
}

#[test]
fn images_of_each_format_are_found_and_served() {
    let (dir, content) = (TempDir::new(), content(2 << 20, 1));
    for format in ["qcow2", "vmdk", "vdi", "parallels"] {
        let image = converted(&dir, format, &content, &["-O", format]);
        let server = serve("auto", &image, &[]);
        assert_content(&server, &content, format);
        assert_eq!(extents(&server), qemu_map(&image, format), "{format}");
        let (code, report, _) = report(&image, &[]);
        assert_eq!(
            (code, &report["formats"][0]["format"], &report["disk-size"]),
            (0, &format.into(), &(2 << 20).into())
        );
    }
}

#[test]
fn a_qcow2_image_in_gzip_in_a_tar_archive_is_served_and_named() {
    let (dir, content) = (TempDir::new(), content(1 << 20, 2));
    let image = converted(&dir, "disk.qcow2", &content, &["-O", "qcow2"]);
    let bytes = std::fs::read(&image).expect("the image");
    compressed(&dir, "disk.qcow2.gz", "gzip", &[], &bytes);
    let (archive, place) = (dir.join("all.tar"), dir.path().to_str().expect("UTF-8"));
    tool("tar", ["-C", place, "-cf", archive.to_str().expect("UTF-8"), "disk.qcow2.gz"]).ok();
    let server = serve("auto", &archive, &[]);
    assert_content(&server, &content, "all three");
    server.wait_for_log("the image is qcow2 in gzip in tar; the disk has 1048576 bytes");
    let (code, found, _) = report(&archive, &[]);
    let names: Vec<&str> =
        found["formats"].as_array().expect("a list").iter().filter_map(|f| f["format"].as_str()).collect();
    assert_eq!((code, names), (0, vec!["tar", "gzip", "qcow2"]));
    let (code, found, said) = report(&archive, &["--depth", "2"]);
    assert_eq!(code, 1);
    assert!(said.contains("formats are nested more than 2 deep (auto-depth)"), "{said}");
    assert_eq!(found["disk-size"], Value::Null);
}

#[test]
fn a_qcow2_image_in_each_compression_is_found() {
    let (dir, content) = (TempDir::new(), content(1 << 20, 3));
    let image = std::fs::read(converted(&dir, "disk.qcow2", &content, &["-O", "qcow2"])).expect("the image");
    for (name, program) in [("zstd", "zstd"), ("zstd", "pzstd"), ("lz4", "lz4"), ("bzip2", "bzip2"), ("lzip", "lzip")] {
        let file = compressed(&dir, program, program, &["-q"], &image);
        let server = serve("auto", &file, &[]);
        assert_content(&server, &content, program);
        server.wait_for_log(&format!("the image is qcow2 in {name}; the disk has 1048576 bytes"));
    }
}

#[test]
fn the_name_of_a_file_of_the_host_is_shown_and_not_followed() {
    let dir = TempDir::new();
    let secret = dir.file("secret", &[b's'; 65536]);
    let image = dir.join("evil.qcow2");
    let [secret, evil] = [&secret, &image].map(|path| path.to_str().expect("UTF-8"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, evil]);
    let server = serve("auto", &image, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log(secret);
    let (code, found, said) = report(&image, &[]);
    assert_eq!(code, 1);
    assert!(found["formats"][0]["dangers"][0].as_str().is_some_and(|danger| danger.contains(secret)), "{found:#}");
    assert!(found["refused"].as_str().is_some_and(|line| line.contains("qcow2-backing=")), "{found:#}");
    assert!(said.starts_with("rbdkit-filter: error: "), "{said}");
}

#[test]
fn a_disk_that_was_made_to_look_like_an_image_is_refused() {
    let dir = TempDir::new();
    let header = std::fs::read(converted(&dir, "small.qcow2", &[0; 65536], &["-O", "qcow2"])).expect("the image");
    let disk = dir.file("disk", &vec![0; 4 << 20]);
    tool("sh", ["-c", &format!("echo ,1M | /sbin/sfdisk -q -X gpt {}", disk.display())]).ok();
    let mut bytes = std::fs::read(&disk).expect("the disk");
    bytes[..104].copy_from_slice(&header[..104]);
    let disk = dir.file("disk", &bytes);
    let server = serve("auto", &disk, &[]);
    tool("nbdinfo", [&server.uri()]).fails();
    server.wait_for_log("the image is ambiguous (qcow2 or partition)");
    server.wait_for_log("the image is ambiguous: it has the signatures of qcow2 and partition");
    let program = root().join("target/release/rbdkit-filter");
    let printed = tool(program.to_str().expect("UTF-8"), ["image", disk.to_str().expect("UTF-8")]).stdout;
    assert!(printed.starts_with("ambiguous (qcow2 or partition), 4194304 bytes\n"), "{printed}");
    assert_content(&serve("auto", &disk, &["format=raw"]), &bytes, "raw");
    assert_eq!(report(&disk, &["--format", "raw"]).0, 0);
}

#[test]
fn a_report_for_people_says_what_it_is() {
    let dir = TempDir::new();
    let image = converted(&dir, "disk.qcow2", &content(1 << 20, 3), &["-O", "qcow2"]);
    let program = root().join("target/release/rbdkit-filter");
    let said = tool(program.to_str().expect("UTF-8"), ["image", image.to_str().expect("UTF-8")]).ok();
    assert!(said.starts_with("qcow2, ") && said.contains("the disk has 1048576 bytes"), "{said}");
    assert!(said.trim_end().ends_with("it can be served"), "{said}");
    let missing = tool(program.to_str().expect("UTF-8"), ["image", "/nonexistent"]).fails();
    assert!(missing.contains("cannot open /nonexistent"), "{missing}");
}
