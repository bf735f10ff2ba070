use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rbdkit_plugin_api::{Buffer, Client, Extent, Extents, Flags, Peer};
use rbdkit_ram_disk::{Residency, Storage};

use super::*;

/// A file that goes at the end of its test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(test: &str, bytes: &[u8]) -> TempFile {
        let path = std::env::temp_dir().join(format!("rbdkit-data-test-{}-{test}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        TempFile(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn start(params: &[(&str, &str)]) -> Result<Data, ConfigError> {
    let mut plugin = Data::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

async fn open(params: &[(&str, &str)]) -> Arc<dyn Handle> {
    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    let args = OpenArgs { readonly: false, exportname: String::new(), client };
    start(params).unwrap().open(args).await.unwrap()
}

async fn pread(handle: &dyn Handle, length: u32, offset: u64) -> Vec<u8> {
    let buffer = Buffer::new(length);
    let span = buffer.span();
    let (mut buffer, result) = handle.pread(buffer, span, offset).await;
    result.unwrap();
    buffer.bytes(span).to_vec()
}

async fn pwrite(handle: &dyn Handle, bytes: &[u8], offset: u64) {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, Flags::NONE).await.1.unwrap();
}

/// Less than a server reads, so that reaching it is quick.
const MAX_READ: u64 = 1 << 20;

fn image(text: &str) -> Result<Arc<Image>, String> {
    let variables = |name: &str| match name {
        "pattern" => Some("0x55 0xAA".into()),
        "inner" => Some("( 7 $pattern )*2".into()),
        "uses_name" => Some(r"\x \x".into()),
        "ones" => Some("$twos 1".into()),
        "twos" => Some("2 $ones".into()),
        _ => None,
    };
    let list = syntax::parse(OsStr::new(text), &variables).map_err(|wrong| wrong.to_string())?;
    eval::evaluate(&list, MAX_READ).map_err(|wrong| wrong.to_string())
}

fn bytes(text: &str) -> Vec<u8> {
    let image = image(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    assert!(image.len() < 10_000_000, "{text}");
    let mut bytes = vec![0xee; image.len() as usize];
    image.read(0, &mut bytes);
    bytes
}

fn wrong(text: &str) -> String {
    image(text).err().unwrap_or_else(|| panic!("{text} is not refused"))
}

#[test]
fn the_manuals_examples_come_out_as_it_says() {
    let mut sector = vec![0; 512];
    sector[..4].copy_from_slice(&[0, 1, 2, 3]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(bytes("0 1 2 3 @0x1fe 0x55 0xaa"), sector);
    assert_eq!(bytes("0 1 2 3 @^0x200 @-2 le16:0xaa55"), sector);

    assert_eq!(bytes(" ( 0x55 0xAA )*2048 "), [0x55, 0xaa].repeat(2048));
    assert_eq!(bytes(" ( \"Hello\" )*2000 "), b"Hello".repeat(2000));
    assert_eq!(bytes("0xFF*16"), [0xff; 16]);
    assert_eq!(bytes(" be32:0x1 "), [0, 0, 0, 1]);
    assert_eq!(bytes("( 0x55 0xAA ) * 256"), [0x55, 0xaa].repeat(256));
    for text in ["$pattern*16", "( 0x55 0xAA )*16"] {
        assert_eq!(bytes(text), [0x55, 0xaa].repeat(16), "{text}");
    }

    let signed = r"( 0x55 0xAA ) -> \boot-signature
                   ( @0x1fe \boot-signature ) -> \sector
                   \sector \sector ";
    let mut two = vec![0; 1024];
    for at in [510, 1022] {
        two[at..at + 2].copy_from_slice(&[0x55, 0xaa]);
    }
    assert_eq!(bytes(signed), two);

    let counting = r#"<( i=0
                         while :; do
                             printf "%04d" $i; i=$((i+1))
                         done )[:32768]"#;
    let counted = bytes(counting);
    assert_eq!(counted.len(), 32768);
    assert_eq!(&counted[..12], b"000000010002");
    assert_eq!(&counted[32764..], b"8191");

    let random = bytes("</dev/urandom[:512]*16");
    assert_eq!(random, random[..512].repeat(16));

    let mbr = bytes(
        "@0x1be    # MBR first partition entry
           0           # Partition status
           0 2 0       # CHS start
           0x83        # Partition type (Linux)
           0x20 0x20 0 # CHS last sector
           le32:1      # LBA first sector
           le32:0x7ff  # LBA number of sectors
         @0x1fe    # Boot signature
           0x55 0xaa",
    );
    assert_eq!(
        mbr[0x1be..],
        *b"\0\0\x02\0\x83\x20\x20\0\x01\0\0\0\xff\x07\0\0"
            .iter()
            .chain(&[0; 48])
            .copied()
            .chain([0x55, 0xaa])
            .collect::<Vec<_>>()
    );
}

/// What nbdkit 1.32.5 makes of the same texts.
#[test]
fn details_are_nbdkits() {
    for (text, expected) in [
        ("", &[][..]),
        ("# a comment ( \n1", &[1]),
        ("1 2 3*4", &[1, 2, 3, 3, 3, 3]),
        ("1*0 2", &[2]),
        ("5*2*3", &[5; 6]),
        ("12\"a\"2", &[12, b'a', 2]),
        ("\"a\\z\\'\\\"\\\\\\x41\\n\"", b"az'\"\\A\n"),
        ("le16:0x1234 be16:0x1234 be64:1", &[0x34, 0x12, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("le16:010 le16:+5", &[8, 0, 5, 0]),
        ("@4 1 @+2 2 @-3 3", &[0, 0, 0, 0, 1, 3, 0, 2]),
        ("@010", &[0; 8]),
        ("1 @-1 2", &[2]),
        ("1 @-1 @+ 5", &[1, 0, 0, 0, 0]),
        ("@^8 1 @^8 2", &[1, 0, 0, 0, 0, 0, 0, 0, 2]),
        ("1 @10 @0", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("(1 @4)*2 3", &[1, 0, 0, 0, 1, 0, 0, 0, 3]),
        ("(@5) 1", &[0, 0, 0, 0, 0, 1]),
        ("1 (@^8) 2", &[1, 2]),
        ("(1 2 3)[1:2]", &[2]),
        ("(1 2 3) [1:]", &[2, 3]),
        ("(1 2 3)[:]", &[1, 2, 3]),
        ("(1 2 3)[3:]", &[]),
        ("(1 2 3)[0x1:03]", &[2, 3]),
        ("(1 2 3)*2[1:4]", &[2, 3, 1]),
        ("(1 2 3)[1:2]*2", &[2, 2]),
        ("(@5)[1:3] 1", &[0, 0, 1]),
        ("1 2[0:1]", &[1, 2]),
        ("\"abcdef\"[2:4]", b"cd"),
        ("(1 2) -> \\a \\a \\a", &[1, 2, 1, 2]),
        ("1 2 -> \\a", &[1]),
        ("1->\\a\\a\\a*2", &[1, 1, 1]),
        ("(1 2) -> \\a ( \\a 3 -> \\a \\a ) \\a", &[1, 2, 3, 1, 2]),
        ("(1 2) -> \\a ((\\a) -> \\a \\a) \\a", &[1, 2, 1, 2]),
        ("(1 2 3)[1:]->\\x \\x", &[2, 3]),
        // What is never used need not exist.
        ("\\nowhere -> \\b", &[]),
        ("\\nowhere*0 <nowhere*0", &[]),
        // Zeroes of an expression overwrite what was there; moving does not.
        ("1 2 3 4 @0 (@2 9)", &[0, 0, 9, 4]),
        ("1 2 3 4 @0 (0 0)", &[0, 0, 3, 4]),
        ("(@4) -> \\y 1 2 3 @0 \\y", &[0; 4]),
        ("$pattern$pattern[1:]", &[0x55, 0xaa, 0xaa]),
        ("$inner", &[7, 0x55, 0xaa, 7, 0x55, 0xaa]),
        ("8 -> \\x $uses_name", &[8, 8]),
        ("$pattern -> \\q \\q", &[0x55, 0xaa]),
        ("1@5", &[1, 0, 0, 0, 0]),
        ("()*5 \"\"*5", &[]),
        ("1\t2\r3\x0c4\x0b5", &[1, 2, 3, 4, 5]),
    ] {
        assert_eq!(bytes(text), expected, "{text}");
    }
    assert_eq!(bytes("\"é\""), "é".as_bytes());
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, expected) in [
        ("1 256", "data: at offset 2: a byte must be in the range 0..255"),
        ("0400", "data: at offset 0: a byte must be in the range 0..255"),
        ("08", "data: at offset 0: 08 begins with 0 but is not an octal number"),
        ("0xg", "data: at offset 2: expecting a number but got 'g'"),
        ("1*x", "data: at offset 2: expecting a number but got 'x'"),
        ("1*-1", "data: at offset 2: a number here must not be negative"),
        ("1*99999999999999999999", "data: at offset 2: the number is larger than 9223372036854775807"),
        ("*2", "data: at offset 0: *N must follow an expression"),
        ("[1:2]", "data: at offset 0: [N:M] must follow an expression"),
        ("-> \\a", "data: at offset 0: -> must follow an expression"),
        ("@5*2", "data: at offset 2: *N cannot be applied to an offset"),
        ("1 - 2", "data: at offset 2: parsing error: unexpected '-', expecting '->'"),
        ("1 -> a", "data: at offset 5: expecting a \\NAME but got 'a'"),
        ("1 -> \\", "data: at offset 5: expecting letters, digits, - or _ after \\"),
        ("@-1", "data: at offset 0: @-1 must not be larger than the current offset 0"),
        ("@^3", "data: at offset 1: @^3 must be a power of 2"),
        ("@", "data: at offset 1: expecting a number but got the end"),
        ("(1 2 3)[2:1]", "data: at offset 7: [2:1] ends before it begins"),
        ("(1 2 3)[:5]", "data: at offset 7: [0:5] is not within the 3 bytes before it"),
        ("(1 2 3)[4:]", "data: at offset 7: [4:3] is not within the 3 bytes before it"),
        ("(1)[1]", "data: at offset 5: expecting [N:M] but got ']' in place of ':'"),
        ("(1)[1:2", "data: at offset 7: expecting [N:M] but got the end in place of ']'"),
        ("1 (2", "data: at offset 2: unmatched '('"),
        ("1)", "data: at offset 1: unmatched ')'"),
        ("1 \\a", "data: at offset 2: \\a not defined"),
        ("(1 -> \\a) \\a", "data: at offset 10: \\a not defined"),
        ("5->\\x*2 \\x", "data: at offset 8: \\x not defined"),
        ("$none", "data: at offset 0: $none: variable not found: neither a parameter nor in the environment"),
        ("1 $1", "data: at offset 2: expecting a letter or _ after $"),
        ("$ones", "data: $twos at offset 2: $ones is part of itself"),
        ("\"abc", "data: at offset 0: unterminated string"),
        ("\"a\\x4\"", "data: at offset 2: \\x must be followed by exactly two hexadecimal digits"),
        ("\"\\u1234\"", "data: at offset 1: there is no escape \\u"),
        ("le16:65536", "data: at offset 5: the number is larger than 65535"),
        ("le8:1", "data: at offset 0: parsing error: expecting le16: le32: le64: be16: be32: or be64:"),
        ("<", "data: at offset 0: expecting the name of a file or (SCRIPT) right after <"),
        ("<(echo", "data: at offset 0: the ')' of <(SCRIPT) is missing"),
        ("1 <(exit 3)", "data: at offset 2: <(exit 3): the script failed (exit status: 3)"),
        ("</does/not/exist", "data: at offset 0: </does/not/exist: No such file or directory (os error 2)"),
        (
            "@0x7fffffffffffffff 1",
            "data: at offset 20: the data goes beyond the largest size of a disk, 2^63 - 1 bytes",
        ),
        (
            "1 </dev/zero",
            "data: at offset 2: </dev/zero: more than 1048576 bytes of data; a slice [N:M] would take a part of it",
        ),
    ] {
        assert_eq!(wrong(text), expected, "{text}");
    }
    assert!(wrong("1 M").starts_with("data: at offset 2: parsing error: unexpected 'M', expecting a byte"));
}

#[test]
fn octal_escapes_are_those_of_c() {
    assert_eq!(bytes(r#" "\0\101\3778" "#), [0, b'A', 0xff, b'8']);
    assert!(wrong(r#" "\400" "#).contains("at most \\377"));
}

#[test]
fn files_and_programs_are_read_whole_or_in_part() {
    let file = TempFile::new("source", b"file1");
    let name = file.name();
    for (text, expected) in [
        (format!("<{name}"), &b"file1"[..]),
        (format!("<{name} @^8"), b"file1\0\0\0"),
        (format!("<{name}*2"), b"file1file1"),
        (format!("<{name}[1:3]*2"), b"ilil"),
        (format!("(<{name}) 2"), b"file1\x02"),
        (format!("<{name} -> \\x \\x\\x"), b"file1file1"),
        // Beyond the end of a file there is nothing, and that is no mistake.
        (format!("<{name}[:10]"), b"file1"),
        (format!("<{name}[9:10]"), b""),
        ("<(printf abc)".into(), b"abc"),
        ("<(printf '(a)')[1:2]".into(), b"a"),
        ("(<(yes))[:4]".into(), b"y\ny\n"),
        ("<(printf ab; exit 3)[:2]".into(), b"ab"),
        ("<(printf ab)[:4]".into(), b"ab"),
        ("</dev/zero[1000:1004]".into(), &[0; 4]),
    ] {
        assert_eq!(bytes(&text), expected, "{text}");
    }
}

#[test]
fn absurd_sizes_take_no_memory() {
    for (text, size) in [
        ("@0x7fffffffffffff00 1", 0x7fff_ffff_ffff_ff01),
        ("(0 1)*1000000000", 2_000_000_000),
        ("(0 1)*4611686018427387903", 9_223_372_036_854_775_806),
        ("0*0x7fffffffffffffff", i64::MAX as u64),
        ("((1 2 3)*1000000 @^4096)*1000000", 3_002_368_000_000),
    ] {
        assert_eq!(image(text).unwrap().len(), size, "{text}");
    }
    for text in ["(0 1)*4611686018427387904", "(@0x7fffffffffffffff)*2", "1*0x7fffffffffffffff*3"] {
        assert!(wrong(text).ends_with("beyond the largest size of a disk, 2^63 - 1 bytes"), "{text}");
    }
    // Each name is twice the one before.
    let doubling: String = (1..62).map(|i| format!("(\\n{} \\n{}) -> \\n{i} ", i - 1, i - 1)).collect();
    assert_eq!(image(&format!("(1 2) -> \\n0 {doubling} \\n61")).unwrap().len(), 1 << 62);
}

#[test]
fn nesting_and_chains_are_bounded() {
    let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(bytes(&nested(100)), [1]);
    assert!(wrong(&nested(1000)).contains("nested more than"));
    assert!(wrong(&nested(1_000_000)).contains("nested more than"));
    // Operators in any number make no depth.
    assert_eq!(bytes(&format!("(1 2){}", "[0:2]*1".repeat(100_000))), [1, 2]);
    let chain: String = (1..10_000).map(|i| format!("(\\n{} 1) -> \\n{i} ", i - 1)).collect();
    assert!(wrong(&format!("1 -> \\n0 {chain} \\n9999")).contains("refer to one another more than"));
    // Used on the way it is not deep, but its bytes are.
    let chain: String = (1..1000).map(|i| format!("(\\n{} 1) -> \\n{i} \\n{i}[:0] \\n{i}[1:2]", i - 1)).collect();
    assert!(wrong(&format!("(5*5000 6) -> \\n0 {chain}")).contains("too many steps"));
}

#[test]
fn the_parameters_are_checked() {
    let error = |params: &[(&str, &str)]| start(params).err().expect("an error").to_string();
    assert_eq!(error(&[]), "data: one of data=, base64= and raw= has to be given");
    assert_eq!(error(&[("size", "5")]), "data: one of data=, base64= and raw= has to be given");
    let twice = "data: exactly one of data=, base64= and raw= has to be given, and once";
    assert_eq!(error(&[("raw", "abc"), ("base64", "MTIz")]), twice);
    assert_eq!(error(&[("data", "1"), ("data", "1")]), twice);
    assert_eq!(error(&[("raw", "abc"), ("foo", "1")]), "data: unknown parameter foo: only data= has variables to set");
    assert!(error(&[("base64", "MTI")]).starts_with("base64=MTI: is not base64"));
    assert!(error(&[("data", "1"), ("size", "-1")]).starts_with("size=-1: "));
    for allocator in ["", "foo", "zstd", "sparse,x=y", "malloc,x=y", "malloc,mlock=maybe"] {
        assert!(error(&[("data", "1"), ("allocator", allocator)]).starts_with("allocator="), "{allocator}");
    }
    assert_eq!(error(&[("data", "1 M")]).lines().count(), 1);
    let huge = [("data", "@0x7fffffffffffff00 1"), ("allocator", "malloc")];
    assert!(error(&huge).starts_with("data: allocator=malloc: no memory for 9223372036854775553 bytes"));
}

#[tokio::test]
async fn variables_are_parameters_first() {
    let handle = open(&[("data", "$HOME $x"), ("HOME", "1 2"), ("x", "3"), ("x", "4")]).await;
    assert_eq!(pread(&*handle, 3, 0).await, [1, 2, 3]);
}

#[tokio::test]
async fn the_size_is_the_contents_unless_it_is_given() {
    for (params, expected) in [
        (&[("raw", "Hello, world!")][..], &b"Hello, world!"[..]),
        (&[("base64", "MTIz"), ("size", "5")], b"123\0\0"),
        (&[("data", "(\"Hello\")*2000"), ("size", "8")], b"HelloHel"),
        (&[("raw", "abc"), ("allocator", "malloc"), ("size", "4")], b"abc\0"),
        (&[("raw", "abc"), ("allocator", "malloc"), ("size", "2")], b"ab"),
    ] {
        let handle = open(params).await;
        assert_eq!(handle.get_size().await.unwrap(), expected.len() as u64, "{params:?}");
        assert_eq!(pread(&*handle, expected.len() as u32, 0).await, expected, "{params:?}");
    }
    assert_eq!(open(&[("data", "1"), ("size", "0")]).await.get_size().await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_not_described_is_a_hole() {
    let handle = open(&[("data", "1 @1048576 2 @3145728")]).await;
    let extents = handle.extents(0, 3 << 20, Flags::NONE).await.unwrap();
    let extent = |offset, length, hole| Extent { offset, length, hole, zero: hole };
    let expected = [
        extent(0, 32768, false),
        extent(32768, 1015808, true),
        extent(1048576, 32768, false),
        extent(1081344, 2064384, true),
    ];
    assert_eq!(extents.as_slice(), expected);

    let one = handle.extents(4096, 3 << 20, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
    assert_eq!(Extents::check(one.as_slice().iter().copied(), 4096, 3 << 20, true).unwrap(), one);

    pwrite(&*handle, &[5; 100], 70_000).await;
    handle.trim(1 << 20, 1 << 20, Flags::NONE).await.unwrap();
    let extents = handle.extents(0, 3 << 20, Flags::NONE).await.unwrap();
    let expected = [
        extent(0, 32768, false),
        extent(32768, 32768, true),
        extent(65536, 32768, false),
        extent(98304, (3 << 20) - 98304, true),
    ];
    assert_eq!(extents.as_slice(), expected);
}

#[tokio::test]
async fn extents_of_an_endless_pattern_end_early_or_in_one() {
    for text in ["(0 1)*4000000000000000000", "(1 @33000)*200000000000000"] {
        let handle = open(&[("data", text)]).await;
        let length = handle.get_size().await.unwrap();
        let extents = handle.extents(0, length, Flags::NONE).await.unwrap();
        Extents::check(extents.as_slice().iter().copied(), 0, length, false).unwrap();
    }
}

#[tokio::test]
async fn the_end_of_the_largest_disk_can_be_written() {
    let handle = open(&[("data", "@0x7fffffffffffff00 1"), ("size", "9223372036854775807")]).await;
    let last = i64::MAX as u64 - 4;
    pwrite(&*handle, &[1, 2, 3, 4], last).await;
    assert_eq!(pread(&*handle, 4, last).await, [1, 2, 3, 4]);
    assert_eq!(pread(&*handle, 2, 0x7fff_ffff_ffff_ff00).await, [1, 0]);
    handle.zero(0, i64::MAX as u64, Flags::NONE).await.unwrap();
    assert_eq!(pread(&*handle, 4, last).await, [0; 4]);
    let extents = handle.extents(0, i64::MAX as u64, Flags::NONE).await.unwrap();
    assert_eq!(extents.as_slice(), [Extent { offset: 0, length: i64::MAX as u64, hole: true, zero: true }]);
}

/// A tree and what it stands for, evaluated in the plainest way.
#[derive(Clone, Debug)]
enum Tree {
    Byte(u8),
    Text(String),
    Word(u16),
    Moved(u16, Vec<Tree>),
    Back(u8, Vec<Tree>),
    Aligned(u32, Vec<Tree>),
    List(Vec<Tree>),
    Repeat(Box<Tree>, u8),
    Slice(Box<Tree>, u16, u16),
    Named(Box<Tree>, u8),
}

struct Plain {
    bytes: Vec<u8>,
    at: usize,
}

impl Plain {
    fn put(&mut self, bytes: &[u8]) {
        self.go(self.at + bytes.len());
        self.bytes[self.at - bytes.len()..self.at].copy_from_slice(bytes);
    }

    fn go(&mut self, to: usize) {
        self.at = to;
        self.bytes.resize(self.bytes.len().max(to), 0);
    }

    /// Adds a tree's text and bytes.
    fn add(&mut self, tree: &Tree, text: &mut String) {
        use std::fmt::Write;
        match tree {
            Tree::Byte(byte) => {
                write!(text, "{byte:#x} ").unwrap();
                self.put(&[*byte]);
            }
            Tree::Text(string) => {
                write!(text, "\"{string}\"").unwrap();
                self.put(string.as_bytes());
            }
            Tree::Word(word) => {
                write!(text, "be16:{word} ").unwrap();
                self.put(&word.to_be_bytes());
            }
            Tree::Moved(to, then) => {
                write!(text, "@{to} ").unwrap();
                self.go(usize::from(*to));
                self.add_all(then, text);
            }
            Tree::Back(by, then) => {
                let by = self.at.min(usize::from(*by));
                write!(text, "@-{by} ").unwrap();
                self.go(self.at - by);
                self.add_all(then, text);
            }
            Tree::Aligned(shift, then) => {
                write!(text, "@^{} ", 1 << shift).unwrap();
                self.go(self.at.next_multiple_of(1 << shift));
                self.add_all(then, text);
            }
            Tree::List(list) => {
                let (inner, bytes) = plain(list);
                write!(text, "({inner})").unwrap();
                self.put(&bytes);
            }
            Tree::Repeat(tree, times) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                write!(text, "({inner})*{times} ").unwrap();
                self.put(&bytes.repeat(usize::from(*times)));
            }
            Tree::Slice(tree, from, to) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                let from = usize::from(*from) % (bytes.len() + 1);
                let to = from + usize::from(*to) % (bytes.len() - from + 1);
                write!(text, "({inner})[{from}:{to}]").unwrap();
                self.put(&bytes[from..to]);
            }
            Tree::Named(tree, times) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                write!(text, "({inner})->\\n {}", "\\n ".repeat(usize::from(*times))).unwrap();
                self.put(&bytes.repeat(usize::from(*times)));
            }
        }
    }

    fn add_all(&mut self, trees: &[Tree], text: &mut String) {
        trees.iter().for_each(|tree| self.add(tree, text));
    }
}

fn plain(trees: &[Tree]) -> (String, Vec<u8>) {
    let (mut plain, mut text) = (Plain { bytes: Vec::new(), at: 0 }, String::new());
    plain.add_all(trees, &mut text);
    (text, plain.bytes)
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(Tree::Byte),
        "[a-z ]{0,5}".prop_map(Tree::Text),
        any::<u16>().prop_map(Tree::Word),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let list = || proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            (0u16..9000, list()).prop_map(|(to, then)| Tree::Moved(to, then)),
            (any::<u8>(), list()).prop_map(|(by, then)| Tree::Back(by, then)),
            (0u32..14, list()).prop_map(|(shift, then)| Tree::Aligned(shift, then)),
            list().prop_map(Tree::List),
            (inner.clone(), 0u8..6).prop_map(|(tree, times)| Tree::Repeat(Box::new(tree), times)),
            (inner.clone(), any::<u16>(), any::<u16>()).prop_map(|(tree, from, to)| Tree::Slice(
                Box::new(tree),
                from,
                to
            )),
            (inner.clone(), 0u8..4).prop_map(|(tree, times)| Tree::Named(Box::new(tree), times)),
        ]
    })
}

/// What a client may do.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Read(u64, u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u64..200_000, proptest::collection::vec(any::<u8>(), 1..3000)).prop_map(|(at, bytes)| Act::Write(at, bytes)),
        (0u64..200_000, 1u64..100_000).prop_map(|(at, length)| Act::Zero(at, length)),
        (0u64..200_000, 1u64..100_000).prop_map(|(at, length)| Act::Read(at, length)),
    ]
}

proptest! {
    // A failure prints its input and is kept in proptest-regressions.
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in r#"[0-9a-fx@+*^\->()\[\]:"\\$# \nl]{0,60}"#) {
        // Without <, which would run programs or open files.
        if let Ok(image) = image(&text) {
            image.read(image.len() / 2, &mut [0; 100]);
            prop_assert!(image.len() <= i64::MAX as u64);
        } else {
            prop_assert!(wrong(&text).starts_with("data: "));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let text: Vec<u8> = text.into_iter().filter(|byte| *byte != b'<').collect();
        let _ = syntax::parse(OsStr::from_bytes(&text), &|_| None).map(|list| eval::evaluate(&list, MAX_READ).is_ok());
    }

    #[test]
    fn expressions_stand_for_what_the_plain_way_makes_of_them(trees in proptest::collection::vec(tree(), 0..5)) {
        let (text, expected) = plain(&trees);
        let image = image(&text).unwrap();
        prop_assert_eq!(image.len(), expected.len() as u64, "{}", text);
        let mut all = vec![0xee; expected.len()];
        image.read(0, &mut all);
        prop_assert!(all == expected, "{}", text);
        // In pieces it is the same, and what is said to be nothing is nothing.
        let mut at = 0;
        while at < expected.len() {
            let (length, data) = image.run(at as u64, expected.len() as u64 - at as u64);
            prop_assert!(length > 0);
            let run = at..at + length as usize;
            prop_assert!(data || expected[run.clone()].iter().all(|byte| *byte == 0), "{}", text);
            let mut part = vec![0xee; run.len()];
            image.read(at as u64, &mut part);
            prop_assert!(part == expected[run.clone()], "{}", text);
            at = run.end;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_keeps_what_is_written(
        trees in proptest::collection::vec(tree(), 0..4),
        acts in proptest::collection::vec(act(), 0..30),
        flat in any::<bool>(),
    ) {
        const SIZE: usize = 200_000;
        let (text, mut model) = plain(&trees);
        model.resize(SIZE, 0);
        let image = image(&text).unwrap();
        let storage: Box<dyn Storage> = match flat {
            true => Box::new(
                Flat::new(SIZE as u64, Residency::Swappable, |offset, bytes| image.read(offset, bytes)).unwrap(),
            ),
            false => Box::new(Sparse::new(&image)),
        };
        let read = |offset: u64, length: u64| {
            let mut buffer = Buffer::new(length as u32);
            let span = buffer.span();
            storage.pread(&mut buffer, span, offset);
            buffer.bytes(span).to_vec()
        };
        let within = |at: u64, length: u64| length.min(SIZE as u64 - at);
        for act in acts {
            match act {
                Act::Write(at, bytes) => {
                    let bytes = &bytes[..within(at, bytes.len() as u64) as usize];
                    storage.pwrite(bytes, at).unwrap();
                    model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                }
                Act::Zero(at, length) => {
                    let length = within(at, length);
                    storage.zero(at, length);
                    model[at as usize..(at + length) as usize].fill(0);
                }
                Act::Read(at, length) => {
                    let length = within(at, length);
                    prop_assert!(read(at, length) == model[at as usize..(at + length) as usize]);
                    let extents = storage.extents(at, length, Flags::NONE);
                    let list = extents.as_slice();
                    prop_assert_eq!(list.iter().map(|extent| extent.length).sum::<u64>(), length);
                    for extent in list.iter().filter(|extent| extent.zero) {
                        prop_assert!(model[extent.offset as usize..extent.end() as usize].iter().all(|byte| *byte == 0));
                    }
                    Extents::check(list.iter().copied(), at, length, false).unwrap();
                }
            }
        }
        prop_assert!(read(0, SIZE as u64) == model);
    }
}
