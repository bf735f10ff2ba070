//! Recording and prefetching in the SDK's simulated host.

use rbdkit_filter_sdk::testing::{Client, Disk, Host, Served};

use super::*;

const SIZE: usize = 1 << 20;

fn serve(file: &[u8], words: &[&str]) -> Served<Prefetch> {
    let host = Host::new(Disk::pattern(SIZE)).file("list", file);
    host.serve::<Prefetch>(&[&["trace-file=list", "trace-block=4k"], words].concat()).unwrap()
}

fn text(host: &Served<Prefetch>) -> String {
    String::from_utf8(host.file("list").unwrap()).unwrap()
}

/// What the host's workers are told to prefetch.
fn prefetched(client: &Client<Prefetch>) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| client.next_range()).collect()
}

#[test]
fn what_the_first_client_reads_is_prefetched_in_that_order_for_the_next() {
    let host = serve(b"", &[]);
    let client = host.connect().unwrap();
    let pattern = host.disk().to_vec();
    for (offset, length) in [(500_000, 10), (0, 512), (512, 9000), (4096, 4096), (12_288, 4096), (500_000, 5000)] {
        assert_eq!(client.pread(offset, length).unwrap(), pattern[offset as usize..][..length as usize]);
    }
    assert_eq!(prefetched(&client), [], "it records");
    drop(client);
    let expected = [(499_712, 4096), (0, 16_384), (503_808, 4096)];
    let lines: String = expected.iter().map(|(offset, length)| format!("{offset:>19} {length:>11}\n")).collect();
    assert_eq!(text(&host), format!("rbdkit prefetch         1048576\n{lines}"));
    assert_eq!(host.take_log(), ["info: recorded in trace-file=: ranges 3, bytes 24576"]);
    let next = host.connect().unwrap();
    next.pread(700_000, 10).unwrap();
    assert_eq!(prefetched(&next), expected);
    assert_eq!(prefetched(&host.connect().unwrap()), [], "clients at the same time share it");
    drop(next);
    let after_restart = serve(&host.stop().files["list"].clone(), &[]);
    assert_eq!(prefetched(&after_restart.connect().unwrap()), expected);
    drop(after_restart.connect().unwrap());
    assert_eq!(prefetched(&after_restart.connect().unwrap()), expected, "it begins anew for each first client");
}

#[test]
fn clients_at_the_same_time_record_together_until_the_last_one_leaves() {
    let host = serve(b"", &[]);
    let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
    one.pread(0, 1).unwrap();
    two.pread(40_960, 1).unwrap();
    drop(one);
    two.pread(81_920, 1).unwrap();
    host.restart();
    two.pread(4096, 1).unwrap();
    drop(two);
    let ranges = [(0, 4096), (40_960, 4096), (81_920, 4096), (4096, 4096)];
    assert_eq!(prefetched(&host.connect().unwrap()), ranges);
}

#[test]
fn a_list_without_ranges_is_recorded_again() {
    let host = serve(b"", &[]);
    drop(host.connect().unwrap());
    host.connect().unwrap().pread(0, 1).unwrap();
    assert_eq!(text(&host).lines().count(), 2);
}

#[test]
fn recording_ends_at_its_limits() {
    let host = serve(b"", &["trace-limit=8k"]);
    let client = host.connect().unwrap();
    for offset in [0, 65_536, 131_072, 196_608] {
        client.pread(offset, 1).unwrap();
    }
    assert_eq!(text(&host).lines().count(), 3);
    let host = serve(b"", &["trace-time=5"]);
    let client = host.connect().unwrap();
    client.pread(0, 1).unwrap();
    host.pass_time(6_000_000_000);
    client.pread(65_536, 1).unwrap();
    assert_eq!(text(&host).lines().count(), 2);
    assert_eq!(host.take_log(), ["info: recorded in trace-file=: ranges 1, bytes 4096"]);
}

#[test]
fn a_file_that_is_no_list_of_this_disk_stays_as_it_is_and_a_line_says_so() {
    let other = list::first_line(77);
    for (file, line) in [
        (
            &b"something else, which is longer than a line of the list"[..],
            "trace-file= has no list: nothing is \
         prefetched; an empty file is filled",
        ),
        (
            other.as_bytes(),
            "trace-file= has the list of a disk of 77 bytes, and this one has 1048576: nothing is \
         prefetched; an empty file is filled anew",
        ),
    ] {
        let host = serve(file, &[]);
        let client = host.connect().unwrap();
        client.pread(0, 1).unwrap();
        assert_eq!(prefetched(&client), []);
        assert_eq!(host.take_log(), [format!("warning: {line}")]);
        assert_eq!(host.file("list").unwrap(), file);
    }
}

#[test]
fn hostile_lines_end_the_list() {
    let first = list::first_line(SIZE as u64);
    let good = list::line(4096, 4096);
    for bad in [list::line(SIZE as u64, 1), list::line(0, 99_999_999_999), "x".repeat(32), "short".into()] {
        let host = serve(format!("{first}{good}{bad}{good}").as_bytes(), &[]);
        assert_eq!(prefetched(&host.connect().unwrap()), [(4096, 4096)], "{bad:?}");
        let line = "warning: line 3 of trace-file= is no range of this disk: the list ends there";
        assert_eq!(host.take_log(), [line], "{bad:?}");
    }
}

#[test]
fn a_file_that_fails_does_not_fail_a_read() {
    let host = serve(b"", &[]);
    let client = host.connect().unwrap();
    host.fail_next("storage-pwrite", Errno::Enospc);
    assert_eq!(client.pread(0, 1).unwrap().len(), 1);
    assert_eq!(client.pread(65_536, 1).unwrap().len(), 1);
    assert_eq!(host.take_log(), ["warning: trace-file= is not used any more: enospc"]);
}
