//! The overlay that is kept, in the SDK's simulated host; qemu-img is the judge.

use rbdkit_filter_formats::testing::{Dir, Rng, run};
use rbdkit_filter_sdk::testing::{Client, Disk, Host, Served};
use rbdkit_filter_sdk::{CommandFlags, Errno, ExtentType};

use crate::Cow;

const FILE: &str = "overlay";
const NONE: CommandFlags = CommandFlags::empty();
/// The layer below: no multiple of a cluster.
const SIZE: usize = 300_000;

fn start(file: &[u8], words: &[&str]) -> Result<Served<Cow>, String> {
    let host = Host::new(Disk::pattern(SIZE)).file(FILE, file);
    host.serve::<Cow>(&[&["cow-file=overlay"], words].concat())
}

fn serve(file: &[u8], words: &[&str]) -> Served<Cow> {
    start(file, words).unwrap()
}

fn all(client: &Client<Cow>) -> Vec<u8> {
    client.pread(0, SIZE as u32).unwrap()
}

/// What another program reads in the overlay, over the disk below.
fn judged(dir: &Dir, host: &Served<Cow>) -> Vec<u8> {
    let file = dir.file("overlay.qcow2", &host.file(FILE).unwrap());
    let base = dir.file("base", &host.disk());
    run("qemu-img", &["check", "-q", "-f", "qcow2", &file]);
    run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &base, &file]);
    let raw = dir.path("raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &file, &raw]);
    let mut bytes = std::fs::read(raw).unwrap();
    // The image has whole sectors.
    assert_eq!(bytes.len(), SIZE.next_multiple_of(512));
    bytes.truncate(SIZE);
    bytes
}

#[test]
fn what_was_written_is_there_after_a_restart_and_in_qemu() {
    let dir = Dir::new("cow-kept");
    for block in ["4k", "64k", "2M"] {
        let word = format!("cow-block-size={block}");
        let host = serve(b"", &[&word]);
        let below = host.disk().to_vec();
        let mut expected = below.clone();
        {
            let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
            assert!(one.can().multi_conn && one.can().write && one.can().flush);
            one.pwrite(4000, &[7; 100_000], NONE).unwrap();
            two.zero(150_000, 70_001, NONE).unwrap();
            one.pwrite(299_999, &[9], CommandFlags::FUA).unwrap();
            two.trim(8192, 8192, NONE).unwrap();
            expected[4000..104_000].fill(7);
            expected[150_000..220_001].fill(0);
            expected[299_999] = 9;
            let trimmed = two.pread(8192, 8192).unwrap();
            assert!(trimmed.iter().all(|byte| [0, 7].contains(byte)));
            expected[8192..16_384].copy_from_slice(&trimmed);
            assert_eq!(all(&two), expected);
            one.flush().unwrap();
        }
        assert!(*host.disk() == *below, "the disk below is never written");
        assert!(judged(&dir, &host) == expected, "{block}");
        let kept = host.stop().files[FILE].clone();
        let again = serve(&kept, &[]);
        assert_eq!(all(&again.connect().unwrap()), expected);
        assert_eq!(again.take_log(), [""; 0]);
    }
}

#[test]
fn random_changes_of_two_clients_are_those_of_a_model() {
    let dir = Dir::new("cow-kept-random");
    for seed in 0..8 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut kept = Vec::new();
        let mut expected = serve(b"", &[]).disk().to_vec();
        for _ in 0..3 {
            let host = serve(&kept, &["cow-block-size=4k"]);
            {
                let clients = [host.connect().unwrap(), host.connect().unwrap()];
                for _ in 0..60 {
                    let client = &clients[rng.below(2) as usize];
                    let length = 1 + rng.below(30_000);
                    let offset = rng.below(SIZE as u64 - length);
                    let range = offset as usize..(offset + length) as usize;
                    match rng.below(6) {
                        0 => {
                            client.zero(offset, length, NONE).unwrap();
                            expected[range].fill(0);
                        }
                        1 => client.flush().unwrap(),
                        2 => host.restart(),
                        _ => {
                            let bytes = vec![rng.below(256) as u8; length as usize];
                            client.pwrite(offset, &bytes, NONE).unwrap();
                            expected[range].copy_from_slice(&bytes);
                        }
                    }
                    assert!(
                        client.pread(offset, length as u32).unwrap() == expected[offset as usize..][..length as usize]
                    );
                }
                assert!(all(&clients[0]) == expected);
            }
            assert!(judged(&dir, &host) == expected);
            kept = host.stop().files.remove(FILE).unwrap();
        }
    }
}

