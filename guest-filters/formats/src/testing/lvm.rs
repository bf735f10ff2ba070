//! A writer of physical volumes of LVM. The programs of LVM need block devices, so it follows
//! descriptions of the format.

use super::sample;
use crate::checksum::crc32_raw;

/// The bytes of an extent.
pub const EXTENT: usize = 64 << 10;
/// Where the first extent begins.
pub const FIRST: usize = 1 << 20;
/// The identifiers of the physical volumes `pv0` and `pv1`.
const IDS: [&str; 2] = ["abcdefGHIJKLmnopQRSTuvwxYZ012345", "othersGHIJKLmnopQRSTuvwxYZ012345"];
const CRC: u32 = 0xf597_a6cf;

fn dashed(id: &str) -> String {
    let mut at = 0;
    let parts = [6, 4, 4, 4, 4, 4, 6].map(|length| {
        at += length;
        &id[at - length..at]
    });
    parts.join("-")
}

/// A metadata text with these logical volumes: name and segments.
pub fn metadata(sequence: u64, volumes: &[(&str, &[&str])]) -> String {
    let mut text = format!(
        "vg0 {{\nid = \"x\"\nseqno = {sequence}\nformat = \"lvm2\"\t# informational\nstatus = [\"RESIZEABLE\", \
         \"READ\", \
         \"WRITE\"]\nflags = []\nextent_size = {}\nmax_lv = 0\n\nphysical_volumes {{\n\npv0 {{\nid = \"{}\"\ndevice = \
         \"/dev/\\\"sda\\\"\"\n\npe_start = {}\npe_count = 100\n}}\npv1 {{\nid = \"{}\"\npe_start = {}\n}}\n}}\n\n\
         logical_volumes {{\n",
        EXTENT / 512,
        dashed(IDS[0]),
        FIRST / 512,
        dashed(IDS[1]),
        FIRST / 512,
    );
    for (name, segments) in volumes {
        text += &format!("\n{name} {{\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = {}\n", segments.len());
        for (number, segment) in (1..).zip(*segments) {
            text += &format!("\nsegment{number} {{\n{segment}\n}}\n");
        }
        text += "}\n";
    }
    text + "}\n}\n# Generated\ncontents = \"Text Format Volume Group\"\nversion = 1\n"
}

/// A segment of a volume: its first extent, how many, on how many stripes, and where they are.
pub fn segment(start: u64, extents: u64, count: u64, stripes: &str) -> String {
    let size = if count > 1 { "stripe_size = 16\n" } else { "" };
    format!(
        "start_extent = {start}\nextent_count = {extents}\ntype = \"striped\"\nstripe_count = {count}\t# linear\n{size}\
         stripes = [\n{stripes}\n]"
    )
}

/// Puts a text into a metadata area of 64 KiB at `area`, so that it begins at `offset` of the ring.
pub fn put_text(image: &mut [u8], area: usize, offset: usize, text: &str) {
    let size = 64 << 10;
    let header = &mut image[area..area + 512];
    header.fill(0);
    header[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    header[20] = 1;
    header[24..32].copy_from_slice(&(area as u64).to_le_bytes());
    header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
    header[40..48].copy_from_slice(&(offset as u64).to_le_bytes());
    header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
    header[56..60].copy_from_slice(&crc32_raw(CRC, text.as_bytes()).to_le_bytes());
    seal_area(image, area);
    for (n, byte) in text.bytes().enumerate() {
        let at = offset + n;
        image[area + if at < size { at } else { at - size + 512 }] = byte;
    }
}

/// Writes the checksum of a metadata area.
pub fn seal_area(image: &mut [u8], area: usize) {
    let crc = crc32_raw(CRC, &image[area + 4..area + 512]);
    image[area..area + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Writes the checksum of the label.
pub fn seal_label(image: &mut [u8]) {
    let crc = crc32_raw(CRC, &image[512 + 20..1024]);
    image[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
}

/// The physical volume `pv0`, of 100 extents, with one metadata area at 4096.
pub fn physical(text: &str) -> Vec<u8> {
    labelled(IDS[0], 3, Some(text))
}

/// The physical volume `pv1`, of 100 extents, with or without metadata.
pub fn other_physical(text: Option<&str>) -> Vec<u8> {
    labelled(IDS[1], 4, text)
}

fn labelled(id: &str, seed: u64, text: Option<&str>) -> Vec<u8> {
    let mut image = sample(FIRST + 100 * EXTENT, seed);
    let label = &mut image[512..1024];
    label.fill(0);
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(id.as_bytes());
    label[72..80].copy_from_slice(&(FIRST as u64).to_le_bytes());
    if let Some(text) = text {
        label[104..112].copy_from_slice(&4096u64.to_le_bytes());
        label[112..120].copy_from_slice(&65536u64.to_le_bytes());
        put_text(&mut image, 4096, 1024, text);
    }
    seal_label(&mut image);
    image
}
