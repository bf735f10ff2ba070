//! Guests that wait when the server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rbdkit_plugin_api::Errno;
use tokio::sync::Semaphore;

use super::support::{Disk, Guest, READS, Stack, ended, read};
use crate::FilterLimits;

/// Reads lock the whole disk, and the first one sleeps. Finalize sleeps.
const WAITS: &str = r#"
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))
    (import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 1) (i64.const 0) (i64.const 65536) (i32.const 1) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (return (i32.const 2048))))
        (call $sleep (i64.const -1) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32)
        (call $sleep (i64.const -1) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#;

#[tokio::test]
async fn every_wait_ends_with_eshutdown_when_the_server_stops() {
    let limits = FilterLimits { instances: 2, ..FilterLimits::default() };
    let stack = Stack::over(&[Guest::new(&["reads", "connection"], WAITS)], Disk::default(), limits).await;
    let (one, other) = (stack.open().await, stack.open().await);
    // One sleeps, one waits for its lock, and one for an instance.
    let reads: Vec<_> = [&one, &other, &one]
        .map(|top| {
            let top = Arc::clone(top);
            tokio::spawn(async move { read(&top, 0, 512).await.map(|_| ()).map_err(|error| error.errno()) })
        })
        .into();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(reads.iter().all(|read| !read.is_finished()));
    stack.chain.begin_stop();
    for read in reads {
        assert_eq!(ended(read).await, Err(Errno::Eshutdown));
    }
    // Their client has not gone, and finalize waits for nothing either.
    assert_eq!(one.finalize().await.unwrap_err().errno(), Errno::Eshutdown);
    one.close().await;
    assert_eq!(stack.counters().faults.load(SeqCst), 0);
}

#[tokio::test]
async fn a_request_goes_on_when_the_server_stops_as_long_as_it_only_reads_below() {
    let hold = Arc::new(Semaphore::new(0));
    let disk = Disk { hold: Some(Arc::clone(&hold)), ..Disk::default() };
    let stack = Stack::over(&[Guest::new(&["reads"], READS)], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    let reading = tokio::spawn(async move { read(&top, 0, 512).await.map(|_| ()).map_err(|error| error.errno()) });
    stack.disk.reached(1).await;
    stack.chain.begin_stop();
    hold.add_permits(1);
    assert_eq!(ended(reading).await, Ok(()));
}
