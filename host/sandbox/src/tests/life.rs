//! Connections: their begin and end, thread models, lost instances, reopening.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rbdkit_plugin_api::{Errno, Flags, ThreadModel};
use tokio::sync::Semaphore;

use super::support::{Disk, Guest, READS, Stack, ended, read, until};
use crate::FilterLimits;

/// A guest that opens next and returns a handle. Each of its calls trims next at an offset of its
/// own, so the log of the layer below shows the calls. Its memory holds `$count`, the number of
/// opens. A read at offset 0 traps. A read at 512 returns the handle and the count in its bytes.
fn steps() -> Guest {
    Guest::new(
        &["connection", "reads"],
        r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "trim" (func $trim (param i64 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/request@0.1.0" "handle" (func $handle (result i64)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (global $count (mut i64) (i64.const 0))
    (func $step (param $at i64)
        (call $trim (local.get $at) (i64.const 512) (i32.const 0) (i32.const 2048)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param $readonly i32) (param $name i32) (param $length i32)
            (param $tls i32) (param $replayed i32) (result i32)
        (global.set $count (i64.add (global.get $count) (i64.const 1)))
        (call $open (local.get $readonly) (local.get $name) (local.get $length) (i32.const 2048))
        (call $step (select (i64.const 1024) (i64.const 0) (local.get $replayed)))
        (i64.store (i32.const 2072) (i64.add (i64.const 100) (global.get $count)))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32)
        (call $step (i64.const 2048)) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32)
        (call $step (i64.const 3072)) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close")
        (call $step (i64.const 4096))
        (if (i32.ne (i32.load8_u (i32.const 2049)) (i32.const 12)) (then (unreachable))))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eqz (local.get 0)) (then (unreachable)))
        (i64.store (i32.const 3000) (call $handle))
        (i64.store (i32.const 3008) (global.get $count))
        (call $write (i32.const 0) (i32.const 0) (i32.const 3000) (i32.const 16))
        (i32.const 1200))
"#,
    )
}

/// The handle and the number of opens that the serving instance has seen.
async fn ask(hop: &Arc<rbdkit_chain::Hop>) -> Result<(u64, u64), Errno> {
    let bytes = read(hop, 512, 512).await.map_err(|e| e.errno())?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Ok((word(0), word(8)))
}

#[tokio::test]
async fn a_connection_ends_from_the_top_down_while_next_still_works() {
    let stack = Stack::new(&[steps()]).await;
    let top = stack.open().await;
    assert_eq!(stack.disk.seen(), ["trim 0 512", "trim 2048 512"]);
    assert_eq!(ask(&top).await, Ok((101, 1)));
    top.finalize().await.unwrap();
    assert_eq!(stack.disk.seen(), ["trim 3072 512", "finalize"]);
    top.close().await;
    assert_eq!(stack.disk.seen(), ["close"], "next is gone when close runs");
    assert_eq!(stack.counters().faults.load(SeqCst), 0);
    assert_eq!(stack.counters().bytes_crossed(), 16);
}

#[tokio::test]
async fn a_connection_ends_below_even_when_its_instance_has_trapped() {
    let stack = Stack::new(&[steps().model(1).recovery(2)]).await;
    let top = stack.open().await;
    stack.disk.seen();
    assert_eq!(read(&top, 0, 512).await.unwrap_err().errno(), Errno::Eio);
    top.finalize().await.unwrap();
    top.close().await;
    assert_eq!(stack.disk.seen(), ["finalize", "close"]);
}

#[tokio::test]
async fn open_that_fails_below_leaves_nothing_open() {
    let stack = Stack::new(&[steps()]).await;
    assert!(stack.open_as(false, "none").await.is_err());
    assert!(stack.disk.seen().is_empty());
    let stack = Stack::new(&[Guest::new(&["reads"], READS)]).await;
    assert_eq!(stack.open_as(false, "none").await.err().unwrap().errno(), Errno::Enoent);
}

#[tokio::test]
async fn a_serialized_filter_has_one_instance_for_all() {
    let stack = Stack::new(&[steps().model(1)]).await;
    let (one, two) = (stack.open().await, stack.open().await);
    assert_eq!((ask(&one).await, ask(&two).await), (Ok((101, 2)), Ok((102, 2))));
    assert_eq!(stack.counters().instances.load(SeqCst), 1);
}

