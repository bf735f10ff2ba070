//! Images of qemu-img, files that the tests change, and what is refused.

use rbdkit_filter_sdk::image::read;

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};

/// A disk of 21 grains of which the last has 1536 bytes. Grains 3 to 9 are never written.
fn content() -> Vec<u8> {
    let mut content = sample(20 * 65536 + 1536, 7);
    (0..21).for_each(|grain| content[grain * 65536] = 1);
    content[3 * 65536..10 * 65536].fill(0);
    content
}

fn made(subformat: &str, content: &[u8]) -> Vec<u8> {
    let dir = Dir::new("vmdk");
    let (raw, image) = (dir.file("raw", content), dir.path("image.vmdk"));
    let option = format!("subformat={subformat}");
    run("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", &option, &raw, &image]);
    std::fs::read(&image).unwrap()
}

fn with(bytes: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

fn open(bytes: &[u8]) -> Result<Vmdk, Error> {
    Vmdk::open(source(bytes), Given::default())
}

fn opened(bytes: &[u8], extents: &[&[u8]], parent: Option<&[u8]>) -> Result<Vmdk, Error> {
    let extents = extents.iter().map(|bytes| source(bytes)).collect();
    Vmdk::open(source(bytes), Given { extents, parent: parent.map(source) })
}

fn refused(result: Result<Vmdk, Error>) -> String {
    result.err().expect("an image that is wrong").to_string()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

/// Where the entry of a grain is. All tests have disks of one table.
fn entry(bytes: &[u8], grain: usize) -> usize {
    let directory = number(bytes, 56) as usize * 512;
    number(bytes, directory) as usize * 512 + grain * 4
}

/// A descriptor with these extents.
fn descriptor(kind: &str, more: &str) -> Vec<u8> {
    format!("# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{more}\n")
        .into_bytes()
}

/// A sparse file whose embedded descriptor is replaced.
fn with_descriptor(bytes: &[u8], text: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[512..512 + 20 * 512].fill(0);
    with(&bytes, 512, text)
}

/// The image with a footer: its header does not know where the directory is.
fn with_footer(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let header = bytes[..512].to_vec();
    bytes[56..64].fill(0xff);
    let mut marker = [0; 512];
    (marker[0], marker[12]) = (1, 3);
    bytes.extend(marker);
    bytes.extend(header);
    bytes.extend([0; 512]);
    bytes
}

#[test]
fn sparse_and_compressed_files_are_read() {
    let content = content();
    for kind in ["monolithicSparse", "streamOptimized"] {
        let image = open(&made(kind, &content)).unwrap();
        assert!(read_all(&image) == Ok(content.clone()), "{kind}");
        assert_eq!(image.description(), Some(format!("VMDK image, '{kind}'")));
        let mut list = ExtentList::new(0, image.size());
        image.extents(&mut list).unwrap();
        let lengths: Vec<u64> = list.into_answer().unwrap().iter().map(|extent| extent.length).collect();
        assert_eq!(lengths[..2], [3 * 65536, 7 * 65536], "{kind}");
        assert_eq!(lengths.iter().sum::<u64>(), 20 * 65536 + 1536);
    }
}

#[test]
fn a_directory_at_the_end_is_found_by_the_footer() {
    let (content, bytes) = (content(), made("streamOptimized", &content()));
    let footed = with_footer(&bytes);
    assert!(read_all(&open(&footed).unwrap()) == Ok(content));
    let cut = "the file has its directory at the end, and does not end with a footer: it was cut, or something was \
               appended";
    assert_eq!(refused(open(&footed[..footed.len() - 512])), cut);
    assert_eq!(refused(open(&[&footed[..], &[0; 512]].concat())), cut);
    let mut again = footed.clone();
    let at = footed.len() - 1024 + 56;
    again[at..at + 8].fill(0xff);
    assert_eq!(refused(open(&again)), "the file has its directory at the end, and its footer says so again");
    let header = with(&footed[..512], 28, &[0; 16]);
    assert_eq!(refused(open(&header)), "the file has its directory at the end, and no footer: it was cut");
}

#[test]
fn grains_of_zeroes_read_as_zero_though_the_parent_has_data() {
    let content = content();
    let bytes = made("monolithicSparse", &content);
    let text = descriptor("monolithicSparse", "parentFileNameHint=\"/etc/shadow\"\nRW 2563 SPARSE \"x\"");
    let text = String::from_utf8(text).unwrap().replace("=ffffffff", "=12345678").into_bytes();
    // Grain 1 is zero, the flag for that is set, and grain 2 is absent.
    let bytes = with(&with_descriptor(&bytes, &text), 8, &[7]);
    let at = entry(&bytes, 1);
    let bytes = with(&bytes, at, &[1, 0, 0, 0, 0, 0, 0, 0]);
    let needs = "the image holds only what differs from the parent '/etc/shadow': give that disk as vmdk-parent=DISK";
    assert_eq!(refused(open(&bytes)), needs);
    // The parent ends within grain 5.
    let parent = vec![9; 5 * 65536 + 100];
    let image = opened(&bytes, &[], Some(&parent)).unwrap();
    let mut expected = content;
    expected[65536..2 * 65536].fill(0);
    expected[2 * 65536..5 * 65536 + 100].fill(9);
    assert!(read_all(&image) == Ok(expected));
    let dangers = (INFO.report)(&source(&bytes)).unwrap().dangers;
    assert_eq!(dangers, ["it names a parent: '/etc/shadow'"]);
    let plain = made("monolithicSparse", &[1; 512]);
    assert_eq!(refused(opened(&plain, &[], Some(&parent))), "vmdk-parent is given, and the image has no parent");
}

/// A file of ESX with two grains of 64 KiB, of which it has the second.
fn cowd() -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    bytes[..4].copy_from_slice(b"COWD");
    for (at, number) in [(4, 1u32), (8, 3), (12, 200), (16, 128), (20, 4), (24, 1)] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes.extend(with(&[0; 512], 0, &[5]));
    bytes.extend(with(&[0; 4 * 4096], 4, &[37]));
    bytes.extend([7; 65536]);
    bytes
}

#[test]
fn files_of_esx_are_read_with_and_without_a_parent() {
    let mut expected = vec![0; 65536];
    expected.extend([7; 200 * 512 - 65536]);
    assert_eq!(read_all(&open(&cowd()).unwrap()), Ok(expected.clone()));
    let named = with(&cowd(), 32, b"base.vmdk\0");
    let needs = "the image holds only what differs from the parent 'base.vmdk': give that disk as vmdk-parent=DISK";
    assert_eq!(refused(open(&named)), needs);
    expected[..1000].fill(3);
    assert_eq!(read_all(&opened(&named, &[], Some(&[3; 1000])).unwrap()), Ok(expected));
    let short = with(&cowd(), 24, &[0]);
    assert_eq!(refused(open(&short)), "the directory has 0 entries, and the disk needs 1");
    let mut sesparse = SE_SPARSE.to_vec();
    sesparse.resize(4096, 0);
    assert_eq!(refused(open(&sesparse)), "VMDK files of the type seSparse are not supported");
}

#[test]
fn a_split_disk_consists_of_what_is_given_in_order() {
    let (first, second) = (content(), sample(100 * 512, 3));
    let lines = "RW 2563 SPARSE \"a-s001.vmdk\"\nRW 10 ZERO\nRW 0 ZERO\nRDONLY 100 FLAT \"/etc/passwd\" 2";
    let text = descriptor("custom", lines);
    let sparse = made("monolithicSparse", &first);
    let flat = [&[1; 1024][..], &second].concat();
    let image = opened(&text, &[&sparse, &flat], None).unwrap();
    let expected = [&first[..], &[0; 5120], &second].concat();
    assert!(read_all(&image) == Ok(expected.clone()));
    assert_eq!(read(&image, first.len() as u64 - 10, 5200), Ok(expected[first.len() - 10..][..5200].to_vec()));
    image.cache(0, image.size()).unwrap();
    let mut list = ExtentList::new(0, image.size());
    image.extents(&mut list).unwrap();
    let list = list.into_answer().unwrap();
    assert_eq!(list.last().map(|last| last.offset + last.length), Some(image.size()));

    let missing = "the image has its data in other files: give extent 1 of 2, which it calls 'a-s001.vmdk', as \
                   vmdk-extent=FILE";
    assert_eq!(refused(open(&text)), missing);
    let missing = "the image has its data in other files: give extent 2 of 2, which it calls '/etc/passwd', as \
                   vmdk-extent=FILE";
    assert_eq!(refused(opened(&text, &[&sparse], None)), missing);
    let more = "vmdk-extent is given 3 times, and the image has 2 extents in files";
    assert_eq!(refused(opened(&text, &[&sparse, &flat, &flat], None)), more);
    let swapped = "extent 1 ('a-s001.vmdk'): it is not a sparse VMDK file: it does not begin with KDMV or COWD";
    assert_eq!(refused(opened(&text, &[&flat, &sparse], None)), swapped);
    let short = "extent 4 ('/etc/passwd'): the file given for it has 52223 bytes, and the descriptor says 51200 bytes \
                 from 1024 on";
    assert_eq!(refused(opened(&text, &[&sparse, &flat[1..]], None)), short);
    let wrong = made("monolithicSparse", &first[512..]);
    let size = "extent 1 ('a-s001.vmdk'): the file given for it has 2562 sectors, and the descriptor says 2563";
    assert_eq!(refused(opened(&text, &[&wrong, &flat], None)), size);
    let alone = "vmdk-extent is given, and the image is one file with all of its data";
    assert_eq!(refused(opened(&sparse, &[&flat], None)), alone);
    let at = entry(&sparse, 0);
    let broken = opened(&text, &[&with(&sparse, at, &[0xff; 4]), &flat], None).unwrap();
    let error = broken.read(0, &mut [0]).unwrap_err().to_string();
    assert!(error.starts_with("extent 1 ('a-s001.vmdk'): grain 0 is at 2199023255040, and"), "{error}");

    let report = (INFO.report)(&source(&text)).unwrap();
    let (one, two) = ("it names a file with an extent: 'a-s001.vmdk'", "it names a file with an extent: '/etc/passwd'");
    assert_eq!((report.size, report.dangers), (Some(expected.len() as u64), vec![one.to_string(), two.to_string()]));
}

#[test]
fn a_descriptor_that_is_wrong_is_refused_with_its_line() {
    let of = |more: &str| refused(open(&descriptor("monolithicFlat", more)));
    let cases = [
        ("RW x FLAT \"f\" 0", "the descriptor's line 'RW x FLAT \\\"f\\\" 0' does not say the number of sectors"),
        (
            "RW 18446744073709551616 FLAT \"f\"",
            "the descriptor's line 'RW 18446744073709551616 FLAT \\\"f\\\"' does not say the number of sectors",
        ),
        ("RW 1 FLAT f 0", "the descriptor's line 'RW 1 FLAT f 0' has no name in quotes"),
        ("RW 1 FLAT \"f", "the descriptor's line 'RW 1 FLAT \\\"f' has no name in quotes"),
        ("RW 1 FLAT \"f\" -1", "the descriptor's line 'RW 1 FLAT \\\"f\\\" -1' has no number for its offset"),
        ("NOACCESS 1 ZERO", "the descriptor's line 'NOACCESS 1 ZERO' forbids access to an extent"),
        (
            "RW 1 VMFSRDM \"/dev/sda\"",
            "the descriptor's line 'RW 1 VMFSRDM \\\"/dev/sda\\\"' has an extent of the type 'VMFSRDM': FLAT, VMFS, \
             SPARSE, VMFSSPARSE and ZERO are supported",
        ),
        (
            "RW 1 SESPARSE \"x\"",
            "the descriptor's line 'RW 1 SESPARSE \\\"x\\\"' has an extent of the type 'SESPARSE': FLAT, VMFS, SPARSE, \
             VMFSSPARSE and ZERO are supported",
        ),
        ("RW 18014398509481983 ZERO\nRW 1 ZERO", "the extents of the descriptor have more than 2^63 bytes in all"),
        ("RW 18446744073709551615 ZERO\nRW 1 ZERO", "the extents of the descriptor have more than 2^63 bytes in all"),
    ];
    for (more, line) in cases {
        assert_eq!(of(more), line);
    }
    let device = "disks of the type 'fullDevice' are not supported: devices of a host and seSparse are not, and others \
                  do not exist";
    assert_eq!(refused(open(&descriptor("fullDevice", "RW 1 FLAT \"/dev/sda\" 0"))), device);
    assert_eq!(refused(open(b"# Disk DescriptorFile\nRW 1 ZERO\n")), "the descriptor has no createType");
    let many = "RW 1 ZERO\n".repeat(40_000);
    assert_eq!(of(&many), "the descriptor has more than 32768 extents");
    let flat = opened(&descriptor("monolithicFlat", "RW 1 FLAT \"f\" 18446744073709551615"), &[&[0; 512]], None);
    let line = "extent 1 ('f'): the file given for it has 512 bytes, and the descriptor says 512 bytes from \
                18446744073709551615 on";
    assert_eq!(refused(flat), line);
    let empty = open(&descriptor("monolithicFlat", "")).unwrap();
    assert_eq!((empty.size(), empty.read(0, &mut [0]).is_err()), (0, true));
}

#[test]
fn a_descriptor_of_20_mib_is_refused() {
    let mut text = descriptor("monolithicFlat", "");
    text.resize(20 << 20, b'\n');
    let line = "the descriptor has 20971520 bytes, and at most 1048576 are supported";
    assert_eq!(refused(open(&text)), line);
    assert_eq!((INFO.report)(&source(&text)).unwrap().dangers, [format!("it cannot be read: {line}")]);
    // In a sparse file the header says how long it is.
    let mut sparse = with(&made("monolithicSparse", &[1; 512]), 36, &[0, 160]);
    sparse[512..].fill(b'\n');
    sparse.resize(30 << 20, 1);
    assert_eq!(refused(open(&sparse)), line);
    // What follows a zero byte is no text.
    let mut text = descriptor("monolithicFlat", "RW 8 ZERO");
    text.resize(20 << 20, 0);
    assert_eq!(open(&text).unwrap().size(), 4096);
}

#[test]
fn a_sparse_file_with_a_descriptor_of_another_disk_is_refused() {
    let bytes = made("monolithicSparse", &content());
    let of = |kind, more| refused(open(&with_descriptor(&bytes, &descriptor(kind, more))));
    assert_eq!(
        of("monolithicFlat", "RW 2563 FLAT \"/etc/passwd\" 0"),
        "the file is sparse, and the descriptor in it says that the disk is of the type 'monolithicFlat'"
    );
    assert_eq!(
        of("monolithicSparse", "RW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\""),
        "the file is one extent, and the descriptor in it names 2"
    );
    let named = with_descriptor(&bytes, &descriptor("monolithicSparse", "RW 2563 SPARSE \"/etc/passwd\""));
    assert!(open(&named).is_ok(), "the name of the file itself is not used");
    let dangers = (INFO.report)(&source(&named)).unwrap().dangers;
    assert_eq!(dangers, ["it names a file with an extent: '/etc/passwd'"]);
    // A header without sectors: only the descriptor counts.
    let only =
        with(&with_descriptor(&bytes, &descriptor("monolithicFlat", "RW 1 FLAT \"/etc/passwd\" 0")), 12, &[0; 8]);
    let line = "the image has its data in other files: give extent 1 of 1, which it calls '/etc/passwd', as \
                vmdk-extent=FILE";
    assert_eq!(refused(open(&only)), line);
    assert_eq!(read_all(&opened(&only, &[&[5; 512]], None).unwrap()), Ok(vec![5; 512]));
}

#[test]
fn a_header_that_is_wrong_is_refused_with_its_value() {
    let bytes = made("monolithicSparse", &content());
    let size = bytes.len();
    let directory =
        format!("the grain directory of 4 bytes is at 2199023255040, and the image ends after {size} bytes");
    let behind =
        format!("the descriptor of 10240 bytes is at 18446744073709551615, and the image ends after {size} bytes");
    let long = format!("the descriptor of 18446744073709551615 bytes is at 512, and the image ends after {size} bytes");
    let tables = format!(
        "the grain directory of 1099511627776 bytes is at {}, and the image ends after {size} bytes",
        number(&bytes, 56) * 512
    );
    let cases: [(usize, &[u8], &str); 15] = [
        (0, b"X", "it is not a VMDK image: it begins neither with KDMV or COWD nor with '# Disk DescriptorFile'"),
        (4, &[4], "version 4 of sparse VMDK files is not supported: 1 to 3 are"),
        (73, &[13], "the header is damaged: a program has changed the ends of its lines"),
        (77, &[2], "the header has compression method 2: 0, none, and 1, deflate, exist"),
        (12, &[0xff; 8], "the disk has 18446744073709551615 sectors, and at most 18014398509481983 are possible"),
        (12, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], &tables),
        (20, &[0; 8], "grains of 0 sectors are not supported: a power of two up to 2097152 is"),
        (20, &[3], "grains of 3 sectors are not supported: a power of two up to 2097152 is"),
        (20, &[0, 0, 64], "grains of 4194304 sectors are not supported: a power of two up to 2097152 is"),
        (44, &[0; 4], "tables of 0 entries are not supported: 1 to 4096 are"),
        (44, &[0xff; 4], "tables of 4294967295 entries are not supported: 1 to 4096 are"),
        (56, &[0; 8], "the file has no grain directory"),
        (56, &[0xff; 4], &directory),
        (28, &[0xff; 8], &behind),
        (36, &[0xff; 8], &long),
    ];
    for (at, number, line) in cases {
        assert_eq!(refused(open(&with(&bytes, at, number))), line);
    }
    let far = with(&bytes, 56, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(refused(open(&far)), "the grain directory is at sector 9223372036854775807, beyond 2^64 bytes");
    let packed = with(&made("streamOptimized", &content()), 20, &[0, 16]);
    assert_eq!(
        refused(open(&packed)),
        "compressed grains of 4096 sectors are not supported: a power of two up to 2048 is"
    );
}

#[test]
fn a_table_or_grain_beyond_the_end_is_an_error_where_it_is() {
    let bytes = made("monolithicSparse", &content());
    let size = bytes.len();
    let directory = number(&bytes, 56) as usize * 512;
    let image = open(&with(&bytes, directory, &[0xff; 4])).unwrap();
    let line = format!("grain table 0 is at 2199023255040, and the image ends after {size} bytes");
    assert_eq!(image.read(0, &mut [0]), Err(Error::Image(line)));
    let image = open(&with(&bytes, entry(&bytes, 2), &[0xff; 4])).unwrap();
    let line = format!("grain 2 is at 2199023255040, and the image ends after {size} bytes");
    assert_eq!(image.read(2 * 65536, &mut [0]), Err(Error::Image(line)));
    assert_eq!(image.read(65536, &mut [0; 65536]), Ok(()));
    // Two grains in one place, and a table that is the header: what they give is what is there.
    let shared = with(&bytes, entry(&bytes, 1), &bytes[entry(&bytes, 0)..][..4]);
    let image = open(&shared).unwrap();
    assert_eq!(read(&image, 0, 100), read(&image, 65536, 100));
    let image = open(&with(&bytes, directory, &[1, 0, 0, 0])).unwrap();
    let _ = read_all(&image);
}

/// A stream whose grain 0 is replaced by this marker and data.
fn with_grain(sector: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = made("streamOptimized", &content());
    let at = bytes.len().next_multiple_of(512);
    bytes.resize(at, 0);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let entry = entry(&bytes, 0);
    with(&bytes, entry, &((at / 512) as u32).to_le_bytes())
}

fn first_error(bytes: &[u8]) -> String {
    open(bytes).unwrap().read(0, &mut [0]).expect_err("a grain that is wrong").to_string()
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let script = "import sys, zlib; sys.stdout.buffer.write(zlib.compress(sys.stdin.buffer.read(), 9))";
    crate::testing::piped("/usr/bin/python3", &["-c", script], data)
}

#[test]
fn a_compressed_grain_that_is_wrong_is_an_error() {
    let good = deflated(&[4; 65536]);
    let length = good.len() as u32;
    let image = open(&with_grain(0, length, &good)).unwrap();
    assert_eq!(read(&image, 65000, 2), Ok(vec![4; 2]));
    let ends = |error: String, end: &str| {
        assert!(error.starts_with("grain 0 at ") && error.ends_with(end), "{error}");
    };
    ends(
        first_error(&with_grain(128, length, &good)),
        "has the marker of sector 128, and begins at sector 0 of the disk",
    );
    ends(first_error(&with_grain(0, 0, &good)), "has 0 bytes of compressed data: 1 to 131072 are possible");
    ends(
        first_error(&with_grain(0, u32::MAX, &good)),
        "has 4294967295 bytes of compressed data: 1 to 131072 are possible",
    );
    ends(first_error(&with_grain(0, length, &deflated(&[4; 65535]))), "gives 65535 bytes, and 65536 are needed");
    let bytes = with_grain(0, 100_000, &good);
    let error = first_error(&bytes);
    assert!(error.starts_with("the image names 100000 bytes at "), "{error}");
    let half = first_error(&with_grain(0, length / 2, &good));
    assert!(half.contains("cannot be unpacked: deflated data of "), "{half}");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let checksum = first_error(&with_grain(0, length, &flipped));
    assert!(checksum.contains("cannot be unpacked"), "{checksum}");
}

#[test]
fn a_grain_bomb_stops_at_the_size_of_a_grain() {
    let bomb = deflated(&vec![0; 64 << 20]);
    assert!(bomb.len() < 131_072);
    let error = first_error(&with_grain(0, bomb.len() as u32, &bomb));
    assert!(
        error.contains("deflated data of") || error.ends_with("gives more than the 65536 bytes of a grain"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for kind in ["monolithicSparse", "streamOptimized"] {
        let bytes = made(kind, &content());
        for length in (0..1024).chain((1024..bytes.len()).step_by(4099)) {
            if let Ok(image) = open(&bytes[..length]) {
                // Behind the last byte of the disk is what fills its last grain.
                assert!(read_all(&image).is_err() || read_all(&image) == Ok(content()), "{kind} {length}");
            }
        }
    }
}
