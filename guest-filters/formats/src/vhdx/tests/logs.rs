//! Logs that have to be replayed.

use rbdkit_filter_sdk::ExtentType;
use rbdkit_filter_sdk::image::ExtentList;

use super::*;
use crate::testing::sample;
use crate::testing::vhdx::{
    BAT, BLOCKS, Change, DATA_WRITE, ITEMS, LOG, LOG_SIZE, Layout, LogEntry, put, put_log, seal, sign,
};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;

/// A disk of 4 blocks of which the table has none. Two are in the image: of fives and of sixes.
fn image() -> Vec<u8> {
    Layout { blocks: [vec![5; MIB], vec![6; MIB]].concat(), ..Layout::default() }.image()
}

/// The first sector of the table, in which these blocks are at so many MiB.
fn table(blocks: &[(usize, u64)]) -> Change {
    let mut sector = vec![0; SECTOR];
    for (block, mib) in blocks {
        put(&mut sector, block * 8, &(mib << 20 | 6).to_le_bytes());
    }
    Change::Data(BAT as u64, sector)
}

fn entry(sequence: u64, tail: usize, changes: Vec<Change>) -> LogEntry {
    let size = BLOCKS as u64 + 2 * MIB as u64;
    LogEntry { sequence, tail: tail as u32, flushed: size, last: size, changes }
}

/// The first bytes of the first three blocks.
fn blocks(bytes: &[u8]) -> [u8; 3] {
    let image = opened(bytes);
    [0, 1, 2].map(|n| {
        let mut byte = [0];
        image.read(n * MIB as u64, &mut byte).unwrap();
        byte[0]
    })
}

#[test]
fn a_log_is_replayed_and_the_image_is_not_written() {
    let mut bytes = image();
    assert_eq!(blocks(&bytes), [0, 0, 0]);
    put_log(&mut bytes, 0, &entry(1, 0, vec![table(&[(1, 4), (2, 5)])]).bytes());
    assert_eq!(blocks(&bytes), [0, 5, 6]);
    let report = report(&bytes);
    assert!(report.facts.contains(&("log", "1 entries, from 1 to 1".into())));
    assert_eq!(
        report.dangers,
        ["the log is not empty: the image was not closed. It is read as if the log were replayed"]
    );
}

#[test]
fn later_entries_hide_earlier_ones_and_zeroes_hide_data() {
    let mut bytes = image();
    let mut at = put_log(&mut bytes, 8192, &entry(10, 8192, vec![table(&[(0, 4), (1, 4)])]).bytes());
    at = put_log(&mut bytes, at, &entry(11, 8192, vec![table(&[(1, 5)])]).bytes());
    assert_eq!(blocks(&bytes), [0, 6, 0]);
    // Zeroes over a part of a block, and data over a part of these zeroes.
    let zero = Change::Zero(BLOCKS as u64 + MIB as u64, 3 * SECTOR as u64);
    let sector = Change::Data((BLOCKS + MIB + SECTOR) as u64, sample(SECTOR, 5));
    put_log(&mut bytes, at, &entry(12, 8192, vec![zero, sector]).bytes());
    let image = opened(&bytes);
    let expected = [vec![0; SECTOR], sample(SECTOR, 5), vec![0; SECTOR], vec![6; MIB - 3 * SECTOR]].concat();
    let mut block = vec![0; MIB];
    image.read(MIB as u64, &mut block).unwrap();
    assert!(block == expected);
    let mut part = vec![0; 9];
    image.read((MIB + 2 * SECTOR - 5) as u64, &mut part).unwrap();
    assert_eq!(part, expected[2 * SECTOR - 5..2 * SECTOR + 4]);
}

#[test]
fn only_entries_from_the_tail_on_are_replayed() {
    let mut bytes = image();
    let at = put_log(&mut bytes, 0, &entry(1, 0, vec![Change::Data(BLOCKS as u64, vec![9; SECTOR])]).bytes());
    put_log(&mut bytes, at, &entry(2, at, vec![table(&[(0, 4)])]).bytes());
    assert_eq!(blocks(&bytes), [5, 0, 0], "the first entry is in the image already");
    let report = report(&bytes);
    assert!(report.facts.contains(&("log", "1 entries, from 2 to 2".into())), "{:?}", report.facts);
}

