//! Images, and what a client sees of them.

use std::path::{Path, PathBuf};

use rbdkit_tests::server::filter;
use rbdkit_tests::{Rng, Server, TempDir, tool};

/// A disk's content: data, zeroes that are written, and holes, in pieces whose ends are no multiple
/// of anything. The same for a seed.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(size + (256 << 10));
    while bytes.len() < size {
        let length = 1 + rng.below(256 << 10) as usize;
        match rng.below(4) {
            0 => bytes.extend(rng.bytes(length)),
            1 => bytes.extend(std::iter::repeat_n(rng.below(255) as u8 + 1, length)),
            _ => bytes.extend(std::iter::repeat_n(0, length)),
        }
    }
    bytes.truncate(size);
    bytes
}

/// Runs qemu-img.
pub fn qemu_img(arguments: &[&str]) -> String {
    tool("qemu-img", arguments).ok()
}

/// An image that qemu-img makes of `content`: `options` are `-O` and `-o` with their values.
pub fn converted(dir: &TempDir, name: &str, content: &[u8], options: &[&str]) -> PathBuf {
    let (raw, image) = (dir.file(&format!("{name}.raw"), content), dir.join(name));
    let paths = [raw.to_str().expect("UTF-8"), image.to_str().expect("UTF-8")];
    qemu_img(&[&["convert", "-f", "raw"][..], options, &paths].concat());
    image
}

/// Serves an image through a filter, read-only. `parameters` are the filter's.
pub fn serve(name: &str, image: &Path, parameters: &[&str]) -> Server {
    let component = filter(name);
    let fixed = ["-r".as_ref(), "--wasm-filter".as_ref(), component.as_os_str(), "file".as_ref(), image.as_os_str()];
    Server::start(fixed.into_iter().chain(parameters.iter().map(|parameter| parameter.as_ref())))
}

/// Copies the disk with nbdcopy, and compares it with what it has to be.
///
/// # Panics
/// If they differ. The message has the first offset.
pub fn assert_content(server: &Server, content: &[u8], what: &str) {
    let dir = TempDir::new();
    let copy = dir.join("copy");
    tool("nbdcopy", [&server.uri(), copy.to_str().expect("UTF-8")]).ok();
    let copy = std::fs::read(&copy).expect("the copy");
    assert_eq!(copy.len(), content.len(), "{what}: the size");
    let differs = copy.iter().zip(content).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first offset that differs");
}

/// A run of bytes of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub length: u64,
    pub hole: bool,
    pub zero: bool,
}

/// Runs from a list of (start, length, hole, zero); neighbours of one kind become one.
fn merged(list: impl IntoIterator<Item = (u64, u64, bool, bool)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (start, length, hole, zero) in list {
        match runs.last_mut() {
            Some(last) if (last.hole, last.zero) == (hole, zero) => last.length += length,
            _ => runs.push(Run { start, length, hole, zero }),
        }
    }
    runs
}

/// The extents that a client sees.
pub fn extents(server: &Server) -> Vec<Run> {
    let map = tool("nbdinfo", ["--map", "--json", &server.uri()]).ok();
    let map: serde_json::Value = serde_json::from_str(&map).expect("nbdinfo's JSON");
    merged(map.as_array().expect("a list").iter().map(|entry| {
        let number = |key: &str| entry[key].as_u64().expect("a number");
        (number("offset"), number("length"), number("type") & 1 != 0, number("type") & 2 != 0)
    }))
}

/// What `qemu-img map` says of an image: no data is a hole.
pub fn qemu_map(image: &Path, format: &str) -> Vec<Run> {
    let map = qemu_img(&["map", "--output=json", "-f", format, image.to_str().expect("UTF-8")]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("qemu-img's JSON");
    merged(map.as_array().expect("a list").iter().map(|entry| {
        let (number, flag) = (|key: &str| entry[key].as_u64().expect("a number"), |key: &str| entry[key] == true);
        (number("start"), number("length"), !flag("data"), flag("zero"))
    }))
}

/// Checks that no hole and no run of zeroes has a byte in `content` that is not zero.
pub fn assert_holes_are_zero(runs: &[Run], content: &[u8], what: &str) {
    let end = runs.last().map_or(0, |run| run.start + run.length);
    assert_eq!(end, content.len() as u64, "{what}: the end of the extents");
    for run in runs.iter().filter(|run| run.hole || run.zero) {
        let bytes = &content[run.start as usize..(run.start + run.length) as usize];
        assert!(bytes.iter().all(|byte| *byte == 0), "{what}: data in {run:?}");
    }
}
