//! The filter in the SDK's simulated host, over images of qemu-img.

use rbdkit_filter_formats::testing::{Dir, run};
use rbdkit_filter_sdk::testing::{Disk as Bytes, Host, crypto as simulated};

use super::*;

/// An image of 1 MiB with ones in the second cluster of 64 KiB.
fn image(dir: &Dir, options: &[&str]) -> Vec<u8> {
    let path = dir.path("image");
    run("qemu-img", &[&["create", "-q", "-f", "qcow2"], options, &[&path, "1M"]].concat());
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 64k 64k", &path]);
    std::fs::read(&path).expect("the image")
}

#[test]
fn data_goes_from_the_layer_below_into_the_request() {
    let dir = Dir::new("qcow2-filter");
    let host = Host::new(Bytes::new(image(&dir, &[]))).serve::<Qcow2>(&[]).unwrap();
    let client = host.connect().unwrap();
    // Each instance reads the tables once.
    for _ in 0..8 {
        assert_eq!(client.pread(65_536 - 2, 4).unwrap(), [0, 0, 1, 1]);
    }
    host.take_calls();
    assert_eq!(client.pread(70_000, 4096).unwrap(), [1; 4096]);
    let calls = host.take_calls();
    assert_eq!(calls.len(), 1, "the tables are in memory: {calls:?}");
    assert!(calls[0].starts_with("pread ") && calls[0].ends_with(" 4096"), "{calls:?}");
}