#[test]
fn entries_wrap_around_the_end_of_the_log() {
    // At each place: the header alone, the descriptors, or a part of the data is before the end.
    for before in 1..6 {
        let mut bytes = image();
        let first = LOG_SIZE - before * SECTOR;
        let data = |n: u64| Change::Data(BLOCKS as u64 + n * SECTOR as u64, vec![n as u8; SECTOR]);
        // 131 descriptors need two sectors.
        let zeroes = (0..128).map(|n| Change::Zero((BLOCKS + MIB + n * 2 * SECTOR) as u64, SECTOR as u64));
        let changes = zeroes.chain([data(1), data(2)]).chain([table(&[(0, 4), (1, 5)])]).collect();
        let at = put_log(&mut bytes, first, &entry(100, first, changes).bytes());
        put_log(&mut bytes, at, &entry(101, first, vec![data(3)]).bytes());
        let image = opened(&bytes);
        let mut block = vec![0; MIB];
        image.read(0, &mut block).unwrap();
        let expected: Vec<u8> = [5, 1, 2, 3].iter().flat_map(|n| vec![*n; SECTOR]).collect();
        assert!(block[..4 * SECTOR] == expected && block[4 * SECTOR..].iter().all(|byte| *byte == 5), "{before}");
        image.read(MIB as u64, &mut block).unwrap();
        assert!(block.chunks(SECTOR).enumerate().all(|(n, sector)| sector[0] == if n % 2 == 0 { 0 } else { 6 }));
    }
}

#[test]
fn a_torn_last_entry_is_left_out() {
    let mut bytes = image();
    let at = put_log(&mut bytes, 0, &entry(1, 0, vec![table(&[(0, 4)])]).bytes());
    let whole = entry(2, 0, vec![table(&[(0, 5)]), Change::Zero(BLOCKS as u64, SECTOR as u64)]).bytes();
    put_log(&mut bytes, at, &whole);
    assert_eq!(blocks(&bytes), [6, 0, 0]);
    for length in (SECTOR..whole.len()).step_by(512) {
        let mut torn = bytes.clone();
        torn[LOG + at + length..LOG + at + whole.len()].fill(0xee);
        assert_eq!(blocks(&torn), [5, 0, 0], "{length} bytes of the second entry were written");
    }
    // Its length may be what is wrong.
    for length in [0u32, 1, 4095, LOG_SIZE as u32 + 4096, u32::MAX, u32::MAX - 4095] {
        let mut torn = bytes.clone();
        put(&mut torn, LOG + at + 8, &length.to_le_bytes());
        assert_eq!(blocks(&torn), [5, 0, 0], "a length of {length}");
    }
}

#[test]
fn older_sequences_and_other_logs_are_left_out() {
    let mut bytes = image();
    // The ring has gone around: behind the head is what is left of the round before.
    let at = put_log(&mut bytes, 0, &entry(50, 0, vec![table(&[(0, 5)])]).bytes());
    let at = put_log(&mut bytes, at, &entry(10, at, vec![table(&[(1, 5)])]).bytes());
    put_log(&mut bytes, at, &entry(11, at, vec![table(&[(2, 5)])]).bytes());
    // A sequence with a larger number that is not complete: its tail is no entry.
    put_log(&mut bytes, 40 * SECTOR, &entry(90, 30 * SECTOR, vec![table(&[(2, 5)])]).bytes());
    // An entry of another log.
    let mut other = entry(99, 60 * SECTOR, vec![table(&[(2, 5)])]).bytes();
    other[32] = 77;
    sign(&mut other);
    put_log(&mut bytes, 60 * SECTOR, &other);
    assert_eq!(blocks(&bytes), [6, 0, 0]);
}

#[test]
fn a_log_that_is_empty_is_not_looked_at() {
    let mut bytes = image();
    put_log(&mut bytes, 0, &entry(1, 0, vec![table(&[(1, 4)])]).bytes());
    for header in [64 << 10, 128 << 10] {
        bytes[header + 48..header + 64].fill(0);
        // Nor is its version.
        bytes[header + 64] = 5;
    }
    seal(&mut bytes);
    assert_eq!(blocks(&bytes), [0, 0, 0]);
}

#[test]
fn the_log_says_how_long_the_image_is() {
    let mut bytes = image();
    let zero = Change::Zero(8 * MIB as u64, MIB as u64);
    let log = LogEntry { last: 9 * MIB as u64, ..entry(1, 0, vec![table(&[(0, 7), (1, 8)]), zero]) };
    put_log(&mut bytes, 0, &log.bytes());
    let image = opened(&bytes);
    assert!(read_all(&image) == Ok(vec![0; 4 * MIB]), "what is behind the end is zero");
    image.cache(0, 4 * MIB as u64).unwrap();
    let mut cut = bytes;
    cut.truncate(BLOCKS + MIB);
    assert_eq!(refused(&cut), "the image had 6291456 bytes when the log was written, and has 5242880: it was cut");
}

