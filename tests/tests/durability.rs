//! What was acknowledged as durable is there whatever happens to the server. Also faults of other
//! servers that must never be ours.

use rbdkit_tests::model::{Crowd, Disk, content, sparse};
use rbdkit_tests::raw::{cmd, flag};
use rbdkit_tests::server::read_at;
use rbdkit_tests::{Launch, Rng, TempDir, seed};

const SIZE: usize = 8 << 20;

/// Ten times, the server is killed at once after it acknowledged a flush. The file has to have
/// everything up to that flush.
#[test]
fn flush_makes_completed_writes_durable_in_every_stack_with_a_writeback_cache() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    for filters in [
        &["--filter=cache"][..],
        &["--filter=readahead", "--filter=cache"],
        &["--filter=cache", "--filter=cache"],
        &["--filter=nofilter", "--filter=cache", "--filter=offset"],
    ] {
        let mut rng = Rng::new(seed);
        let dir = TempDir::new();
        let mut expected = content(seed, SIZE);
        let file = sparse(&dir, "disk.img", &expected);
        for round in 0..10 {
            let mut launch = Launch::new(filters).arg("file").path("file", &file).arg("cache=writeback");
            if round % 3 == 2 {
                launch = launch.arg("cache-max-size=1M");
            }
            let server = launch.start();
            let mut client = server.client();
            for _ in 0..40 {
                let offset = rng.below(SIZE as u64 - 70_000);
                let length = 1 + rng.below(70_000) as usize;
                let range = offset as usize..offset as usize + length;
                if rng.chance(20) {
                    client.zero(offset, length as u32, 0).expect("zero");
                    expected[range].fill(0);
                } else {
                    let data = rng.bytes(length);
                    client.write(offset, &data).expect("a write");
                    expected[range].copy_from_slice(&data);
                }
            }
            client.flush().expect("a flush");
            server.kill();
            let bytes = std::fs::read(&file).expect("the file");
            let difference = bytes.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(difference, None, "{filters:?}: round {round}: the first byte that was lost");
        }
    }
}

#[test]
fn a_write_with_fua_is_durable_by_itself() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", SIZE as u64);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).start();
    let mut client = server.client();
    client.call(cmd::WRITE, flag::FUA, 100_000, 5, b"hello").result.expect("a write");
    client.call(cmd::WRITE_ZEROES, flag::FUA, 200_000, 5, b"").result.expect("zeroes");
    server.kill();
    assert_eq!(read_at(&file, 100_000, 5), b"hello");
}

/// Writethrough means that the data is in the layer below before the write is answered.
#[test]
fn a_write_through_the_cache_is_below_when_it_is_answered() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", SIZE as u64);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).arg("cache=writethrough").start();
    let mut client = server.client();
    for nth in 0..20u8 {
        let offset = u64::from(nth) * 100_001;
        client.write(offset, &[nth + 1; 3000]).expect("a write");
        assert_eq!(read_at(&file, offset, 3000), [nth + 1; 3000]);
    }
}

#[test]
fn unflushed_data_is_written_back_when_the_client_goes() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", SIZE as u64);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).start();
    let mut client = server.client();
    client.write(12345, b"hello").expect("a write");
    client.disconnect();
    assert!(server.stop().status.success());
    assert_eq!(read_at(&file, 12345, 5), b"hello");
}

#[test]
fn unflushed_data_is_written_back_when_the_server_is_stopped() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", SIZE as u64);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).start();
    let mut client = server.client();
    client.write(12345, b"hello").expect("a write");
    // The client stays connected and idle.
    assert!(server.stop().status.success());
    assert_eq!(read_at(&file, 12345, 5), b"hello");
}

#[test]
fn unflushed_data_is_written_back_when_the_client_vanishes() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", SIZE as u64);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).start();
    let mut client = server.client();
    client.write(12345, b"hello").expect("a write");
    drop(client.into_stream());
    server.wait_until("the write back", |_| read_at(&file, 12345, 5) == b"hello");
}

/// nbdkit 1.32.5 and 1.33.11 reclaim dirty blocks: after some hundred requests written data reads
/// as zeroes.
#[test]
fn a_cache_of_8m_over_a_disk_of_64m_loses_nothing() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let first = content(seed, 64 << 20);
    let file = sparse(&dir, "disk.img", &first);
    let server = Launch::new(["--filter=cache", "file"]).path("file", &file).arg("cache-max-size=8M").start();
    let mut crowd = Crowd::new(seed, 6000);
    crowd.stripe = 300_007;
    let mut disk = Disk::new(&first, crowd.stripe);
    disk.exercise(server.socket(), &crowd);
    let mut client = server.client();
    disk.compare_with("read by a new connection", &mut client, false);
    client.flush().expect("a flush");
    server.kill();
    disk.compare("the file after a flush and a kill", &std::fs::read(&file).expect("the file"));
}
