//! qemu-img and qemu-io.

use std::path::Path;

use rbdkit_tests::model::{content, sparse};
use rbdkit_tests::{Launch, Server, TempDir, seed, tool};

const SIZE: usize = 16 << 20;

const STACKS: [&[&str]; 6] =
    [&[], &["nofilter"], &["readahead"], &["cow"], &["cache"], &["nofilter", "readahead", "cow", "cache"]];

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn launch(filters: &[&str]) -> Launch {
    Launch::new(filters.iter().map(|name| format!("--filter={name}")))
}

/// Runs qemu-io commands. Each of them has to succeed.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    let finished = tool("qemu-io", &arguments);
    assert!(!finished.stdout.contains("Pattern verification failed"), "{commands:?}:\n{}", finished.stdout);
    assert!(!finished.stdout.contains("failed:"), "{commands:?}:\n{}", finished.stdout);
    finished.ok()
}

#[test]
fn qemu_img_converts_out_of_and_into_every_stack() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let source = sparse(&dir, "source.img", &content(seed, SIZE));
    for filters in STACKS {
        let disk = dir.sparse_file("disk.img", SIZE as u64);
        let server = launch(filters).arg("file").path("file", &disk).start();
        let uri = server.uri();
        tool("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri]).ok();
        tool("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&source), &uri]).ok();
        let copy = dir.join("copy.qcow2");
        for way in [&["-m", "16", "-W"][..], &["-m", "1"]] {
            let convert = ["convert", "-f", "raw", "-O", "qcow2"];
            tool("qemu-img", [&convert[..], way, &[&uri, text(&copy)]].concat()).ok();
            tool("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", text(&source), text(&copy)]).ok();
        }
    }
}

#[test]
fn qemu_img_compare_finds_the_difference() {
    let dir = TempDir::new();
    let source = dir.file("source.img", &content(1, 1 << 20));
    let server = Launch::new(["--filter=cow", "file"]).path("file", &source).start();
    tool("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&source), &server.uri()]).ok();
    qemu_io(&server.uri(), &["write -P 0x77 512k 512"]);
    let said = tool("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&source), &server.uri()]).fails();
    assert!(said.contains("mismatch at offset 524288"), "{said}");
}

#[test]
fn qemu_img_maps_the_holes_of_a_file() {
    let dir = TempDir::new();
    let bytes: Vec<u8> = (0..4u8).flat_map(|nth| vec![if nth % 2 == 0 { 0x55 } else { 0 }; 65536]).collect();
    let file = sparse(&dir, "disk.img", &bytes);
    for filters in STACKS {
        let server = launch(filters).arg("file").path("file", &file).start();
        let map = tool("qemu-img", ["map", "-f", "raw", "--output=json", &server.uri()]).ok();
        // Other fields depend on qemu's version.
        let starts: Vec<&str> = map.lines().filter(|line| line.contains("\"data\": true")).collect();
        assert_eq!(starts.len(), 2, "{filters:?}:\n{map}");
        assert!(starts[0].contains("\"start\": 0, \"length\": 65536"), "{filters:?}:\n{map}");
        assert!(starts[1].contains("\"start\": 131072, \"length\": 65536"), "{filters:?}:\n{map}");
    }
}

#[test]
fn qemu_img_info_tells_the_size() {
    let server = Server::start(["--filter=readahead", "memory", "64M"]);
    let info = tool("qemu-img", ["info", "-f", "raw", "--output=json", &server.uri()]).ok();
    assert!(info.contains("\"virtual-size\": 67108864"), "{info}");
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    for filters in STACKS {
        let server = launch(filters).arg("memory").arg("16M").start();
        qemu_io(
            &server.uri(),
            &[
                "write -P 0x11 0 64k",
                "write -P 0x22 65000 3000",
                "read -P 0x11 0 65000",
                "read -P 0x22 65000 3000",
                "write -f -P 0x33 1M 4k",
                "read -P 0x33 1M 4k",
                "write -z 32k 64k",
                "read -P 0 32k 32k",
                "write -z -u 1M 4k",
                "read -P 0 1M 4k",
                "discard 0 32k",
                "flush",
                "read -P 0 8M 1M",
            ],
        );
    }
}

#[test]
fn qemu_io_has_many_requests_in_flight() {
    let server = launch(&["readahead", "cache"]).arg("memory").arg("16M").start();
    let mut commands: Vec<String> = Vec::new();
    for nth in 0..64 {
        commands.push(format!("aio_write -P {} {}k 100k", nth + 1, nth * 200));
    }
    commands.push("aio_flush".to_owned());
    for nth in 0..64 {
        commands.push(format!("aio_read -P {} {}k 100k", nth + 1, nth * 200));
    }
    commands.push("aio_flush".to_owned());
    qemu_io(&server.uri(), &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn writes_of_qemu_io_through_cow_do_not_reach_the_file() {
    let dir = TempDir::new();
    let bytes = content(3, 4 << 20);
    let file = dir.file("disk.img", &bytes);
    let server = Launch::new(["--filter=cow", "file"]).path("file", &file).start();
    qemu_io(&server.uri(), &["write -P 0x5a 1000 100000", "write -z 2M 1M", "discard 3M 64k", "flush"]);
    qemu_io(&server.uri(), &["read -P 0x5a 1000 100000", "read -P 0 2M 1M"]);
    assert!(server.stop().status.success());
    assert!(std::fs::read(&file).expect("the file") == bytes, "the file changed under cow");
}

#[test]
fn qemu_io_is_told_that_an_export_is_read_only() {
    let server = Server::start(["-r", "memory", "1M"]);
    let finished = tool("qemu-io", ["-f", "raw", "-c", "write 0 512", &server.uri()]);
    let said = format!("{}{}", finished.stdout, finished.stderr).to_lowercase();
    assert!(said.contains("read-only") || said.contains("permission denied"), "{said}");
    tool("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 512", &server.uri()]).ok();
}