#[tokio::test]
async fn serialize_requests_gives_each_connection_an_instance() {
    let limits = FilterLimits { instances: 2, ..FilterLimits::default() };
    let stack = Stack::over(&[steps().model(2)], Disk::default(), limits).await;
    let (one, two) = (stack.open().await, stack.open().await);
    assert_eq!((ask(&one).await, ask(&two).await), (Ok((101, 1)), Ok((101, 1))));
    let error = stack.open_as(false, "").await.err().unwrap();
    assert!(error.to_string().contains("no more are allowed (--filter-limit instances=N)"), "{error}");
    one.finalize().await.unwrap();
    one.close().await;
    drop(one);
    stack.open().await;
}

#[tokio::test]
async fn a_fresh_instance_is_told_of_the_connections_of_the_lost_one() {
    let stack = Stack::new(&[steps().model(1).recovery(1)]).await;
    let (one, two) = (stack.open().await, stack.open().await);
    stack.disk.seen();
    assert_eq!(read(&one, 0, 512).await.unwrap_err().errno(), Errno::Eio);
    assert!(stack.disk.seen().is_empty());
    assert_eq!(ask(&two).await, Ok((102, 2)));
    assert_eq!(stack.disk.seen(), ["trim 1024 512", "trim 2048 512", "trim 1024 512", "trim 2048 512"]);
    assert_eq!(ask(&one).await, Ok((101, 2)));
    assert_eq!(stack.disk.opened.load(SeqCst), 2, "next stays open");
}

#[tokio::test]
async fn an_instance_that_cannot_be_rebuilt_loses_its_connections_and_no_others() {
    let stack = Stack::new(&[steps().model(1).recovery(2)]).await;
    let (one, two) = (stack.open().await, stack.open().await);
    assert_eq!(read(&one, 0, 512).await.unwrap_err().errno(), Errno::Eio);
    assert_eq!(ask(&one).await, Err(Errno::Eshutdown));
    assert_eq!(ask(&two).await, Err(Errno::Eshutdown));
    assert_eq!(ask(&stack.open().await).await, Ok((101, 1)));
}

#[tokio::test]
async fn a_stateless_filter_goes_on() {
    let stack = Stack::new(&[steps().model(1).recovery(0)]).await;
    let one = stack.open().await;
    assert_eq!(read(&one, 0, 512).await.unwrap_err().errno(), Errno::Eio);
    assert_eq!(ask(&one).await, Ok((101, 0)));
}

