//! Clients that leave while their requests wait in the layers below.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rbdkit_plugin_api::{Buffer, Client, Errno, Flags, ThreadModel};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::support::{Disk, Guest, READS, Stack, WRITES, ended, read};
use crate::FilterLimits;
use rbdkit_chain::Hop;

/// A disk whose operations wait for permits.
fn slow() -> (Disk, Arc<Semaphore>) {
    let hold = Arc::new(Semaphore::new(0));
    (Disk { hold: Some(Arc::clone(&hold)), ..Disk::default() }, hold)
}

/// A client that can leave.
async fn connect(stack: &Stack) -> (Arc<Client>, Arc<Hop>) {
    let client = stack.client();
    let top = stack.chain.top(Arc::clone(&client)).open(false, "").await.unwrap();
    (client, top)
}

fn reading(top: &Arc<Hop>, offset: u64) -> JoinHandle<Result<(), Errno>> {
    let top = Arc::clone(top);
    tokio::spawn(async move { read(&top, offset, 512).await.map(|_| ()).map_err(|error| error.errno()) })
}

/// Writes are not dropped when their client has gone, as reads of the plugin are.
fn writing(top: &Arc<Hop>, offset: u64) -> JoinHandle<Result<(), Errno>> {
    let top = Arc::clone(top);
    tokio::spawn(async move {
        let payload = Buffer::from_vec(vec![1; 512]);
        let span = payload.span();
        top.pwrite(payload, span, offset, Flags::NONE).await.1.map_err(|error| error.errno())
    })
}

/// Waits until something reaches the disk, and returns it.
async fn reached(stack: &Stack) -> Vec<String> {
    stack.disk.reached(1).await;
    stack.disk.seen()
}

/// Lets every task run that can: the tests have one thread, and each task that wakes runs before
/// this one.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// How many operations the filter at this position in the chain has detached.
fn detached(stack: &Stack, place: usize) -> u64 {
    stack.host.statistics()[place].1.detached.load(SeqCst)
}

#[tokio::test]
async fn a_call_that_waits_in_next_ends_with_its_client() {
    let (disk, hold) = slow();
    let limits = FilterLimits { instances: 1, ..FilterLimits::default() };
    let stack = Stack::over(&[Guest::new(&["reads"], READS)], disk, limits).await;
    let (client, top) = connect(&stack).await;
    let (_, other) = connect(&stack).await;
    let waiting = reading(&top, 0);
    assert_eq!(reached(&stack).await, ["pread 0 512"]);
    let queued = reading(&top, 512);
    let next = reading(&other, 1024);
    settled().await;
    assert!(stack.disk.seen().is_empty(), "there is one instance");
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    assert_eq!(ended(queued).await, Err(Errno::Eshutdown));
    // The instance's place is free although the disk has not answered.
    assert_eq!(reached(&stack).await, ["pread 1024 512"]);
    hold.add_permits(2);
    assert_eq!(ended(next).await, Ok(()));
    assert_eq!((detached(&stack, 0), stack.counters().faults.load(SeqCst)), (1, 0));
}