#[test]
fn several_connections_write_and_a_check_finds_nothing() {
    let dir = Dir::new("qcow2-filter-write");
    let mut bytes = image(&dir, &[]);
    bytes.resize(8 << 20, 0);
    let host = Host::new(Bytes::new(bytes)).serve::<Qcow2>(&[]).unwrap();
    {
        let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
        assert!(one.can().write && one.can().multi_conn && one.can().trim);
        one.pwrite(1000, &[5; 70_000], CommandFlags::empty()).unwrap();
        assert_eq!(two.pread(70_998, 4).unwrap(), [5, 5, 1, 1]);
        two.zero(500, 1000, CommandFlags::empty()).unwrap();
        two.pwrite(1 << 19, &[6; 4], CommandFlags::FUA).unwrap();
        one.trim(65_536, 65_536, CommandFlags::empty()).unwrap();
        one.flush().unwrap();
        assert_eq!(one.pread(1498, 4).unwrap(), [0, 0, 5, 5]);
        assert_eq!(two.pread(65_534, 4).unwrap(), [5, 5, 0, 0]);
        assert_eq!(one.pread((1 << 19) - 1, 6).unwrap(), [0, 6, 6, 6, 6, 0]);
    }
    let path = dir.file("written", &host.disk());
    run("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
    assert_eq!(host.take_log(), [""; 0]);
    // Somebody else may have changed the image since then.
    let again = host.connect().unwrap();
    again.pwrite(0, &[8], CommandFlags::empty()).unwrap();
    assert_eq!(again.pread(0, 2).unwrap(), [8, 0]);
}

#[test]
fn overwriting_a_cluster_costs_one_write_below() {
    let dir = Dir::new("qcow2-filter-overwrite");
    let mut bytes = image(&dir, &[]);
    bytes.resize(8 << 20, 0);
    let host = Host::new(Bytes::new(bytes)).serve::<Qcow2>(&[]).unwrap();
    let client = host.connect().unwrap();
    for _ in 0..4 {
        client.pwrite(65_536, &[3; 10], CommandFlags::empty()).unwrap();
    }
    host.take_calls();
    client.pwrite(70_000, &[4; 10], CommandFlags::empty()).unwrap();
    let calls = host.take_calls();
    assert_eq!(calls.len(), 1, "the tables are in memory: {calls:?}");
    assert!(calls[0].starts_with("pwrite ") && calls[0].ends_with(" 10"), "{calls:?}");
}

#[test]
fn the_first_connection_that_writes_rebuilds_the_reference_counts_of_a_dirty_image() {
    let dir = Dir::new("qcow2-filter-dirty");
    let mut image = image(&dir, &[]);
    image.resize(8 << 20, 0);
    image[79] |= 1;
    let host = Host::new(Bytes::new(image)).serve::<Qcow2>(&[]).unwrap();
    {
        let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
        assert!(one.can().write && two.can().write);
        two.pwrite(65_536, &[4; 2], CommandFlags::empty()).unwrap();
        assert_eq!(one.pread(65_535, 4).unwrap(), [0, 4, 4, 1]);
    }
    assert_eq!(host.take_log(), ["warning: the image was marked as dirty: its reference counts were rebuilt"]);
    assert_eq!(host.disk()[79] & 1, 0);
    let path = dir.file("written", &host.disk());
    run("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
}

/// An empty image with a header of LUKS, for the simulated ciphers.
fn encrypted(dir: &Dir) -> Vec<u8> {
    let path = dir.path("encrypted");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", &path, "1M"]);
    let mut image = std::fs::read(&path).expect("the image");
    let luks = image.len().next_multiple_of(4096);
    image.resize(8 << 20, 0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let (key, salt) = ([0x5a; 32], [7; 32]);
    put(luks, b"LUKS\xba\xbe\0\x01aes");
    put(luks + 40, b"xts-plain64");
    put(luks + 72, b"sha256");
    put(luks + 104, &16_u32.to_be_bytes());
    put(luks + 108, &32_u32.to_be_bytes());
    put(luks + 112, &simulated::pbkdf2(&key, "sha256", &salt, 1000, 20));
    put(luks + 132, &salt);
    put(luks + 164, &1000_u32.to_be_bytes());
    (1..8).for_each(|slot| put(luks + 208 + slot * 48, &0xdead_u32.to_be_bytes()));
    put(luks + 208, &0x00ac_71f3_u32.to_be_bytes());
    put(luks + 212, &2000_u32.to_be_bytes());
    put(luks + 216, &salt);
    put(luks + 248, &8_u32.to_be_bytes());
    put(luks + 252, &4_u32.to_be_bytes());
    let wrapping = simulated::pbkdf2(b"secret", "sha256", &salt, 2000, 32);
    put(luks + 4096, &simulated::unwrapped(&wrapping, &key, "sha256", 32));
    put(32, &2_u32.to_be_bytes());
    let length = u32::from_be_bytes(image[100..104].try_into().expect("the length")) as usize;
    let place = [&0x0537_be77_u32.to_be_bytes()[..], &16_u32.to_be_bytes()].concat();
    let place = [place, (luks as u64).to_be_bytes().to_vec(), 8192_u64.to_be_bytes().to_vec()].concat();
    image.copy_within(length..2048, length + place.len());
    image[length..length + place.len()].copy_from_slice(&place);
    image
}

#[test]
fn what_a_write_leaves_of_an_encrypted_sector_is_durable_before_the_table_names_it() {
    let dir = Dir::new("qcow2-filter-encrypted");
    let host = Host::new(Bytes::new(encrypted(&dir))).serve::<Qcow2>(&["qcow2-passphrase=secret"]).unwrap();
    let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
    // The table is there from now on.
    one.pwrite(65_536, &[1; 4096], CommandFlags::empty()).unwrap();
    for (offset, length, is_split) in [(100, 3996, true), (8192, 1000, true), (16_384, 4096, false)] {
        host.take_calls();
        one.pwrite(offset, &vec![5; length], CommandFlags::empty()).unwrap();
        let calls = host.take_calls();
        let changes: Vec<&str> = calls.iter().map(String::as_str).filter(|call| !call.starts_with("pread ")).collect();
        let (entry, before) = changes.split_last().expect("the entry");
        assert!(entry.starts_with("pwrite ") && entry.ends_with(" 8"), "{calls:?}");
        assert_eq!(before.last() == Some(&"flush"), is_split, "{calls:?}");
        let all = two.pread(offset / 4096 * 4096, 4096).unwrap();
        let start = (offset % 4096) as usize;
        let expected: Vec<u8> = (0..4096).map(|at| if (start..start + length).contains(&at) { 5 } else { 0 }).collect();
        assert!(all == expected, "{length} bytes at {offset}");
    }
    // Sectors are encrypted: none of the bytes is there as it was written.
    assert!(!host.disk().windows(64).any(|bytes| bytes == [5; 64]));
    assert_eq!(host.take_log(), [""; 0]);
}

#[test]
fn the_backing_disk_is_the_one_that_the_parameter_names() {
    let dir = Dir::new("qcow2-filter-backing");
    let base = dir.file("base.img", &[7; 1000]);
    let image = image(&dir, &["-b", &base, "-F", "raw"]);
    let host = || Host::new(Bytes::new(image.clone())).with_disk("other.img", Bytes::new(vec![9; 1000]));
    let without = host().serve::<Qcow2>(&[]).unwrap();
    assert!(without.connect().is_err());
    let line = format!(
        "error: the image names the backing file '{base}' of the format 'raw', and names in an image are not followed: \
         give the disk with qcow2-backing="
    );
    assert_eq!(without.take_log(), [line]);
    let with = host().serve::<Qcow2>(&["qcow2-backing=other.img"]).unwrap();
    let client = with.connect().unwrap();
    assert_eq!(client.pread(998, 4).unwrap(), [9, 9, 0, 0], "zero behind its end");
    assert_eq!(client.pread(65_536, 2).unwrap(), [1, 1]);
}

#[test]
fn an_image_that_is_marked_as_corrupt_gives_one_warning_for_a_connection() {
    let dir = Dir::new("qcow2-filter-corrupt");
    let mut image = image(&dir, &[]);
    image[79] |= 2;
    let host = Host::new(Bytes::new(image)).serve::<Qcow2>(&[]).unwrap();
    let client = host.connect().unwrap();
    for _ in 0..4 {
        assert_eq!(client.pread(65_536, 1).unwrap(), [1]);
    }
    let lines = [
        "warning: the image is marked as corrupt: what it serves may be wrong ('qemu-img check' says more)",
        "warning: the disk is read-only: the image is marked as corrupt ('qemu-img check -r all' repairs it)",
    ];
    assert_eq!(host.take_log(), lines);
}
