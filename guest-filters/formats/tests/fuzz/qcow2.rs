//! Images of qemu-img with each kind of cluster.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::{INFO, Image, Options};
use rbdkit_filter_formats::testing::{Dir, fuzz, run, sample, source};
use rbdkit_filter_sdk::image::Source;

/// Small images: a mutation then hits a table more often than data.
fn seeds(dir: &Dir) -> Vec<Vec<u8>> {
    let mut content = sample(40 << 10, 3);
    content[8192..20480].fill(0);
    let raw = dir.file("raw", &content);
    let mut seeds = Vec::new();
    for (options, compress) in [
        ("compat=0.10,cluster_size=512", false),
        ("cluster_size=512", true),
        ("cluster_size=4k", false),
        ("compression_type=zstd,cluster_size=4k", true),
        ("extended_l2=on,cluster_size=16k", false),
    ] {
        let path = dir.path("image");
        let compress: &[&str] = if compress { &["-c"] } else { &[] };
        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-S", "512", "-o", options];
        run("qemu-img", &[&convert[..], compress, &[&raw, &path]].concat());
        run("qemu-img", &["snapshot", "-c", "snap", &path]);
        if !options.starts_with("compat") {
            run("qemu-io", &["-f", "qcow2", "-c", "write -z 1k 16k", &path]);
        }
        seeds.push(std::fs::read(&path).expect("the image"));
    }
    let path = dir.path("over");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=1k", "-b", &raw, "-F", "raw", &path, "64k"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 3k 5k", &path]);
    seeds.push(std::fs::read(&path).expect("the image"));
    seeds
}

/// Opens an image with what it asks for: the first of these options that it takes.
fn open(image: Rc<dyn Source>) -> rbdkit_filter_formats::Opened {
    let _ = (INFO.report)(&image);
    let given = || Some(source(&[7; 10_000]));
    let snapshot = Options { snapshot: Some("snap".into()), ..Options::default() };
    let _ = Image::open(Rc::clone(&image), snapshot.clone()).map(|disk| disk.read(0, &mut [0; 5000]));
    let with = |options| Image::open(Rc::clone(&image), options);
    let disk = with(Options::default())
        .or_else(|_| with(Options { backing: given(), ..Options::default() }))
        .or_else(|_| with(Options { data: given(), ..Options::default() }))?;
    disk.cache(0, u64::MAX)?;
    Ok(Rc::new(disk))
}

#[test]
fn qcow2() {
    let dir = Dir::new("qcow2-fuzz");
    fuzz("qcow2", &seeds(&dir), open);
}