#[tokio::test]
async fn every_operation_of_next_ends_with_its_client() {
    const ALL: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "flush" (func $flush (param i32)))
    (import "rbdkit:filter/next@0.1.0" "trim" (func $trim (param i64 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "zero" (func $zero (param i64 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "cache" (func $cache (param i64 i64 i32)))
    (import "rbdkit:filter/next@0.1.0" "extents-forward" (func $forward (param i64 i64 i64 i32 i32)))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $flush (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/trims@0.1.0#trim") (param i64 i64 i32) (result i32)
        (call $trim (local.get 0) (local.get 1) (local.get 2) (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/zeroes@0.1.0#zero") (param i64 i64 i32) (result i32)
        (call $zero (local.get 0) (local.get 1) (local.get 2) (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/caching@0.1.0#cache") (param i64 i64) (result i32)
        (call $cache (local.get 0) (local.get 1) (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (call $forward (local.get 0) (local.get 1) (local.get 0) (local.get 2) (i32.const 2048))
        (i32.const 1200))
    "#;
    let exports = &["reads", "writes", "flushes", "trims", "zeroes", "caching", "mapping"];
    let guest = Guest::new(exports, &format!("{READS}{WRITES}{ALL}")).transparent();
    let (disk, hold) = slow();
    let stack = Stack::over(&[guest], disk, FilterLimits::default()).await;
    for n in 1..=6 {
        let (client, top) = connect(&stack).await;
        let operation = tokio::spawn(async move {
            match n {
                1 => {
                    let payload = Buffer::from_vec(vec![1; 512]);
                    let span = payload.span();
                    top.pwrite(payload, span, 0, Flags::NONE).await.1
                }
                2 => top.flush().await,
                3 => top.trim(0, 512, Flags::NONE).await,
                4 => top.zero(0, 512, Flags::NONE).await,
                5 => top.cache(0, 512).await,
                _ => top.extents(0, 512, Flags::NONE).await.map(|_| ()),
            }
            .unwrap_err()
            .errno()
        });
        reached(&stack).await;
        client.set_gone();
        assert_eq!(ended(operation).await, Errno::Eshutdown);
        assert_eq!(detached(&stack, 0), n);
    }
    hold.add_permits(6);
}

/// Locks its 512 bytes during a write of next, and marks a block. A flush fails with an errno whose
/// number is the count of marks.
const LOCKS_AND_MARKS: &str = r#"
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))
    (import "rbdkit:filter/maps@0.1.0" "resize" (func $resize (param i32 i32 i32 i64 i32)))
    (import "rbdkit:filter/maps@0.1.0" "set" (func $set (param i32 i32 i64 i64 i32 i32 i32) (result i64)))
    (import "rbdkit:filter/maps@0.1.0" "count" (func $count (param i32 i32 i32) (result i64)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (func $sized (call $resize (i32.const 1) (i32.const 0) (i32.const 512) (i64.const 65536) (i32.const 2048)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 1) (local.get 0) (i64.extend_i32_u (local.get 1)) (i32.const 1) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (return (i32.const 2048))))
        (call $sized)
        (drop (call $set (i32.const 1) (i32.const 0) (i64.div_u (local.get 0) (i64.const 512)) (i64.const 1)
            (i32.const 15) (i32.const 1) (i32.const 2)))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (local $marks i32)
        (call $sized)
        (local.set $marks (i32.wrap_i64 (call $count (i32.const 1) (i32.const 0) (i32.const 1))))
        (i32.store8 (i32.const 2048) (i32.ne (local.get $marks) (i32.const 0)))
        (i32.store8 (i32.const 2049) (local.get $marks))
        (i32.const 2048))
"#;

#[tokio::test]
async fn a_detached_operation_keeps_its_lock_and_nothing_else_of_the_call() {
    let (disk, hold) = slow();
    let guest = Guest::new(&["reads", "writes", "flushes"], &format!("{READS}{LOCKS_AND_MARKS}"));
    let stack = Stack::over(&[guest], disk, FilterLimits::default()).await;
    let (client, top) = connect(&stack).await;
    let (_, other) = connect(&stack).await;
    let waiting = writing(&top, 0);
    assert_eq!(reached(&stack).await, ["pwrite 0 512"]);
    assert!(other.flush().await.is_err(), "a block is marked");
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    other.flush().await.expect("the mark was undone");
    let same = writing(&other, 0);
    let another = writing(&other, 512);
    assert_eq!(reached(&stack).await, ["pwrite 512 512"]);
    settled().await;
    assert!(stack.disk.seen().is_empty(), "the range is not free while it is still being written");
    // The disk answers in turn: this permit is for the detached operation.
    hold.add_permits(1);
    assert_eq!(reached(&stack).await, ["pwrite 0 512"]);
    hold.add_permits(2);
    assert_eq!((ended(same).await, ended(another).await), (Ok(()), Ok(())));
}

#[tokio::test]
async fn in_a_chain_each_layer_detaches_and_is_closed_after_the_operation() {
    let (disk, hold) = slow();
    let guest = Guest::new(&["reads", "writes"], &format!("{READS}{WRITES}"));
    let stack = Stack::over(&[guest.clone(), guest.clone(), guest], disk, FilterLimits::default()).await;
    let (client, top) = connect(&stack).await;
    let waiting = writing(&top, 0);
    assert_eq!(reached(&stack).await, ["pwrite 0 512"]);
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    // The server does this when a client leaves. It does not wait for the disk.
    top.finalize().await.unwrap();
    top.close().await;
    drop(top);
    assert!(stack.disk.seen().is_empty(), "one operation, and nothing is closed while it runs");
    assert_eq!([detached(&stack, 0), detached(&stack, 1), detached(&stack, 2)], [1, 1, 1]);
    hold.add_permits(1);
    stack.chain.cleanup(super::support::soon()).await;
    assert_eq!(stack.disk.seen(), ["finalize", "close"]);
    for (_, counters) in stack.host.statistics() {
        assert_eq!(counters.faults.load(SeqCst), 0);
    }
}

/// Its finalize flushes next.
fn flushes_at_the_end() -> Guest {
    Guest::new(
        &["connection", "reads"],
        &format!(
            r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "flush" (func $flush (param i32)))
    {READS}
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i64.store (i32.const 2072) (i64.const 0))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32)
        (call $flush (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#
        ),
    )
}

/// Its flush takes a lock, flushes next and, when that has succeeded, trims a sector of it.
fn flushes() -> Guest {
    Guest::new(
        &["reads", "flushes"],
        &format!(
            r#"
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "flush" (func $flush (param i32)))
    (import "rbdkit:filter/next@0.1.0" "trim" (func $trim (param i64 i64 i32 i32)))
    {READS}
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $lock (i32.const 1) (i64.const 0) (i64.const 512) (i32.const 1) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (return (i32.const 2048))))
        (call $flush (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (return (i32.const 2048))))
        (call $trim (i64.const 0) (i64.const 512) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#
        ),
    )
}

#[tokio::test]
async fn the_layers_below_wait_for_finalize_when_the_client_has_gone() {
    let (disk, hold) = slow();
    let stack = Stack::over(&[flushes_at_the_end(), flushes()], disk, FilterLimits::default()).await;
    // Two at once, so that one also waits for the other's lock.
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (client, top) = connect(&stack).await;
        client.set_gone();
        ends.push(tokio::spawn(async move {
            top.finalize().await.unwrap();
            top.close().await;
        }));
    }
    assert_eq!(reached(&stack).await, ["flush"]);
    settled().await;
    assert!(stack.disk.seen().is_empty());
    hold.add_permits(4);
    for end in ends {
        ended(end).await;
    }
    let mut seen = stack.disk.seen();
    seen.retain(|line| line != "finalize" && line != "close");
    assert_eq!(seen, ["trim 0 512", "flush", "trim 0 512"]);
    assert_eq!([detached(&stack, 0), detached(&stack, 1)], [0, 0]);
}

#[tokio::test]
async fn an_instance_that_others_need_waits_and_so_do_the_layers_below() {
    let (disk, hold) = slow();
    let upper = Guest::new(&["reads"], READS).model(1).recovery(2);
    let stack = Stack::over(&[upper, Guest::new(&["reads"], READS)], disk, FilterLimits::default()).await;
    let (client, top) = connect(&stack).await;
    let waiting = reading(&top, 0);
    reached(&stack).await;
    client.set_gone();
    settled().await;
    assert!(!waiting.is_finished());
    hold.add_permits(1);
    assert_eq!(ended(waiting).await, Ok(()));
    assert_eq!([detached(&stack, 0), detached(&stack, 1)], [0, 0]);
}

#[tokio::test]
async fn the_turn_in_a_serialized_layer_is_kept_until_the_operation_ends() {
    let (disk, hold) = slow();
    let disk = Disk { model: ThreadModel::SerializeAllRequests, ..disk };
    let stack =
        Stack::over(&[Guest::new(&["reads", "writes"], &format!("{READS}{WRITES}"))], disk, FilterLimits::default())
            .await;
    let (client, top) = connect(&stack).await;
    let (_, other) = connect(&stack).await;
    let waiting = writing(&top, 0);
    reached(&stack).await;
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    let next = reading(&other, 512);
    settled().await;
    assert!(stack.disk.seen().is_empty());
    hold.add_permits(2);
    assert_eq!(ended(next).await, Ok(()));
    assert_eq!(stack.disk.seen(), ["pread 512 512"]);
}

#[tokio::test]
async fn detached_operations_are_limited() {
    let (disk, hold) = slow();
    let limits = FilterLimits { buffers_total: 2 * 512, ..FilterLimits::default() };
    let stack = Stack::over(&[Guest::new(&["reads", "writes"], &format!("{READS}{WRITES}"))], disk, limits).await;
    let (client, top) = connect(&stack).await;
    let mut waiting: Vec<_> = (0..3).map(|n| writing(&top, n * 512)).collect();
    stack.disk.reached(3).await;
    client.set_gone();
    for task in waiting.drain(..2) {
        assert_eq!(ended(task).await, Err(Errno::Eshutdown));
    }
    settled().await;
    let third = waiting.remove(0);
    assert!(!third.is_finished());
    // The disk answers in turn, so the detached operations end first, and free their bytes.
    hold.add_permits(3);
    assert_eq!(ended(third).await, Ok(()));
    assert_eq!(detached(&stack, 0), 2);
    let (client, top) = connect(&stack).await;
    let waiting = writing(&top, 0);
    stack.disk.reached(4).await;
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    hold.add_permits(1);
}

/// Every write reopens next first, as of generation 0.
const REOPENS: &str = r#"
    (import "rbdkit:filter/next-open@0.1.0" "reopen" (func $reopen (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $reopen (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#;

#[tokio::test]
async fn a_detached_operation_keeps_the_next_it_began_with() {
    let (disk, hold) = slow();
    let guest = Guest::new(&["reads", "writes"], &format!("{READS}{REOPENS}"));
    let stack = Stack::over(&[guest], disk, FilterLimits::default()).await;
    let (client, top) = connect(&stack).await;
    let waiting = writing(&top, 0);
    settled().await;
    // The replaced layer had no more users.
    assert_eq!(stack.disk.seen(), ["pwrite 0 512", "finalize", "close"]);
    client.set_gone();
    assert_eq!(ended(waiting).await, Err(Errno::Eshutdown));
    top.finalize().await.unwrap();
    top.close().await;
    drop(top);
    assert!(stack.disk.seen().is_empty());
    hold.add_permits(1);
    stack.chain.cleanup(super::support::soon()).await;
    assert_eq!(stack.disk.seen(), ["finalize", "close"]);
}