/// Reads reopen next first, as of generation 0, and return the generation in their bytes.
const REOPENS: &str = r#"
    (import "rbdkit:filter/next-open@0.1.0" "reopen" (func $reopen (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "flush" (func $next_flush (param i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eqz (local.get 0))
            (then
                (call $reopen (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
                (if (i64.ne (i64.load (i32.const 2056)) (i64.const 1)) (then (unreachable)))))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#;

#[tokio::test]
async fn many_reopens_of_one_generation_are_one() {
    let stack = Stack::new(&[Guest::new(&["reads"], REOPENS)]).await;
    let top = stack.open().await;
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let top = Arc::clone(&top);
            tokio::spawn(async move { read(&top, 0, 512).await.unwrap() })
        })
        .collect();
    for read in reads {
        ended(read).await;
    }
    assert_eq!(stack.disk.opened.load(SeqCst), 2);
}

#[tokio::test]
async fn a_layer_that_was_replaced_ends_after_its_last_user() {
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let hold = disk.hold.clone().unwrap();
    let stack = Stack::over(&[Guest::new(&["reads"], REOPENS)], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    let (a, b) = (Arc::clone(&top), Arc::clone(&top));
    let old = tokio::spawn(async move { read(&a, 512, 512).await.unwrap() });
    stack.disk.reached(1).await;
    let new = tokio::spawn(async move { read(&b, 0, 512).await.unwrap() });
    stack.disk.reached(2).await;
    assert_eq!(stack.disk.seen(), ["pread 512 512", "pread 0 512"]);
    hold.add_permits(2);
    ended(old).await;
    ended(new).await;
    top.finalize().await.unwrap();
    top.close().await;
    stack.chain.cleanup(super::support::soon()).await;
    assert_eq!(stack.disk.seen(), ["finalize", "close", "finalize", "close"]);
}

/// Every read asks for the next 2 MiB to be prefetched and then reads.
const PREFETCHES: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "prefetch" (func $prefetch (param i64 i64) (result i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (drop (call $prefetch (i64.add (local.get 0) (i64.extend_i32_u (local.get 1))) (i64.const 2097152)))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#;

#[tokio::test]
async fn prefetches_are_cut_merged_and_carried_out() {
    let stack = Stack::new(&[Guest::new(&["reads"], PREFETCHES).transparent()]).await;
    let top = stack.open().await;
    read(&top, 0, 4096).await.unwrap();
    read(&top, 4096, 4096).await.unwrap();
    let counters = stack.counters();
    until("1 prefetches", || counters.prefetches.load(SeqCst) >= 1).await;
    top.finalize().await.unwrap();
    // The ranges are cut to the size of the disk, and the second overlaps with the first. The first
    // and the last block of what is left are holes of the disk.
    let asked = ["extents 4096 1044480", "cache 8192 1036288"];
    assert_eq!(stack.disk.seen(), ["pread 0 4096", "pread 4096 4096", asked[0], asked[1], "finalize"]);
    assert_eq!(counters.prefetches_merged.load(SeqCst), 1);
}

#[tokio::test]
async fn closing_does_not_wait_for_a_slow_prefetch_and_the_layer_below_ends_with_it() {
    let mut disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    // With extents, a prefetch would ask for them first.
    disk.can.extents = false;
    let hold = disk.hold.clone().unwrap();
    let stack = Stack::over(&[Guest::new(&["reads"], PREFETCHES).transparent()], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    let reader = tokio::spawn({
        let top = Arc::clone(&top);
        async move { read(&top, 0, 4096).await.unwrap() }
    });
    stack.disk.reached(2).await;
    // The read is the first in the disk's queue.
    hold.add_permits(1);
    ended(reader).await;
    stack.disk.seen();
    top.finalize().await.unwrap();
    top.close().await;
    assert!(stack.disk.seen().is_empty());
    hold.add_permits(1);
    stack.chain.cleanup(super::support::soon()).await;
    assert_eq!(stack.disk.seen(), ["finalize", "close"]);
}

/// A filter with ranges of its own: `count` ranges of 64 KiB each, and then what `after` does.
fn background(count: u32, after: &str) -> Guest {
    let text = format!(
        r#"
    (global $given (mut i32) (i32.const 0))
    {READS}
    (func (export "rbdkit:filter/background@0.1.0#next-range") (result i32)
        (if (i32.ge_u (global.get $given) (i32.const {count})) (then {after}))
        (i32.store8 (i32.const 4096) (i32.const 1))
        (i64.store (i32.const 4104) (i64.mul (i64.extend_i32_u (global.get $given)) (i64.const 65536)))
        (i64.store (i32.const 4112) (i64.const 65536))
        (global.set $given (i32.add (global.get $given) (i32.const 1)))
        (i32.const 4096))
"#
    );
    Guest::new(&["reads", "background"], &text).model(2)
}

/// A disk without extents, so that holes are prefetched too.
fn without_extents() -> Disk {
    let mut disk = Disk::default();
    disk.can.extents = false;
    disk
}

#[tokio::test]
async fn ranges_of_a_filters_own_are_fetched_without_any_request() {
    let none = "(i32.store8 (i32.const 4096) (i32.const 0)) (return (i32.const 4096))";
    let stack = Stack::over(&[background(5, none)], without_extents(), FilterLimits::default()).await;
    let top = stack.open().await;
    until("5 prefetches", || stack.counters().prefetches.load(SeqCst) >= 5).await;
    top.finalize().await.unwrap();
    let mut seen = stack.disk.seen();
    assert_eq!(seen.pop().as_deref(), Some("finalize"));
    seen.sort();
    assert_eq!(seen, [0, 131_072, 196_608, 262_144, 65_536].map(|at| format!("cache {at} 65536")));
}

#[tokio::test]
async fn ranges_without_end_end_with_the_connection_and_with_the_disk() {
    // The disk ends before the ranges do.
    let stack = Stack::over(&[background(u32::MAX, "")], without_extents(), FilterLimits::default()).await;
    let top = stack.open().await;
    until("16 prefetches", || stack.counters().prefetches.load(SeqCst) >= 16).await;
    read(&top, 0, 4096).await.unwrap();
    top.finalize().await.unwrap();
    top.close().await;
    stack.chain.cleanup(super::support::soon()).await;
    assert_eq!(stack.counters().prefetches.load(SeqCst), 16);
}

#[tokio::test]
async fn a_trap_instead_of_a_range_ends_them_and_nothing_else() {
    let stack = Stack::over(&[background(1, "(unreachable)")], without_extents(), FilterLimits::default()).await;
    let top = stack.open().await;
    until("1 prefetches", || stack.counters().prefetches.load(SeqCst) >= 1).await;
    read(&top, 0, 4096).await.unwrap();
    top.finalize().await.unwrap();
}

#[tokio::test]
async fn a_filter_can_ask_for_the_thread_model_below() {
    let guest = Guest::new(
        &["reads", "lifecycle"],
        &format!(
            r#"
    (import "rbdkit:filter/server@0.1.0" "thread-model-below" (func $below (result i32)))
    {READS}
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32)
        (if (i32.ne (call $below) (i32.const 1)) (then (unreachable)))
        (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))
"#
        ),
    );
    let disk = Disk { model: ThreadModel::SerializeAllRequests, ..Disk::default() };
    Stack::over(&[guest], disk, FilterLimits::default()).await.chain.cleanup(super::support::soon()).await;
}

/// Locks 512 bytes exclusively during a read of next. A second lock in the call has to be refused.
const LOCKS: &str = r#"
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 1) (i64.const 0) (i64.const 512) (i32.const 1) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (unreachable)))
        (call $lock (i32.const 1) (i64.const 0) (i64.const 512) (i32.const 1) (i32.const 2048))
        (if (i32.ne (i32.load8_u (i32.const 2049)) (i32.const 11)) (then (unreachable)))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i64.eqz (local.get 0)) (then (unreachable)))
        (i32.const 2048))
