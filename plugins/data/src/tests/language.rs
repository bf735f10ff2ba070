//! What texts in the data language stand for, and what is wrong with others.

use super::*;

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

#[test]
fn base64_stands_between_other_expressions() {
    for (text, expected) in [
        ("base64:MTIz", &b"123"[..]),
        ("1 base64:MTI=*2 2", b"\x01\x31\x32\x31\x32\x02"),
        ("(base64:MTIz)[1:]", b"23"),
        ("base64:MTIz[1:2] be16:1", b"\x32\0\x01"),
        ("base64: 1", b"\x01"),
    ] {
        assert_eq!(bytes(text), expected, "{text}");
    }
    let refused = "the text after base64: is not base64: it ends within a group of four characters";
    assert!(wrong("1 base64:MTI").contains(refused), "{}", wrong("1 base64:MTI"));
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
        ("@1k", &[0; 1024]),
        ("@1K@-1k@+01k@-1k 1@^1k", &[&[1][..], &[0; 1023]].concat()),
        ("(1*2k)[1k:]", &[1; 1024]),
        ("@3be16:0x102", &[0, 0, 0, 1, 2]),
        ("@1le16:2", &[0, 2, 0]),
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
        ("@16e", "data: at offset 1: the number is larger than 9223372036854775807"),
        ("@1kb", "data: at offset 3: parsing error: expecting le16: le32: le64: be16: be32: be64: or base64:"),
        (
            "1k",
            "data: at offset 1: parsing error: unexpected 'k', expecting a byte, \"STRING\", @OFFSET, <FILE, ( ... ), \
             \\NAME or $VAR",
        ),
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
        ("le8:1", "data: at offset 0: parsing error: expecting le16: le32: le64: be16: be32: be64: or base64:"),
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
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, b"file1").unwrap();
    let name = file.path().display();
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
