//! A slow and faulty network between the plugin and the store, by seed.

use std::time::{Duration, Instant};

use rbdkit_tests::model::{Crowd, Disk, content};
use rbdkit_tests::{nbdsh, seed};

use crate::proxy::{Fate, Proxy, by_seed};
use crate::servers::{Store, launch};

const SIZE: usize = 512 << 10;

/// Reads, writes, zeroes, trims and flushes of four clients against a model, while one request in
/// twelve fails.
#[test]
fn with_faults_between_no_byte_differs_and_none_that_was_flushed_is_lost() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let store = Store::s3();
    let proxy = Proxy::start(store.port, by_seed(seed, 8));
    let parameters = ["s3://bucket/disk", "size=512k", "object-size=64k", "timeout=1", "retry-time=60"];
    let first = content(seed, SIZE);
    let mut disk = Disk::new(&first, 70_001);
    let server = launch(proxy.port, &parameters).start();
    let mut client = server.client();
    for (nth, part) in first.chunks(100_000).enumerate() {
        client.write(nth as u64 * 100_000, part).expect("a write");
    }
    client.flush().expect("a flush");
    disk.exercise(server.socket(), &Crowd::new(seed, 500));
    client.flush().expect("a flush");
    disk.compare_with("read by an older connection", &mut client, false);
    drop(client);
    server.kill();
    // Without faults, by another process.
    let server = store.rbdkit(&parameters).start();
    disk.compare_with("after a kill", &mut server.client(), false);
}

#[test]
fn a_burst_of_slow_downs_is_waited_out_and_one_without_end_is_an_error() {
    let store = Store::s3();
    store.put("disk", &[7; 4096]);
    let mut left = 5;
    let proxy = Proxy::start(store.port, move |_| {
        left -= i32::from(left > 0);
        if left > 0 { Fate::SlowDown } else { Fate::Answered }
    });
    let server = launch(proxy.port, &["s3://bucket/disk", "retry-time=20"]).start();
    assert_eq!(server.client().read(0, 4096).expect("a read"), [7; 4096]);
    let server = launch(proxy.port, &["s3://bucket/disk", "retry-time=1"]).start();
    let mut client = server.client();
    proxy.set(|_| Fate::SlowDown);
    assert_eq!(client.read(0, 1), Err(5));
    server.wait_for_log("the store answers 503 Service Unavailable: SlowDown: by the proxy (tried ");
}

#[test]
fn credentials_that_expired_are_made_anew_once() {
    let store = Store::s3();
    store.put("disk", &[7; 4096]);
    let mut expired = false;
    let proxy =
        Proxy::start(
            store.port,
            move |_| if std::mem::replace(&mut expired, true) { Fate::Answered } else { Fate::Expired },
        );
    let server = launch(proxy.port, &["s3://bucket/disk"]).start();
    assert_eq!(server.client().read(0, 1).expect("a read"), [7]);
    proxy.set(|_| Fate::Expired);
    let error = nbdsh(&server.uri(), "h.connect_uri(uri)").fails();
    assert!(error.contains("nbd"), "{error}");
    server.wait_for_log("object: opening s3://bucket/disk: the store answers 400 Bad Request");
}

#[test]
fn a_store_that_hangs_does_not_hold_the_end() {
    let store = Store::s3();
    store.put("disk", &[7; 4096]);
    let proxy = Proxy::start(store.port, |_| Fate::Answered);
    let server = launch(proxy.port, &["s3://bucket/disk"]).start();
    let mut client = server.client();
    proxy.set(|_| Fate::Silent);
    let before = proxy.requests();
    client.submit(0, 0, 0, 1, &[]).expect("a request");
    rbdkit_tests::wait::until("the read is at the store", || proxy.requests() > before);
    let stopped = Instant::now();
    assert!(server.stop().status.success());
    assert!(stopped.elapsed() < Duration::from_secs(15), "{:?}", stopped.elapsed());
}