"#;

#[tokio::test]
async fn a_lock_ends_with_its_call_however_the_call_ends() {
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let hold = disk.hold.clone().unwrap();
    let stack = Stack::over(&[Guest::new(&["reads"], LOCKS)], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    let tasks: Vec<_> = [0u64, 512, 0, 512]
        .into_iter()
        .map(|offset| {
            let top = Arc::clone(&top);
            tokio::spawn(async move { read(&top, offset, 512).await.is_ok() })
        })
        .collect();
    for n in 1..=4 {
        stack.disk.reached(n).await;
        assert_eq!(stack.disk.log.lock().unwrap().len(), n, "one at a time");
        hold.add_permits(1);
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(ended(task).await);
    }
    assert_eq!(answers, [false, true, false, true]);
}

/// A read marks block 0 on success and block 1 to be undone. At offset 0 it traps, at 512 it fails,
/// elsewhere it succeeds. A zero request fails with an errno whose number is the count of marks,
/// and succeeds without marks.
const MARKS: &str = r#"
    (import "rbdkit:filter/maps@0.1.0" "resize" (func $resize (param i32 i32 i32 i64 i32)))
    (import "rbdkit:filter/maps@0.1.0" "set" (func $set (param i32 i32 i64 i64 i32 i32 i32) (result i64)))
    (import "rbdkit:filter/maps@0.1.0" "count" (func $count (param i32 i32 i32) (result i64)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $resize (i32.const 1) (i32.const 0) (i32.const 4096) (i64.const 65536) (i32.const 2048))
        (drop (call $set (i32.const 1) (i32.const 0) (i64.const 0) (i64.const 1)
            (i32.const 15) (i32.const 1) (i32.const 1)))
        (drop (call $set (i32.const 1) (i32.const 0) (i64.const 1) (i64.const 1)
            (i32.const 15) (i32.const 1) (i32.const 2)))
        (if (i64.ne (call $count (i32.const 1) (i32.const 0) (i32.const 1)) (i64.const 1)) (then (unreachable)))
        (if (i64.eqz (local.get 0)) (then (unreachable)))
        (i32.store16 (i32.const 2048) (select (i32.const 513) (i32.const 0) (i64.eq (local.get 0) (i64.const 512))))
        (i32.const 2048))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (local $marks i32)
        (local.set $marks (i32.wrap_i64 (call $count (i32.const 1) (i32.const 0) (i32.const 1))))
        (i32.store8 (i32.const 2048) (i32.ne (local.get $marks) (i32.const 0)))
        (i32.store8 (i32.const 2049) (local.get $marks))
        (i32.const 2048))
