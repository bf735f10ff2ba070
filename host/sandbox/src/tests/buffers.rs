//! The functions of `buffer` that work in the host: on long ranges, at positions that are not
//! aligned, and with wrong arguments.

use rbdkit_plugin_api::Errno;
use sha2::{Digest as _, Sha256};

use super::support::{Disk, Guest, Stack, read};
use crate::FilterLimits;

/// Long enough for three pieces of the host's, the last one short.
const LENGTH: u32 = (5 << 19) + 8;
/// The part of the payload that is changed begins here.
const AT: u32 = 5;
/// How long it is: a multiple of 8.
const PART: u32 = LENGTH - 16;
/// Where the client reads.
const OFFSET: u64 = 12_345;

const IMPORTS: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "copy" (func $copy (param i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "mismatch" (func $mismatch (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "xor" (func $xor (param i32 i32 i32 i32 i32 i64)))
    (import "rbdkit:filter/buffer@0.1.0" "translate" (func $translate (param i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "swap" (func $swap (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "find" (func $find (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "sha256" (func $sha256 (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "crc32c" (func $crc32c (param i32 i32 i32 i32) (result i32)))
"#;

/// A guest that reads, and then does `code`. It has the bytes "key" at 3000 and a table at 3100
/// that turns each byte n into 255 - n.
fn after_reading(code: &str) -> Guest {
    let table: String = (0..=255u8).rev().map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!(
        r#"{IMPORTS}
    (data (i32.const 3000) "key")
    (data (i32.const 3100) "{table}")
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        {code}
        (i32.const 2048))
"#
    );
    Guest::new(&["reads"], &body)
}

/// What the disk has, and what the client reads.
async fn bytes_of(code: &str) -> (Vec<u8>, Vec<u8>) {
    let disk = Disk::default();
    let mut state = 1u64;
    *disk.bytes.lock().unwrap() = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(3 << 20)
    .collect();
    let stack = Stack::over(&[after_reading(code)], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    let answer = read(&top, OFFSET, LENGTH).await.unwrap();
    top.finalize().await.unwrap();
    top.close().await;
    let below = stack.disk.bytes.lock().unwrap()[OFFSET as usize..][..LENGTH as usize].to_vec();
    (below, answer)
}

/// Checks that `code` changes the part as `change` does and nothing else. `change` gets a byte's
/// position in the part.
async fn changes(code: &str, change: impl Fn(&[u8], usize) -> u8) {
    let (below, answer) = bytes_of(code).await;
    let part = &below[AT as usize..][..PART as usize];
    let mut expected = below.clone();
    for at in 0..part.len() {
        expected[AT as usize + at] = change(part, at);
    }
    assert!(answer == expected, "{code}");
}

#[tokio::test]
async fn a_range_is_changed_in_the_host() {
    let part = format!("(i32.const 0) (i32.const {AT}) (i32.const {PART})");
    let key = b"key";
    changes(&format!("(call $xor {part} (i32.const 3000) (i32.const 3) (local.get 0))"), |part, at| {
        part[at] ^ key[((OFFSET + at as u64) % 3) as usize]
    })
    .await;
    changes(&format!("(call $xor {part} (i32.const 3000) (i32.const 3) (i64.const -1))"), |part, at| {
        part[at] ^ key[((u128::from(u64::MAX) + at as u128) % 3) as usize]
    })
    .await;
    changes(&format!("(call $translate {part} (i32.const 3100) (i32.const 256))"), |part, at| 255 - part[at]).await;
    for width in [2, 4, 8] {
        let swap = format!("(call $swap {part} (i32.const {width}))");
        changes(&swap, |part, at| part[at - at % width + width - 1 - at % width]).await;
    }
}

/// A range of one piece and a short key take another way through the host than the rest.
#[tokio::test]
async fn a_short_range_is_changed_like_a_long_one() {
    for (length, key_length) in
        [(1u32, 1u32), (4096, 1), (4097, 3), (64, 64), (1 << 20, 3), ((1 << 20) + 1, 3), (100, 65)]
    {
        let skip = 7;
        let code = format!(
            "(call $xor (i32.const 0) (i32.const {AT}) (i32.const {length}) (i32.const 3100) (i32.const {key_length}) \
             (i64.const {skip}))"
        );
        let (below, answer) = bytes_of(&code).await;
        let mut expected = below;
        // The key is the begin of the table: 255, 254, ...
        for at in 0..length {
            expected[(AT + at) as usize] ^= 255 - ((at + skip) % key_length) as u8;
        }
        assert!(answer == expected, "{length} bytes, a key of {key_length}");
    }
}

/// A long key is not repeated by the host, and the pieces of the range do not begin at its start.
#[tokio::test]
async fn a_key_of_the_greatest_length_is_repeated_over_the_range() {
    let code = format!(
        "(call $xor (i32.const 0) (i32.const {AT}) (i32.const {PART}) (i32.const 0) (i32.const 65536) (i64.const 7))"
    );
    let (below, answer) = bytes_of(&code).await;
    let key: Vec<u8> = (0..65536).map(|at| below[AT as usize + at] ^ answer[AT as usize + at]).collect();
    assert!(key.iter().any(|byte| *byte != 0));
    changes(&code, |part, at| part[at] ^ key[at % 65536]).await;
}

#[tokio::test]
async fn a_range_is_digested_in_the_host() {
    let part = format!("(i32.const 0) (i32.const {AT}) (i32.const {PART})");
    let sha256 = format!(
        "(call $sha256 {part} (i32.const 2100)) (call $write (i32.const 0) (i32.const 0) (i32.load (i32.const 2100)) \
         (i32.load (i32.const 2104)))"
    );
    let (below, answer) = bytes_of(&sha256).await;
    assert_eq!(answer[..32], Sha256::digest(&below[AT as usize..][..PART as usize])[..]);
    // The known checksum of "123456789" is e3069283. Here it is made of two ranges.
    let crc32c =
        "(i32.store (i32.const 3000) (i32.const 0x34333231)) (i32.store (i32.const 3004) (i32.const 0x38373635))
        (i32.store8 (i32.const 3008) (i32.const 0x39))
        (call $write (i32.const 0) (i32.const 100) (i32.const 3000) (i32.const 9))
        (i32.store (i32.const 2100) (call $crc32c (i32.const 0) (i32.const 104) (i32.const 5)
            (call $crc32c (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 0))))
        (call $write (i32.const 0) (i32.const 0) (i32.const 2100) (i32.const 4))";
    let (_, answer) = bytes_of(crc32c).await;
    assert_eq!(answer[..4], 0xe306_9283_u32.to_le_bytes());
    let long = format!(
        "(i32.store (i32.const 2100) (call $crc32c {part} (i32.const 0)))
         (call $write (i32.const 0) (i32.const 0) (i32.const 2100) (i32.const 4))"
    );
    let (below, answer) = bytes_of(&long).await;
    assert_eq!(answer[..4], crc32c::crc32c(&below[AT as usize..][..PART as usize]).to_le_bytes());
}

/// Writes an optional number to the begin of the payload: 1 or 0, and the number.
const WRITE_ANSWER: &str = "(call $write (i32.const 0) (i32.const 0) (i32.const 2100) (i32.const 8))";

async fn answer(code: &str) -> Option<u32> {
    let (_, answer) = bytes_of(&format!("{code} {WRITE_ANSWER}")).await;
    (answer[0] == 1).then(|| u32::from_le_bytes(answer[4..8].try_into().unwrap()))
}

#[tokio::test]
async fn a_range_is_searched_in_the_host() {
    let found = async |pattern_at: u32, from: u32, length: u32| {
        let pattern = "(i64.store (i32.const 3000) (i64.const 0x0102030405060708))";
        answer(&format!(
            "{pattern} (call $write (i32.const 0) (i32.const {pattern_at}) (i32.const 3000) (i32.const 8)) \
             (call $find (i32.const 0) (i32.const {from}) (i32.const {length}) (i32.const 3000) (i32.const 8) \
             (i32.const 2100))"
        ))
        .await
    };
    // Within a piece, over the border of two pieces, at the very end, and cut off by the range's
    // end.
    for pattern_at in [100, (1 << 20) + AT - 3, (2 << 20) + AT - 7, AT + PART - 8] {
        assert_eq!(found(pattern_at, AT, PART).await, Some(pattern_at - AT), "{pattern_at}");
    }
    assert_eq!(found(AT + PART - 8, AT, PART - 1).await, None);
    assert_eq!(found(100, 101, 1000).await, None);
    assert_eq!(found(100, 100, 0).await, None);
}

#[tokio::test]
async fn two_ranges_are_compared_in_the_host() {
    let differs = async |at: Option<u32>| {
        let change = at.map_or(String::new(), |at| {
            format!("(call $translate (i32.const 1) (i32.const {at}) (i32.const 1) (i32.const 3100) (i32.const 256))")
        });
        answer(&format!(
            "(call $alloc (i32.const {LENGTH}) (i32.const 2100)) \
             (call $copy (i32.const 1) (i32.const 0) (i32.const 0) (i32.const {AT}) (i32.const {PART})) {change} \
             (call $mismatch (i32.const 1) (i32.const 0) (i32.const 0) (i32.const {AT}) (i32.const {PART}) \
             (i32.const 2100))"
        ))
        .await
    };
    assert_eq!(differs(None).await, None);
    for at in [0, (1 << 20) - 1, 1 << 20, PART - 1] {
        assert_eq!(differs(Some(at)).await, Some(at));
    }
    // One buffer and overlapping ranges of it.
    let same =
        "(call $mismatch (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 8) (i32.const 100) (i32.const 2100))";
    assert_eq!(answer(same).await, None);
    let shifted =
        "(call $mismatch (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 9) (i32.const 100) (i32.const 2100))";
    assert_eq!(answer(shifted).await, Some(0));
}

#[tokio::test]
async fn wrong_arguments_trap_with_a_line_that_names_them() {
    let range = "(i32.const 0) (i32.const 0)";
    for (code, why) in [
        (
            format!("(call $xor {range} (i32.const 8) (i32.const 3000) (i32.const 0) (i64.const 0))"),
            "buffer.xor with a key of 0 bytes, which must be 1 to 65536",
        ),
        (
            format!("(call $xor {range} (i32.const 513) (i32.const 3000) (i32.const 3) (i64.const 0))"),
            "513 bytes at 0 are not within buffer 0 of 512",
        ),
        (
            format!("(call $translate {range} (i32.const 8) (i32.const 3100) (i32.const 255))"),
            "buffer.translate with a table of 255 bytes, which must be 256",
        ),
        (
            format!("(call $swap {range} (i32.const 8) (i32.const 3))"),
            "buffer.swap of groups of 3 bytes, which must be 2, 4 or 8",
        ),
        (
            format!("(call $swap {range} (i32.const 10) (i32.const 4))"),
            "buffer.swap of 10 bytes, which is no multiple of 4",
        ),
        (
            format!("(call $find {range} (i32.const 8) (i32.const 3000) (i32.const 0) (i32.const 2100))"),
            "buffer.find of 0 bytes, which must be 1 to 65536",
        ),
        ("(call $sha256 (i32.const 9) (i32.const 0) (i32.const 1) (i32.const 2100))".into(), "there is no buffer 9"),
        (
            "(call $mismatch (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 13) (i32.const 2100))"
                .into(),
            "13 bytes at 500 are not within buffer 0 of 512",
        ),
    ] {
        let stack = Stack::new(&[after_reading(&code)]).await;
        let top = stack.open().await;
        let error = read(&top, 0, 512).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{error}");
        assert!(error.to_string().contains(why), "{code}: {error}");
        top.finalize().await.unwrap();
        top.close().await;
    }
}
