//! Images of qemu's own tools, and images that are wrong.

mod hostile;
mod oracle;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, ExtentList, Source};
use rbdkit_filter_sdk::{Extent, ExtentType};

use super::{Image, Options};
use crate::testing::{Dir, run, source};

/// An image with options as `qemu-img create -o` has them, after the commands of qemu-io.
pub fn made(dir: &Dir, name: &str, create: &[&str], size: u64, commands: &[&str]) -> String {
    let path = dir.path(name);
    let size = size.to_string();
    run("qemu-img", &[&["create", "-q", "-f", "qcow2"], create, &[&path, &size]].concat());
    qemu_io(&path, commands);
    path
}

/// Runs commands of qemu-io on an image.
pub fn qemu_io(path: &str, commands: &[&str]) {
    if !commands.is_empty() {
        let arguments = commands.iter().flat_map(|command| ["-c", command]);
        let all: Vec<&str> = ["-f", "qcow2"].into_iter().chain(arguments).chain([path]).collect();
        let output = String::from_utf8(run("qemu-io", &all)).expect("text");
        assert!(!output.contains("failed"), "{commands:?}: {output}");
    }
}

/// The bytes of a file.
pub fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(path).expect("the image")
}

/// Opens an image without options.
pub fn open(image: &[u8]) -> Result<Image, Error> {
    Image::open(source(image), Options::default())
}

/// The line of an image that is not opened.
pub fn refusal(image: &[u8], options: Options) -> String {
    match Image::open(source(image), options) {
        Ok(_) => panic!("the image was opened"),
        Err(error) => error.to_string(),
    }
}

/// All extents of a disk. Neighbours of one kind are one.
pub fn extents(image: &dyn Source) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < image.size() {
        let mut list = ExtentList::new(at, image.size() - at);
        image.extents(&mut list).expect("the extents");
        for extent in list.into_answer().expect("the extents") {
            assert_eq!(extent.offset, at);
            at += extent.length;
            match all.last_mut() {
                Some(last) if last.kind == extent.kind => last.length += extent.length,
                _ => all.push(extent),
            }
        }
    }
    all
}

/// What `qemu-img map` says of an image: what no layer has is a hole.
pub fn qemu_map(path: &str) -> Vec<Extent> {
    let map = String::from_utf8(run("qemu-img", &["map", "--output=json", "-f", "qcow2", path])).expect("text");
    let mut all: Vec<Extent> = Vec::new();
    for entry in map.split('{').skip(1) {
        let field = |name: &str| {
            let value = entry.split(&format!("\"{name}\": ")).nth(1).expect("a field");
            value.split([',', '}']).next().expect("a value").to_string()
        };
        let number = |name: &str| field(name).parse::<u64>().expect("a number");
        let mut kind = ExtentType::empty();
        if field("present") == "false" {
            kind |= ExtentType::HOLE;
        }
        if field("zero") == "true" {
            kind |= ExtentType::ZERO;
        }
        assert_eq!(field("data") == "true", kind.is_empty(), "{entry}");
        match all.last_mut() {
            Some(last) if last.kind == kind => last.length += number("length"),
            _ => all.push(Extent { offset: number("start"), length: number("length"), kind }),
        }
    }
    all
}

/// A given disk in memory.
pub fn disk(bytes: &[u8]) -> Option<Rc<dyn Source>> {
    Some(source(bytes))
}
