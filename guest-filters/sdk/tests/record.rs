//! A record of the server's recorder runs in a native test, and shows where a filter differs.

use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_sdk::testing::{Host, Record, Replayed};

params! {
    /// The parameters.
    struct Settings {
        /// The key.
        key: u8 = 255,
    }
}

/// What `rbdkit-filter new --lang rust` makes, with a mistake of this kind.
struct Xor<const MISTAKE: u8> {
    key: u8,
}

const NO_MISTAKE: u8 = 0;
/// Reads from byte 4096 on are not changed back.
const READS: u8 = 1;
/// Writes of 512 bytes go one byte too far.
const WRITES: u8 = 2;
/// Writes of 512 bytes fail.
const FAILS: u8 = 3;
/// All is read from the end of the disk, which nobody has read.
const ELSEWHERE: u8 = 4;
/// Nothing is read below, and all is zero.
const DARK: u8 = 5;

impl<const MISTAKE: u8> Filter for Xor<MISTAKE> {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("xor", "1", "exclusive-or with a key")
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Xor { key: settings.key })
    }
}

impl<const MISTAKE: u8> Reads for Xor<MISTAKE> {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        if MISTAKE == DARK {
            return Ok(());
        }
        let from = if MISTAKE == ELSEWHERE { next::get_size()? - u64::from(length) } else { offset };
        next::pread(from, length, PAYLOAD, 0)?;
        if MISTAKE != READS || offset < 4096 {
            Payload.xor(..length, &[self.key], 0);
        }
        Ok(())
    }
}

impl<const MISTAKE: u8> Writes for Xor<MISTAKE> {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        if MISTAKE == FAILS && length == 512 {
            return Err(Errno::Enospc);
        }
        Payload.xor(..length, &[self.key], 0);
        let offset = if MISTAKE == WRITES && length == 512 { offset + 1 } else { offset };
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

mod exported {
    use super::Xor;
    macro_rules! export {
        ($($name:ident $mistake:literal),*) => { $(mod $name {
            type Made = super::Xor<$mistake>;
            rbdkit_filter_sdk::export!(Made: reads, writes);
        })* };
    }
    export!(a 0, b 1, c 2, d 3, e 4, f 5);
}

const FILE: &str = "tests/record/xor.rec";

fn replay<const MISTAKE: u8>(words: &[&str]) -> Replayed
where
    Xor<MISTAKE>: rbdkit_filter_sdk::testing::Exported,
{
    let record = Record::read(FILE).unwrap();
    Host::from_record(&record).unwrap().replay::<Xor<MISTAKE>>(&record, words).unwrap()
}

#[test]
fn the_same_filter_answers_as_in_the_record() {
    let replayed = replay::<NO_MISTAKE>(&[]);
    replayed.assert_same();
    assert_eq!((replayed.calls, replayed.guesses, replayed.log.len()), (36, 0, 0));
    assert!(replayed.compared > 20, "{replayed:?}");
    assert_eq!(Record::read(FILE).unwrap().layer(), "rust");
}

#[test]
fn what_differs_is_named() {
    for (differs, line) in [
        (replay::<READS>(&[]), "pread of 3000 bytes at 60000: expected "),
        (replay::<WRITES>(&[]), "the disk below, byte 4096: expected "),
        (replay::<FAILS>(&[]), "pwrite of 512 bytes at 4096: expected success, got enospc"),
        (replay::<NO_MISTAKE>(&["key=8"]), "pread of 4096 bytes at 0: expected "),
    ] {
        assert!(differs.differences.iter().any(|found| found.contains(line)), "{line}: {differs:?}");
        assert_eq!(differs.differing as usize, differs.differences.len());
    }
}

#[test]
#[should_panic(expected = "calls differ from the record:\ncall ")]
fn a_difference_fails_the_test() {
    replay::<READS>(&[]).assert_same();
}

#[test]
fn what_the_record_does_not_have_is_not_compared() {
    let replayed = replay::<ELSEWHERE>(&[]);
    assert!(replayed.guesses > 0, "{replayed:?}");
    assert!(replayed.differences.iter().all(|line| !line.contains("pread of 4096")), "{replayed:?}");
    assert!(replay::<DARK>(&[]).differing > 0);
}

#[test]
fn a_file_that_is_no_record_is_named() {
    let wrong = |bytes: &[u8]| Record::from_bytes(bytes.to_vec()).err().unwrap_or_default();
    assert_eq!(wrong(b""), "is not a record of rbdkit --record");
    assert_eq!(wrong(b"rbdkitRC\x03\0\0\0"), "is a record of version 3, and this SDK reads versions 1 and 2");
    assert_eq!(wrong(b"rbdkitRC\x02\0\0\0"), "the record ends before its first entry");
    let missing = Record::read("tests/record/none.rec").err().unwrap();
    assert!(missing.starts_with("tests/record/none.rec: No such file"), "{missing}");
    assert_eq!(Record::read("tests").err().unwrap(), "tests: is not a file");
}

/// What is damaged gives a line or a shorter record, and never a panic.
#[test]
fn a_damaged_record_gives_a_line() {
    let whole = std::fs::read(FILE).unwrap();
    let mut lines = std::collections::BTreeSet::new();
    for at in (0..whole.len()).step_by(997) {
        let cut = Record::from_bytes(whole[..at].to_vec());
        if let Ok(record) = cut {
            let host = Host::from_record(&record).unwrap();
            let replayed = host.replay::<Xor<NO_MISTAKE>>(&record, &[]).unwrap();
            assert_eq!(replayed.differing, 0, "{replayed:?}");
        }
        let mut damaged = whole.clone();
        damaged[at] ^= 0x20;
        let line = Record::from_bytes(damaged).err().expect("each byte is covered by a checksum");
        lines.insert(line.split(": ").last().unwrap_or_default().to_string());
    }
    assert!(lines.contains("the entry is damaged (its checksum is wrong)"), "{lines:?}");
}

/// Entries whose checksums are right and whose fields are lies.
#[test]
fn a_lie_in_a_record_gives_a_line() {
    let whole = std::fs::read(FILE).unwrap();
    let (mut entries, mut at) = (Vec::new(), 12);
    while at < whole.len() {
        let length = u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
        entries.push(whole[at + 12..at + 12 + length].to_vec());
        at += 12 + length;
    }
    let written = |entries: &[Vec<u8>]| {
        let mut file = whole[..12].to_vec();
        for body in entries {
            let mut header = (body.len() as u32).to_le_bytes().to_vec();
            header.extend(crc32c(body).to_le_bytes());
            header.extend(crc32c(&header).to_le_bytes());
            file.extend(header);
            file.extend(body);
        }
        file
    };
    assert_eq!(written(&entries), whole);
    let (mut refused, mut taken) = (0, 0);
    let places: Vec<(usize, usize)> = (0..entries.len())
        .flat_map(|index| (0..entries[index].len().min(48)).map(move |byte| (index, byte)))
        .step_by(11)
        .collect();
    for (index, byte) in places {
        for value in [0x01, 0xff] {
            let mut lie = entries.clone();
            lie[index][byte] = value;
            match Record::from_bytes(written(&lie)) {
                Err(line) => {
                    assert!(line.len() < 300 && !line.contains('\n'), "{line}");
                    refused += 1;
                }
                Ok(record) => {
                    let host = Host::from_record(&record);
                    let _ = host.and_then(|host| host.replay::<Xor<NO_MISTAKE>>(&record, &[]));
                    taken += 1;
                }
            }
        }
    }
    assert!(refused > 100 && taken > 100, "{refused} {taken}");
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
