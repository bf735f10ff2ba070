use rbdkit_filter_sdk::image::Error;

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};

const FOUND: Wanted = Wanted::Found { depth: 4 };

fn opened(bytes: &[u8]) -> (Found, Vec<u8>) {
    let (found, image) = open(source(bytes), &FOUND).unwrap();
    let image = image.unwrap_or_else(|| panic!("{:?}", found.refused));
    (found, read_all(&*image).unwrap())
}

fn refused(bytes: &[u8], wanted: &Wanted) -> String {
    open(source(bytes), wanted).unwrap().0.refused.expect("a refusal")
}

/// An image that qemu-img makes of these bytes.
fn converted(format: &str, bytes: &[u8]) -> Vec<u8> {
    let dir = Dir::new(&format!("auto-{format}"));
    let (raw, image) = (dir.file("raw", bytes), dir.path("image"));
    run("qemu-img", &["convert", "-f", "raw", "-O", format, &raw, &image]);
    std::fs::read(image).unwrap()
}

#[test]
fn formats_are_found_within_each_other() {
    let disk = sample(300 << 10, 7);
    let qcow2 = converted("qcow2", &disk);
    let gzip = crate::testing::piped("gzip", &[], &qcow2);
    let xz = crate::testing::piped("xz", &[], &gzip);
    let (found, read) = opened(&xz);
    assert_eq!(found.names(), "qcow2 in gzip in xz");
    assert!(read == disk);
    assert_eq!(found.size, Some(300 << 10));
    let depth = Wanted::Found { depth: 2 };
    let line = "qcow2 in gzip in xz: formats are nested more than 2 deep (auto-depth)";
    assert_eq!(refused(&xz, &depth), line);
}

#[test]
fn a_disk_without_a_signature_is_raw() {
    let disk = sample(100_000, 8);
    let (found, read) = opened(&disk);
    assert_eq!((found.names().as_str(), found.size), ("raw", Some(100_000)));
    assert!(read == disk);
    assert!(opened(&[]).1.is_empty());
}

#[test]
fn an_image_with_two_signatures_is_refused_unless_somebody_says_what_it_is() {
    // A disk with a partition table whose first bytes were made to look like qcow2.
    let dir = Dir::new("auto-two");
    let disk = dir.file("disk", &vec![0; 4 << 20]);
    crate::testing::piped("/sbin/sfdisk", &["-q", &disk], b"label: gpt\n,1M\n");
    let mut disk = std::fs::read(disk).unwrap();
    let header = converted("qcow2", &[0; 65536]);
    disk[..104].copy_from_slice(&header[..104]);
    let line = refused(&disk, &FOUND);
    assert!(line.starts_with("the image is ambiguous: it has the signatures of qcow2 and partition"), "{line}");
    let raw = Wanted::named("raw").unwrap();
    let (found, image) = open(source(&disk), &raw).unwrap();
    assert_eq!((found.layers.len(), image.map(|image| image.size())), (0, Some(4 << 20)));
}

#[test]
fn names_of_formats_are_checked() {
    assert_eq!(Wanted::named("raw"), Ok(Wanted::Named(Vec::new())));
    assert!(matches!(Wanted::named("gzip,qcow2"), Ok(Wanted::Named(entries)) if entries.len() == 2));
    assert!(Wanted::named("raw,gzip").is_err() && Wanted::named("").is_err() && Wanted::named("png").is_err());
    assert!(Wanted::named(&["gzip"; 9].join(",")).is_err());
    let wanted = Wanted::named("qcow2").unwrap();
    assert_eq!(refused(b"not at all", &wanted), "qcow2 is asked for, and the image does not have its signature");
}

#[test]
fn a_refused_image_is_described() {
    let dir = Dir::new("auto-refused");
    let (base, image) = (dir.file("base", &[0; 65536]), dir.path("image"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &image]);
    let bytes = std::fs::read(image).unwrap();
    let (found, image) = open(source(&bytes), &FOUND).unwrap();
    assert!(image.is_none());
    assert!(found.refused.as_ref().unwrap().starts_with("qcow2: "), "{:?}", found.refused);
    assert!(found.dangers().any(|(name, danger)| name == "qcow2" && danger.contains("base")));
    let report: serde_json::Value = serde_json::from_str(&json(&found, bytes.len() as u64)).unwrap();
    assert_eq!(report["formats"][0]["format"], "qcow2");
    assert!(report["disk-size"].is_null());
}

#[test]
fn a_file_without_the_signature_is_not_one_of_the_format() {
    for bytes in [&b""[..], b"not at all", &[b'x'; 70_000]] {
        for entry in FORMATS.iter().filter(|entry| entry.place != Place::Content) {
            let name = entry.info.name;
            let line =
                (entry.info.open)(source(bytes)).err().unwrap_or_else(|| panic!("{name} was opened")).to_string();
            assert!(line.starts_with("it is not a"), "{name} of {} bytes: {line}", bytes.len());
        }
    }
}

#[test]
fn what_is_not_known_is_not_called_raw() {
    let image = converted("qcow2", &[0; 65536]);
    let mut two = image.clone();
    two.resize(0x8000, 0);
    // The descriptor of a volume of ISO 9660.
    two.extend(b"\x01CD001\x01");
    two.resize(0x10000, 0);
    let name = |bytes: &[u8], wanted| open(source(bytes), &wanted).unwrap().0.names();
    let found = open(source(&two), &FOUND).unwrap().0;
    assert_eq!(found.names(), "ambiguous (qcow2 or iso9660)", "{:?}", found.refused);
    let report: serde_json::Value = serde_json::from_str(&json(&found, two.len() as u64)).unwrap();
    assert_eq!(report["kind"], "ambiguous (qcow2 or iso9660)");
    let within = crate::testing::piped("gzip", &[], &two);
    assert_eq!(name(&within, FOUND), "ambiguous (qcow2 or iso9660) in gzip");
    let line = refused(&within, &FOUND);
    assert!(line.starts_with("the content of gzip is ambiguous: it has the signatures of qcow2 and iso9660"), "{line}");
    assert_eq!(name(b"nothing", Wanted::named("qcow2").unwrap()), "not known");
    assert_eq!(name(b"nothing", FOUND), "raw");
}

/// A layer below that fails.
struct Broken;

impl Source for Broken {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::Failed(rbdkit_filter_sdk::Errno::Etimedout))
    }
}

#[test]
fn an_error_of_the_layer_below_is_no_property_of_the_image() {
    let error = open(Rc::new(Broken), &FOUND).map(drop);
    assert_eq!(error, Err(Error::Failed(rbdkit_filter_sdk::Errno::Etimedout)));
}

#[test]
fn a_bomb_in_bombs_is_a_disk_of_zeroes_or_too_deep() {
    let gzip = |bytes: &[u8]| crate::testing::piped("gzip", &["-9"], bytes);
    let disk = vec![0; 64 << 20];
    let three = gzip(&gzip(&gzip(&disk)));
    assert!(three.len() < 1000);
    let (found, read) = opened(&three);
    assert_eq!(found.names(), "gzip in gzip in gzip");
    assert!(read == disk);
    let line = "gzip in gzip in gzip in gzip in gzip: formats are nested more than 4 deep (auto-depth)";
    assert_eq!(refused(&gzip(&gzip(&three)), &FOUND), line);
}
