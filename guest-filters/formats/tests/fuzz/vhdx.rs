//! VHDX images of each kind, with and without a log.

use std::rc::Rc;

use rbdkit_filter_formats::testing::vhdx::{
    BAT, BLOCKS, Change, DATA_WRITE, ITEMS, LOG, Layout, LogEntry, METADATA, put, put_log, seal, sign,
};
use rbdkit_filter_formats::testing::{Dir, fuzz, read_all, run, sample, source};
use rbdkit_filter_formats::vhdx::{INFO, open};
use rbdkit_filter_sdk::image::Source;

const MIB: usize = 1 << 20;

/// What of an image is mutated: offset and length. Everything else is zeroes.
const PARTS: [(usize, usize); 18] = [
    (0, 600),
    (64 << 10, 128),
    (128 << 10, 128),
    (192 << 10, 160),
    (256 << 10, 160),
    (LOG, 24 << 10),
    (2 * MIB - (8 << 10), 8 << 10),
    (BAT, 1024),
    (BAT + 32_768, 64),
    (BAT + (64 << 10), 64),
    (METADATA, 300),
    (ITEMS, 600),
    (ITEMS + 4096, 64),
    (ITEMS + 8192, 64),
    (ITEMS + 12_288, 64),
    (ITEMS + 16_384, 64),
    (ITEMS + 20_480, 512),
    (BLOCKS, 16 << 10),
];

/// The size of the images.
const SIZE: usize = 7 * MIB;

fn packed(image: &[u8]) -> Vec<u8> {
    let part = |(at, length): &(usize, usize)| {
        let mut part = image[*at..image.len().min(at + length)].to_vec();
        part.resize(*length, 0);
        part
    };
    PARTS.iter().flat_map(part).collect()
}

fn unpacked(mut parts: &[u8]) -> Vec<u8> {
    let mut image = vec![0; SIZE];
    for (at, length) in PARTS {
        let (part, rest) = parts.split_at(parts.len().min(length));
        put(&mut image, at, part);
        parts = rest;
    }
    // What is left makes the image longer or shorter.
    image.truncate(SIZE - parts.len().min(SIZE));
    image
}

/// Makes the checksums of what looks like an entry of the log right.
fn seal_log(image: &mut [u8]) {
    for at in (LOG..2 * MIB).step_by(4096) {
        let Some(length) = image.get(at + 8..at + 12) else { return };
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if image[at..].starts_with(b"loge")
            && (8..=2 * MIB - at).contains(&length)
            && let Some(entry) = image.get_mut(at..at + length)
        {
            sign(entry);
        }
    }
}

/// Images of the writer: dynamic, fixed, differencing, and each with a log.
fn seeds() -> Vec<Vec<u8>> {
    let mut bitmap = sample(MIB, 2);
    bitmap[600..].fill(0xff);
    let blocks = [bitmap, vec![1; MIB], vec![2; MIB]].concat();
    let locator = vec![
        ("parent_linkage", format!("{{{DATA_WRITE}}}")),
        ("relative_path", "..\\base.vhdx".to_string()),
        ("absolute_win32_path", "C:\\base.vhdx".to_string()),
    ];
    let dynamic = Layout { table: vec![(0, 6, 5), (2, 2, 0), (3, 6, 6)], blocks, ..Layout::default() };
    let fixed = Layout { flags: 1, ..dynamic.clone() };
    let table = vec![(0, 7, 5), (1, 6, 6), (3, 7, 6), (4096, 6, 4)];
    let child = Layout { flags: 2, locator, table, ..dynamic.clone() };
    let large = Layout { block: 256 << 20, size: 60 << 30, table: vec![(0, 7, 5), (16, 6, 4)], ..child.clone() };
    let sectors = Layout { sector: 4096, table: vec![(1, 7, 5), (32_768, 6, 4)], ..child.clone() };
    let mut seeds = Vec::new();
    for layout in [dynamic, fixed, child, large, sectors] {
        let image = layout.image();
        seeds.push(packed(&image));
        for start in [0, (1 << 20) - 4096] {
            let mut logged = image.clone();
            let (mut at, size) = (start, image.len() as u64);
            for sequence in 1..4 {
                let mut table = logged[BAT..BAT + 4096].to_vec();
                table[8] = 6;
                table[10] = 0x50;
                let changes =
                    vec![Change::Zero(BLOCKS as u64 + 8192 * sequence, 8192), Change::Data(BAT as u64, table)];
                let tail = start as u32;
                let entry = LogEntry { sequence, tail, flushed: size, last: size, changes };
                at = put_log(&mut logged, at, &entry.bytes());
            }
            seeds.push(packed(&logged));
        }
    }
    seeds
}

/// Images of qemu-img. It puts the regions where the writer puts them.
fn seeds_of_qemu() -> Vec<Vec<u8>> {
    let dir = Dir::new("fuzz-vhdx");
    let raw = dir.file("raw", &sample((1 << 20) + 1536, 1));
    let options = ["subformat=dynamic,block_size=1M", "subformat=fixed,block_size=1M", "block_size=2M"];
    let seeds = options.map(|option| {
        let image = dir.path(option);
        run("qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "-o", option, &raw, &image]);
        packed(&std::fs::read(image).unwrap())
    });
    seeds.to_vec()
}

#[test]
fn mutated_vhdx_images_give_a_line_or_a_disk() {
    let parent = Layout { table: vec![(0, 6, 4)], blocks: vec![9; MIB], ..Layout::default() }.image();
    fuzz("vhdx", &[seeds(), seeds_of_qemu()].concat(), |parts| {
        let mut image = unpacked(&read_all(&*parts)?);
        // Right checksums, so that what is behind them is reached.
        seal(&mut image);
        seal_log(&mut image);
        let image: Rc<dyn Source> = Rc::new(image);
        (INFO.report)(&image)?;
        (INFO.probe)(&*image)?;
        Ok(Rc::new(open(image, || Ok(Some(source(&parent))))?))
    });
}