#[test]
fn the_file_is_no_larger_than_what_was_written_needs() {
    let host = serve(b"", &[]);
    {
        let client = host.connect().unwrap();
        client.pwrite(0, &[1], NONE).unwrap();
    }
    let file = host.file(FILE).unwrap();
    // The metadata, an L2 table, a cluster of data, and what was reserved: 4 MiB.
    assert!(file.len() < 5 << 20, "{}", file.len());
    let extents = host.connect().unwrap().extents(0, SIZE as u64, NONE).unwrap();
    assert!(extents.iter().all(|extent| extent.kind == ExtentType::empty()), "{extents:?}");
}

#[test]
fn an_overlay_that_qemu_made_is_taken_and_one_whose_making_was_cut_short_is_made_anew() {
    let dir = Dir::new("cow-kept-qemu");
    let (base, file) = (dir.file("base", &[0; SIZE]), dir.path("overlay"));
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, "-o", "cluster_size=4k,refcount_bits=1"];
    run("qemu-img", &[&options[..], &[&file, &SIZE.to_string()]].concat());
    let host = serve(&std::fs::read(&file).unwrap(), &[]);
    let client = host.connect().unwrap();
    client.pwrite(5000, &[3; 5000], NONE).unwrap();
    assert_eq!(client.pread(4999, 2).unwrap()[1], 3);

    let unfinished = [super::UNFINISHED, &[1; 1000]].concat();
    let host = serve(&unfinished, &[]);
    assert!(all(&host.connect().unwrap()) == *host.disk());
}

#[test]
fn a_file_that_is_not_the_overlay_of_this_disk_is_refused_in_a_line_and_stays_as_it_is() {
    let whole = |words: &[&str]| {
        let host = serve(b"", words);
        drop(host.connect().unwrap());
        host.stop().files[FILE].clone()
    };
    let (plain, named) = (whole(&[]), whole(&["cow-backing=base.img", "cow-backing-format=vmdk"]));
    let mut dirty = plain.clone();
    dirty[79] |= 1;
    let mut smaller = plain.clone();
    smaller[24..32].copy_from_slice(&1000u64.to_be_bytes());
    for (file, words, line) in [
        (
            &b"a raw disk"[..],
            &[][..],
            "cow-file= is not an overlay: it is not a qcow2 image: it does not begin with \
         'QFI' and the byte 0xfb",
        ),
        (
            &smaller,
            &[],
            "the overlay has a disk of 1000 bytes, and the layer below has 300000: it is the overlay of \
         another disk",
        ),
        (
            &named,
            &["cow-backing=other.img"],
            "cow-backing=other.img: the overlay names 'base.img', and 'qemu-img \
         rebase -u' changes the name",
        ),
        (
            &plain,
            &["cow-backing=other.img"],
            "cow-backing=other.img: the overlay was made without a name, and \
         'qemu-img rebase -u' gives it one",
        ),
    ] {
        let host = serve(file, words);
        assert_eq!(host.connect().err(), Some(Errno::Eio), "{line}");
        assert_eq!(host.take_log(), [format!("error: {line}")]);
        assert!(host.file(FILE).unwrap() == file, "{line}");
    }
    assert!(serve(&named, &["cow-backing=base.img"]).connect().is_ok());
}

#[test]
fn parameters_that_contradict_each_other_are_refused_in_a_line() {
    let refused = |words: &[&str]| Host::new(Disk::pattern(SIZE)).serve::<Cow>(words).err().unwrap();
    for (words, line) in [
        (&["cow-backing=x"][..], "cow-backing= is for the overlay in a file: cow-file= is missing"),
        (&["cow-backing-format=raw"], "cow-backing-format= is for the overlay in a file: cow-file= is missing"),
        (&["cow-file=overlay", "cow-backing-format=raw"], "cow-backing-format= is given without cow-backing="),
        (
            &["cow-file=overlay", "cow-on-read=true"],
            "cow-on-read= and cow-on-cache= copy into the temporary overlay, and not into cow-file=",
        ),
        (
            &["cow-file=overlay", "cow-block-size=4M"],
            "cow-block-size=4194304: is more than 2097152, the most in a cow-file",
        ),
    ] {
        assert_eq!(refused(words), format!("cow: {line}"));
    }
}

#[test]
fn a_full_disk_is_an_error_and_what_was_written_stays() {
    let host = Host::new(Disk::pattern(SIZE)).file(FILE, b"").quota(5 << 20);
    let host = host.serve::<Cow>(&["cow-file=overlay"]).unwrap();
    let client = host.connect().unwrap();
    client.pwrite(0, &[1; 1000], NONE).unwrap();
    host.fail_next("storage-pwrite", Errno::Enospc);
    assert_eq!(client.pwrite(200_000, &[2; 1000], NONE), Err(Errno::Enospc));
    assert_eq!(client.pread(0, 1000).unwrap(), [1; 1000]);
    client.pwrite(200_000, &[2; 1000], NONE).unwrap();
    client.flush().unwrap();
    assert_eq!(client.pread(200_000, 1000).unwrap(), [2; 1000]);
}
