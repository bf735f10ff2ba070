//! The decoder of partition.

use std::rc::Rc;

use rbdkit_filter_formats::checksum::crc32;
use rbdkit_filter_formats::partition::{Choice, INFO, Options, Trust, open_chosen};
use rbdkit_filter_formats::testing::{Dir, fuzz, piped, read_all, source};
use rbdkit_filter_sdk::image::{Error, Fields, Source};

/// Disks of 1 MiB with an MBR that has logical partitions, a GPT and an Apple partition map.
fn disks() -> Vec<Vec<u8>> {
    let dir = Dir::new("fuzz-partition");
    let made = |script: &str| {
        let disk = dir.file("disk", &vec![7; 1 << 20]);
        piped("/sbin/sfdisk", &["-q", "--force", "--wipe", "always", &disk], script.as_bytes());
        std::fs::read(disk).expect("the disk")
    };
    let logical =
        "start=8, size=8, type=83\nstart=64, size=1000, type=5\nstart=70, size=8, type=83\nstart=100, size=8\n";
    let mut apple = vec![7; 64 << 10];
    apple[..4].copy_from_slice(b"ER\x02\0");
    for (n, start) in [1u8, 4, 8].into_iter().enumerate() {
        let entry = &mut apple[(n + 1) * 512..][..512];
        entry.fill(0);
        entry[..8].copy_from_slice(b"PM\0\0\0\0\0\x03");
        (entry[11], entry[15]) = (start, 3);
        entry[16..21].copy_from_slice(b"label");
        entry[48..57].copy_from_slice(b"Apple_HFS");
    }
    vec![
        made(&format!("label: dos\nunit: sectors\n{logical}")),
        made("label: gpt\nunit: sectors\nfirst-lba: 34\nstart=40, size=8, name=a\nstart=64, size=64, name=b\n"),
        apple,
    ]
}

/// The disk with right checksums in its two GPTs, so that what is behind them is reached.
fn with_checksums(disk: &dyn Source) -> Result<Rc<dyn Source>, Error> {
    let mut bytes = read_all(disk)?;
    for at in [512, (bytes.len() / 512).saturating_sub(1) * 512] {
        let Some(header) = bytes.get(at..at + 512).filter(|header| header.starts_with(b"EFI PART")) else { continue };
        let fields = Fields::little(header, "the header");
        let (from, length) = (fields.u64(72)?, u64::from(fields.u32(80)?) * u64::from(fields.u32(84)?));
        let entries = usize::try_from(from)
            .ok()
            .and_then(|from| from.checked_mul(512))
            .and_then(|from| bytes.get(from..from.checked_add(usize::try_from(length).ok()?)?));
        let sum = entries.map(crc32);
        let header = &mut bytes[at..at + 92];
        if let Some(sum) = sum {
            header[88..92].copy_from_slice(&sum.to_le_bytes());
        }
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
    }
    Ok(source(&bytes))
}

#[test]
fn mutated_partition_tables_give_a_line_or_a_partition() {
    let number = std::cell::Cell::new(0);
    fuzz("partition", &disks(), |disk| {
        number.set(number.get() + 1);
        let disk = if number.get() % 3 == 0 { disk } else { with_checksums(&*disk)? };
        (INFO.report)(&disk)?;
        (INFO.probe)(&*disk)?;
        let trust = [Trust::Agree, Trust::Primary, Trust::Backup][number.get() as usize % 3];
        let options = Options { trust, ..Options::default() };
        let choice = match number.get() % 4 {
            0 => Choice::Label("b".into()),
            1 => Choice::Number(5),
            _ => Choice::Number(2),
        };
        Ok(Rc::new(open_chosen(disk, options, &choice)?))
    });
}
