//! Fuzzing of what the filter luks reads of a header, with the filter's own parsers.
//!
//! The inputs are mutations of good headers of both versions. Reading one must not panic, must give
//! the same result again, and gives either a volume whose numbers fit together or an error of one
//! line.

#[path = "../../guest-filters/shared/src/luks/header.rs"]
mod header;
#[path = "../../guest-filters/shared/src/luks/luks1.rs"]
mod luks1;
#[path = "../../guest-filters/shared/src/luks/luks2.rs"]
#[expect(dead_code, reason = "what the filter alone needs")]
mod luks2;
#[path = "../../guest-filters/shared/src/luks/volume.rs"]
mod volume;

use header::Found;
use luks2::{Binary, Copy};
use rbdkit_tests::{Rng, seed};
use volume::{HeaderError, Volume};

use crate::Budget;

/// The metadata of a disk that cryptsetup made, with a key slot of each kind.
const METADATA: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,
"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},
"kdf":{"type":"argon2id","time":4,"memory":32768,"cpus":2,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},
"1":{"type":"luks2","key_size":64,"priority":2,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{
"type":"raw","offset":"290816","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2",
"hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}},"tokens":{},
"segments":{"0":{"type":"crypt",
"offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{
"type":"pbkdf2","keyslots":["0","1"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAA"}},
"config":{"json_size":"12288","keyslots_size":"16744448"}}"#;

/// What JSON and numbers are sensitive to.
const PIECES: [&[u8]; 16] = [
    b"{",
    b"}",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\u0000",
    b"1e999",
    b"-1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"null",
    b"\xff\xfe",
    b"0",
    b"\"type\"",
];

fn luks1_header() -> Vec<u8> {
    let mut header = vec![0; 592];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\0\x01aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4096_u32.to_be_bytes());
    put(108, &64_u32.to_be_bytes());
    put(164, &1000_u32.to_be_bytes());
    for slot in 0..8 {
        let state: u32 = if slot < 3 { 0x00ac_71f3 } else { 0xdead };
        put(208 + slot * 48, &state.to_be_bytes());
        put(212 + slot * 48, &1000_u32.to_be_bytes());
        put(248 + slot * 48, &(8 + 504 * slot as u32).to_be_bytes());
        put(252 + slot * 48, &4000_u32.to_be_bytes());
    }
    header
}

fn luks2_binary() -> Vec<u8> {
    let mut header = vec![0; 4096];
    header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    header[8..16].copy_from_slice(&(16_u64 << 10).to_be_bytes());
    header[72..78].copy_from_slice(b"sha256");
    header
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let end = (at + rng.below(12) as usize).min(bytes.len());
        match rng.below(6) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = [0, 1, 127, 128, 255][rng.below(5) as usize],
            3 => drop(bytes.drain(at..end)),
            4 if rng.chance(10) => bytes.truncate(at),
            _ => {
                let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
                bytes.splice(at..end, piece.iter().copied());
            }
        }
    }
}

/// Checks what a reader promised of a volume, or of an error.
fn check(read: &Result<Volume, HeaderError>, input: &[u8]) {
    let shown = || String::from_utf8_lossy(input).into_owned();
    match read {
        Ok(volume) => {
            assert!(matches!(volume.sector, 512 | 1024 | 2048 | 4096), "{volume:?} of {}", shown());
            assert!(volume.slots.len() <= 32 && (1..=512).contains(&volume.key_bytes), "{volume:?} of {}", shown());
            for slot in &volume.slots {
                let material = slot.material(volume).expect("material of a checked volume");
                assert!(slot.offset + u64::from(material) <= volume.offset, "{volume:?} of {}", shown());
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(
                !line.is_empty() && line.len() < 250 && !line.contains(char::is_control),
                "{line:?} of {}",
                shown()
            );
        }
    }
}

#[test]
fn headers_of_luks_are_read_or_refused() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut good = 0;
    let (first, second) = (luks1_header(), luks2_binary());
    assert!(matches!(header::first(&first), Ok(Found::Luks1(_))) && header::first(&second) == Ok(Found::Luks2));
    assert!(Binary::parse(&second, Copy::Primary, 0).is_ok() && luks2::json(METADATA.as_bytes()).is_ok());
    let budget = Budget::new(20_000);
    let mut round = 0;
    while budget.goes_on(round) {
        round += 1;
        let mut bytes = first.clone();
        mutate(&mut rng, &mut bytes);
        let read = header::first(&bytes);
        assert_eq!(read, header::first(&bytes));
        match read {
            Ok(Found::Luks1(volume)) => check(&Ok(*volume), &bytes),
            Ok(Found::Luks2) => {}
            Err(error) => check(&Err(error), &bytes),
        }
        let mut bytes = second.clone();
        mutate(&mut rng, &mut bytes);
        match Binary::parse(&bytes, Copy::Primary, 0) {
            Ok(binary) => assert!((16 << 10..=4 << 20).contains(&binary.size)),
            Err(error) => check(&Err(error), &bytes),
        }
        let mut bytes = METADATA.as_bytes().to_vec();
        mutate(&mut rng, &mut bytes);
        let read = luks2::json(&bytes);
        good += u64::from(read.is_ok());
        check(&read, &bytes);
    }
    println!("{good} of {round} mutated metadata were readable");
    assert!(good > 0 && good < round);
}