"#;

#[tokio::test]
async fn the_marks_of_a_failed_call_are_undone() {
    let stack = Stack::new(&[Guest::new(&["reads", "flushes"], MARKS)]).await;
    let top = stack.open().await;
    assert_eq!(read(&top, 0, 512).await.unwrap_err().errno(), Errno::Eio);
    top.flush().await.unwrap();
    assert_eq!(read(&top, 512, 512).await.unwrap_err().errno(), Errno::Eio);
    top.flush().await.unwrap();
    assert_eq!(read(&top, 1024, 512).await.unwrap(), [0; 512]);
    // Two marks; two is eio.
    assert_eq!(top.flush().await.unwrap_err().errno(), Errno::Eio);
}

#[tokio::test]
async fn sleep_ends_when_the_client_has_gone() {
    let guest = Guest::new(
        &["reads"],
        r#"
    (import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $sleep (i64.mul (local.get 0) (i64.const 200000)) (i32.const 2048))
        (i32.const 2048))
"#,
    );
    // The sleep is far longer than the guest may compute or take.
    let ms = std::time::Duration::from_millis(20);
    let stack =
        Stack::over(&[guest], Disk::default(), FilterLimits { cpu: ms, wall: ms, ..FilterLimits::default() }).await;
    let client = stack.client();
    let top = stack.chain.top(Arc::clone(&client)).open(false, "").await.unwrap();
    let start = std::time::Instant::now();
    read(&top, 1000, 512).await.unwrap();
    assert!(start.elapsed() >= std::time::Duration::from_millis(200));
    let sleeping = tokio::spawn(async move { read(&top, 999_999, 512).await.unwrap_err().errno() });
    tokio::task::yield_now().await;
    client.set_gone();
    assert_eq!(ended(sleeping).await, Errno::Eshutdown);
}

#[tokio::test]
async fn extents_are_forwarded_and_moved() {
    // An offset filter of 4096.
    let guest = Guest::new(
        &["reads", "mapping"],
        &format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "extents-forward" (func $forward (param i64 i64 i64 i32 i32)))
    {READS}
    (func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (call $forward (i64.add (local.get 0) (i64.const 4096)) (local.get 1) (local.get 0) (local.get 2)
            (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (unreachable)))
        (i64.store (i32.const 2048) (i64.const 0))
        (i64.store (i32.const 2056) (i64.const 0))
        (i32.const 2048))
"#
        ),
    );
    let stack = Stack::new(&[guest]).await;
    let top = stack.open().await;
    let list = top.extents(1024, 8192, Flags::NONE).await.unwrap();
    let kinds: Vec<_> = list.as_slice().iter().map(|e| (e.offset, e.length, e.hole)).collect();
    assert_eq!(kinds, [(1024, 3072, true), (4096, 4096, false), (8192, 1024, true)]);
}

#[tokio::test]
async fn a_filter_with_one_instance_can_stand_over_a_plugin_that_serves_one_connection() {
    let disk = Disk { model: ThreadModel::SerializeConnections, ..Disk::default() };
    let stack = Arc::new(Stack::over(&[steps().model(1)], disk, FilterLimits::default()).await);
    let one = stack.open().await;
    let waiting = tokio::spawn({
        let stack = Arc::clone(&stack);
        async move { ask(&stack.open().await).await }
    });
    tokio::task::yield_now().await;
    // While the second client waits for a place, the first continues and ends.
    assert_eq!(ask(&one).await, Ok((101, 1)));
    one.finalize().await.unwrap();
    one.close().await;
    drop(one);
    assert_eq!(ended(waiting).await, Ok((102, 2)));
}

#[tokio::test]
async fn a_plugin_that_serves_one_connection_can_be_reopened() {
    let disk = Disk { model: ThreadModel::SerializeConnections, ..Disk::default() };
    let stack = Stack::over(&[Guest::new(&["reads"], REOPENS)], disk, FilterLimits::default()).await;
    let top = stack.open().await;
    read(&top, 0, 512).await.unwrap();
    assert_eq!(stack.disk.opened.load(SeqCst), 2);
}