#[test]
fn a_log_changes_metadata_and_regions_as_well() {
    let mut bytes = image();
    let mut regions = bytes[192 << 10..256 << 10].to_vec();
    put(&mut regions, 8, &[3]);
    put(&mut regions, 16 + 64, &DATA_WRITE.0);
    put(&mut regions, 16 + 64 + 16, &[0, 0, 0x40]);
    put(&mut regions, 16 + 64 + 24, &[0, 0, 0x10, 0, 1]);
    sign(&mut regions);
    let mut size = bytes[ITEMS + SECTOR..][..SECTOR].to_vec();
    put(&mut size, 0, &(3 * MIB as u64).to_le_bytes());
    let at = put_log(&mut bytes, 0, &entry(1, 0, vec![Change::Data((ITEMS + SECTOR) as u64, size)]).bytes());
    assert_eq!(opened(&bytes).size(), 3 * MIB as u64);
    let changes = vec![Change::Data(192 << 10, regions[..SECTOR].to_vec())];
    put_log(&mut bytes, at, &entry(2, 0, changes).bytes());
    assert_eq!(refused(&bytes), "the image needs a region that is not known: DADA0001-DADA-DADA-0000-00000000DADA");
}

#[test]
fn extents_of_a_fixed_disk_are_those_of_the_image_and_of_the_log() {
    let table_of_all = (0..2).map(|n| (n, 6, 4 + n as u64)).collect();
    let layout = Layout { size: 2 << 20, flags: 1, table: table_of_all, blocks: vec![7; 2 * MIB], ..Layout::default() };
    let mut bytes = layout.image();
    let changes = vec![Change::Zero(BLOCKS as u64 + 8192, 8192), Change::Data(BLOCKS as u64 + 12288, vec![0; SECTOR])];
    put_log(&mut bytes, 0, &entry(1, 0, changes).bytes());
    let mut list = ExtentList::new(0, 2 << 20);
    opened(&bytes).extents(&mut list).unwrap();
    let answer = list.into_answer().unwrap();
    let told: Vec<_> = answer.iter().map(|extent| (extent.offset, extent.length, extent.kind)).collect();
    let data = ExtentType::empty();
    assert_eq!(told, [(0, 8192, data), (8192, 4096, ExtentType::ZERO), (12288, (2 << 20) - 12288, data)]);
}

#[test]
fn replacements_that_overlap_are_as_if_they_were_written_in_order() {
    let seed = std::env::var("RBDKIT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("RBDKIT_SEED={seed}");
    let mut rng = crate::testing::Rng::new(seed);
    let sectors = 40u64;
    // The image ends in the middle of what the overlay has. The log is its last ten sectors.
    let image = sample(30 * SECTOR - 1000, 6);
    let log = image.len() - 10 * SECTOR;
    let mut overlay = overlay::Overlay::new(source(&image), sectors * 4096);
    let mut model = image.clone();
    model.resize(sectors as usize * SECTOR, 0);
    for _ in 0..500 {
        let (start, count) = (rng.below(sectors), 1 + rng.below(12));
        let end = (start + count).min(sectors);
        let range = start as usize * SECTOR..end as usize * SECTOR;
        if rng.below(2) == 0 {
            overlay.replace(start * 4096, end * 4096, overlay::Replacement::Zero).unwrap();
            model[range].fill(0);
        } else {
            let from = log + rng.below(10) as usize * SECTOR;
            let (at, first, last) = (from as u64, [3; 8], [4; 4]);
            let what = overlay::Replacement::Sector { at, first, last };
            overlay.replace(start * 4096, start * 4096 + 4096, what).unwrap();
            let place = &mut model[range.start..range.start + SECTOR];
            place.copy_from_slice(&image[from..from + SECTOR]);
            place[..8].fill(3);
            place[SECTOR - 4..].fill(4);
        }
        let (offset, length) = (rng.below(sectors * 4096), 1 + rng.below(30_000));
        let range = offset as usize..model.len().min((offset + length) as usize);
        let mut part = vec![0; range.len()];
        overlay.read(offset, &mut part).unwrap();
        assert!(part == model[range], "{length} at {offset}");
        assert!(overlay.ranges() <= sectors as usize, "ranges do not overlap");
    }
    assert!(overlay.read(sectors * 4096, &mut [0]).is_err());
}
