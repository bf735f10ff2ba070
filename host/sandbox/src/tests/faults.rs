//! Guests that trap, loop, take too much or give false answers. They can only fail their own
//! requests.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use rbdkit_plugin_api::{Errno, Flags};
use tokio::sync::Semaphore;

use super::support::{Disk, Guest, READS, Stack, WRITES, component_of, ended, host, load, read, write};
use crate::{FilterLimits, ServerLimits};

/// A guest whose read runs `code` at offset 0, and passes on reads at other offsets. `code` leaves
/// nothing on the stack.
fn bad_at_zero(imports: &str, code: &str) -> Guest {
    Guest::new(
        &["reads"],
        &format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    {imports}
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eqz (local.get 0)) (then {code}))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#
        ),
    )
}

/// Checks that the bad read fails, says why, and costs only itself.
async fn costs_its_own_request(guest: Guest, limits: FilterLimits, why: &str) {
    let stack = Stack::over(&[guest], Disk::default(), limits).await;
    let top = stack.open().await;
    for _ in 0..3 {
        let error = read(&top, 0, 512).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(read(&top, 512, 512).await.unwrap(), stack.disk.bytes.lock().unwrap()[512..1024]);
    }
    assert_eq!(stack.counters().faults.load(SeqCst), 3);
    top.finalize().await.unwrap();
    top.close().await;
}

#[tokio::test]
async fn a_trap_fails_its_own_request() {
    costs_its_own_request(bad_at_zero("", "(unreachable)"), FilterLimits::default(), "unreachable").await;
    let recursion = "(func $deep (param i64) (result i64) \
                     (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))";
    let guest = bad_at_zero(recursion, "(drop (call $deep (i64.const 0)))");
    costs_its_own_request(guest, FilterLimits::default(), "call stack exhausted").await;
}

#[tokio::test]
async fn a_guest_that_loops_is_ended() {
    let limits = FilterLimits { cpu: Duration::from_millis(40), ..FilterLimits::default() };
    costs_its_own_request(bad_at_zero("", "(loop $l (br $l))"), limits, "computed for longer than 40ms").await;
}

#[tokio::test]
async fn a_guest_that_computes_lets_others_run() {
    // There is one thread, so the loop has to yield it.
    let limits = FilterLimits { cpu: Duration::from_millis(200), ..FilterLimits::default() };
    let stack = Stack::over(&[bad_at_zero("", "(loop $l (br $l))")], Disk::default(), limits).await;
    let top = stack.open().await;
    let looping = tokio::spawn({
        let top = Arc::clone(&top);
        async move { read(&top, 0, 512).await.unwrap_err().errno() }
    });
    tokio::task::yield_now().await;
    read(&top, 512, 512).await.unwrap();
    assert!(!looping.is_finished());
    assert_eq!(ended(looping).await, Errno::Eio);
}

#[tokio::test]
async fn memory_beyond_the_limit_is_refused_in_the_guest() {
    // The memory has 64 KiB; 200 more pages are 13 MB.
    let grow = "(if (i32.ne (memory.grow (i32.const 200)) (i32.const -1)) (then (unreachable)))";
    let guest = bad_at_zero("", grow);
    let stack =
        Stack::over(&[guest], Disk::default(), FilterLimits { memory: 1 << 20, ..FilterLimits::default() }).await;
    let top = stack.open().await;
    read(&top, 0, 512).await.unwrap();
    let limits = FilterLimits { memory: 1 << 10, ..FilterLimits::default() };
    let module = host().load("guest.wasm", &Guest::new(&["reads"], READS).component()).unwrap();
    let error = module.configure(vec![], limits).err().unwrap().to_string();
    assert!(error.starts_with("guest: cannot be started:"), "{error}");
}

#[tokio::test]
async fn an_instance_whose_memory_has_grown_is_replaced() {
    let guest = bad_at_zero("", "(drop (memory.grow (i32.const 13)))");
    let stack =
        Stack::over(&[guest], Disk::default(), FilterLimits { memory: 1 << 20, ..FilterLimits::default() }).await;
    let top = stack.open().await;
    let made = || stack.counters().instances.load(SeqCst);
    read(&top, 512, 512).await.unwrap();
    assert_eq!(made(), 1);
    read(&top, 0, 512).await.unwrap();
    read(&top, 512, 512).await.unwrap();
    assert_eq!(made(), 2);
}

#[tokio::test]
async fn a_buffer_that_is_not_there_or_too_short_traps() {
    for (buf, at, length, why) in [
        (1, 0, 512, "there is no buffer 1"),
        (u32::MAX, 0, 512, "there is no buffer 4294967295"),
        (0, 1, 512, "512 bytes at 1 are not within buffer 0 of 512"),
        (0, u32::MAX, 512, "not within buffer 0"),
        (0, 0, u32::MAX, "not within buffer 0"),
    ] {
        let (buf, at, length) = (buf as i32, at as i32, length as i32);
        let call = format!(
            "(call $next_pread (i64.const 0) (i32.const {length}) (i32.const {buf}) (i32.const {at}) (i32.const 2048))"
        );
        costs_its_own_request(bad_at_zero("", &call), FilterLimits::default(), why).await;
    }
    let imports = r#"
    (import "rbdkit:filter/buffer@0.1.0" "free" (func $free (param i32)))
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/maps@0.1.0" "count" (func $count (param i32 i32 i32) (result i64)))
    (import "rbdkit:filter/slots@0.1.0" "add" (func $add (param i32 i32 i64) (result i64)))
    "#;
    for (code, why) in [
        ("(call $free (i32.const 0))", "freed buffer 0"),
        ("(call $free (i32.const 7))", "no buffer 7"),
        (
            "(call $alloc (i32.const 512) (i32.const 2048)) (call $free (i32.const 1)) (call $free (i32.const 1))",
            "no buffer 1",
        ),
        ("(drop (call $count (i32.const 1) (i32.const 0) (i32.const 1)))", "sized"),
        ("(drop (call $add (i32.const 2) (i32.const 16) (i64.const 1)))", "no slot"),
    ] {
        costs_its_own_request(bad_at_zero(imports, code), FilterLimits::default(), why).await;
    }
}

#[tokio::test]
async fn buffers_of_a_call_are_limited() {
    // Allocates 1 MiB at a time until it is refused, and returns the number of buffers as an errno:
    // 3 is ENOMEM.
    let guest = Guest::new(
        &["reads"],
        r#"
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (loop $again
            (call $alloc (i32.const 1048576) (i32.const 2048))
            (br_if $again (i32.eqz (i32.load8_u (i32.const 2048)))))
        (i32.store8 (i32.const 2065) (i32.load8_u (i32.const 2052)))
        (i32.store8 (i32.const 2064) (i32.const 1))
        (i32.const 2064))
"#,
    );
    // On a busy machine 64 MiB of fresh memory take longer than a call may. This test is not about
    // time.
    let hour = Duration::from_secs(3600);
    let patient = || FilterLimits { cpu: hour, wall: hour, ..FilterLimits::default() };
    for limits in [
        FilterLimits { buffers: 5 << 20, ..patient() },
        FilterLimits { buffers_total: 5 << 20, ..patient() },
        patient(),
    ] {
        let stack = Stack::over(std::slice::from_ref(&guest), Disk::default(), limits).await;
        let top = stack.open().await;
        for _ in 0..3 {
            let error = read(&top, 0, 512).await.unwrap_err();
            assert_eq!(error.errno(), Errno::Enomem, "{error}");
        }
    }
}

#[tokio::test]
async fn the_copy_of_a_changed_payload_counts_and_its_refusal_is_no_fault() {
    let guest = Guest::new(
        &["reads", "writes"],
        &format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "fill" (func $fill (param i32 i32 i32 i32)))
    {READS}
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $fill (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 88))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#
        ),
    );
    let limits = FilterLimits { buffers_total: 64 << 10, ..FilterLimits::default() };
    let stack = Stack::over(&[guest], Disk::default(), limits).await;
    let top = stack.open().await;
    for _ in 0..3 {
        write(&top, 0, &[1; 64 << 10], Flags::NONE).await.unwrap();
        let error = write(&top, 0, &[1; (64 << 10) + 1], Flags::NONE).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Enomem);
        assert!(error.to_string().contains("buffers-total"), "{error}");
    }
    assert_eq!(stack.counters().faults.load(Relaxed), 0);
    for usage in stack.chain.usage().iter().filter(|usage| usage.account.ends_with(":buffers-total")) {
        assert_eq!((usage.used, usage.peak), (0, 64 << 10), "{usage:?}");
    }
}

#[tokio::test]
async fn a_guest_that_brings_too_much_out_at_once_traps() {
    let imports = r#"(import "rbdkit:filter/log@0.1.0" "debug" (func $debug (param i32 i32)))"#;
    let limits = FilterLimits { transfer: 1000, ..FilterLimits::default() };
    let guest = bad_at_zero(imports, "(call $debug (i32.const 0) (i32.const 60000))");
    costs_its_own_request(guest, limits, "fuel").await;
}

#[tokio::test]
async fn false_extents_fail_the_request() {
    // The answer is one extent from $from, $length long.
    for (from, length) in [(4096i64, 4096i64), (0, 0), (0, -1), (-1, 4096)] {
        let guest = Guest::new(
            &["reads", "mapping"],
            &format!(
                r#"
    {READS}
    (func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (i64.store (i32.const 3000) (i64.const {from}))
        (i64.store (i32.const 3008) (i64.const {length}))
        (i32.store (i32.const 2052) (i32.const 3000))
        (i32.store (i32.const 2056) (i32.const 1))
        (i32.const 2048))
"#
            ),
        );
        let stack = Stack::new(&[guest]).await;
        let top = stack.open().await;
        let answer = top.extents(0, 8192, Flags::NONE).await;
        match length {
            // It covers the whole range and goes beyond the end of the disk, where it is cut.
            -1 => assert_eq!(answer.unwrap().next_offset(), top.size()),
            _ => assert_eq!(answer.unwrap_err().errno(), Errno::Eio, "{from} {length}"),
        }
    }
}

#[tokio::test]
async fn a_filter_whose_instances_are_all_busy_makes_requests_wait_in_turn() {
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let hold = disk.hold.clone().unwrap();
    // One connection gets two of them.
    let limits = FilterLimits { instances: 4, ..FilterLimits::default() };
    let stack = Stack::over(&[Guest::new(&["reads"], READS)], disk, limits).await;
    let top = stack.open().await;
    let mut tasks = Vec::new();
    for n in 0..5u64 {
        let top = Arc::clone(&top);
        tasks.push(tokio::spawn(async move { read(&top, n * 512, 512).await.unwrap() }));
        tokio::task::yield_now().await;
    }
    assert_eq!(stack.disk.seen(), ["pread 0 512", "pread 512 512"]);
    hold.add_permits(1);
    stack.disk.reached(1).await;
    assert_eq!(stack.disk.seen(), ["pread 1024 512"]);
    hold.add_permits(10);
    for task in tasks {
        ended(task).await;
    }
    assert_eq!(stack.counters().instances.load(SeqCst), 2);
}

#[tokio::test]
async fn all_but_one_of_the_instances_that_were_not_needed_are_dropped() {
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let hold = disk.hold.clone().unwrap();
    let stack =
        Stack::over(&[Guest::new(&["reads"], READS)], disk, FilterLimits { instances: 8, ..FilterLimits::default() })
            .await;
    let top = stack.open().await;
    let at_once = async |count: u64| {
        let mut tasks = Vec::new();
        for n in 0..count {
            let top = Arc::clone(&top);
            tasks.push(tokio::spawn(async move { read(&top, n * 512, 512).await.unwrap() }));
            tokio::task::yield_now().await;
        }
        hold.add_permits(count as usize);
        for task in tasks {
            ended(task).await;
        }
    };
    let made = || stack.counters().instances.load(SeqCst);
    // Four instances stay while four are needed now and then.
    for _ in 0..3 {
        at_once(4).await;
        assert_eq!(made(), 4);
        stack.chain.free_spare();
    }
    // None was needed since.
    stack.chain.free_spare();
    at_once(1).await;
    assert_eq!(made(), 4);
    at_once(4).await;
    assert_eq!(made(), 7);
}

#[tokio::test]
async fn an_only_instance_that_may_hold_state_is_never_dropped() {
    for model in 0..3 {
        let stack = Stack::new(&[Guest::new(&["reads"], READS).model(model)]).await;
        let top = stack.open().await;
        read(&top, 0, 512).await.unwrap();
        let made = stack.counters().instances.load(SeqCst);
        for _ in 0..3 {
            stack.chain.free_spare();
        }
        read(&top, 0, 512).await.unwrap();
        assert_eq!(stack.counters().instances.load(SeqCst), made);
    }
}

#[tokio::test]
async fn a_write_payload_above_is_never_changed_below() {
    let guest = Guest::new(
        &["reads", "writes"],
        &format!(
            r#"
    (import "rbdkit:filter/buffer@0.1.0" "fill" (func $fill (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    {READS}
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $fill (i32.const 0) (i32.const 1) (i32.const 2) (i32.const 88))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#
        ),
    );
    let stack = Stack::new(&[Guest::new(&["reads", "writes"], &format!("{READS}{WRITES}")), guest]).await;
    let top = stack.open().await;
    write(&top, 0, b"hello", Flags::NONE).await.unwrap();
    assert_eq!(&stack.disk.bytes.lock().unwrap()[..5], b"hXXlo");
}

#[test]
fn a_file_that_is_not_a_filter_is_refused_with_one_line() {
    let host = host();
    let error = |bytes: &[u8]| host.load("x.wasm", bytes).err().unwrap().to_string();
    assert_eq!(error(b"hello"), "x.wasm: it is not a WebAssembly component");
    let module = wat::parse_str("(module)").unwrap();
    assert!(error(&module).contains("core WebAssembly module"), "{}", error(&module));
    let empty = wat::parse_str("(component)").unwrap();
    assert_eq!(error(&empty), "x.wasm: it does not export rbdkit:filter/filter: it is not a filter");
    let http = wat::parse_str(r#"(component (import "wasi:http/types@0.2.0" (instance)))"#).unwrap();
    let expected = "x.wasm: it imports \"wasi:http/types@0.2.0\", and filters get nothing but rbdkit:filter@0.1 \
                    and stubs of some of WASI 0.2";
    assert_eq!(error(&http), expected);
    let newer = wat::parse_str(r#"(component (import "rbdkit:filter/log@0.2.0" (instance)))"#).unwrap();
    assert_eq!(error(&newer), "x.wasm: it was built for rbdkit:filter@0.2.0, and this host has 0.1.0");
    let cut = Guest::new(&["reads"], READS).component();
    assert!(error(&cut[..cut.len() / 2]).contains("cannot be compiled"), "{}", error(&cut[..cut.len() / 2]));
    let threads = wat::parse_str("(component (core module (memory 1 2 shared)))").unwrap();
    assert!(error(&threads).contains("cannot be compiled"), "{}", error(&threads));
    for line in [error(&cut[..cut.len() / 2]), error(&threads)] {
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn a_filter_that_describes_itself_wrongly_is_refused() {
    let guest = Guest { name: "No Name", ..Guest::new(&["reads"], READS) };
    let error = load(&guest).err().unwrap();
    assert_eq!(error, "guest.wasm: its name \"No Name\" is not of lower-case letters, digits and '-'");
    let error = load(&Guest::new(&["flushes"], FLUSHES)).err().unwrap();
    assert!(error.contains("opaque and does not export reads"), "{error}");
    let looping = component_of(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (unreachable))
            (func (export "rbdkit:filter/filter@0.1.0#describe") (result i32) (unreachable))
            (func (export "rbdkit:filter/filter@0.1.0#configure") (param i32 i32) (result i32) (unreachable)))"#,
        "",
    );
    let error = host().load("x.wasm", &looping).err().unwrap().to_string();
    assert!(error.starts_with("x.wasm: describe: "), "{error}");
}

const FLUSHES: &str = r#"
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32) (i32.const 1200))
"#;

#[tokio::test]
async fn an_import_outside_of_its_phase_returns_an_error_or_traps() {
    // `configure` may only log. This one asks who the client is.
    let guest = Guest::new(
        &["reads", "lifecycle"],
        &format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "flush" (func $next_flush (param i32)))
    (import "rbdkit:filter/client@0.1.0" "is-tls" (func $is_tls (result i32)))
    {READS}
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32)
        (call $next_flush (i32.const 2048))
        (if (i32.ne (i32.load8_u (i32.const 2048)) (i32.const 1)) (then (unreachable)))
        (if (i32.ne (i32.load8_u (i32.const 2049)) (i32.const 12)) (then (unreachable)))
        (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32)
        (drop (call $is_tls))
        (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))
"#
        ),
    );
    let host = host();
    let layer =
        host.load("guest.wasm", &guest.component()).unwrap().configure(vec![], FilterLimits::default()).unwrap();
    layer.get_ready(rbdkit_plugin_api::ThreadModel::Parallel).await.unwrap();
    let error = layer.after_fork().await.unwrap_err().to_string();
    assert_eq!(error, "guest: after-fork: it called client.is-tls where it may not");
    layer.cleanup(super::support::soon()).await;
}

/// A long payload of an earlier read does not change how much a guest may pass out.
#[tokio::test]
async fn a_payload_raises_the_limit_on_lists_for_its_own_request_only() {
    let flush = r#"
    (import "rbdkit:filter/log@0.1.0" "debug" (func $log (param i32 i32)))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $log (i32.const 0) (i32.const 20000))
        (i32.const 1200))
"#;
    let guest = Guest::new(&["reads", "flushes"], &format!("{READS}{flush}"));
    let limits = FilterLimits { transfer: 16 << 10, ..FilterLimits::default() };
    let stack = Stack::over(&[guest], Disk::default(), limits).await;
    let top = stack.open().await;
    for _ in 0..2 {
        assert_eq!(top.flush().await.unwrap_err().errno(), Errno::Eio);
        read(&top, 0, 64 << 10).await.unwrap();
    }
    top.finalize().await.unwrap();
    top.close().await;
}

/// With a buffer in very many pieces a guest could make a host function arbitrarily slow, and no
/// tick can end a host function.
#[tokio::test]
async fn a_buffer_in_very_many_pieces_is_kept_as_data() {
    let imports = r#"
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "fill" (func $fill (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "copy" (func $copy (param i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "is-zero" (func $is_zero (param i32 i32 i32) (result i32)))
    (global $n (mut i32) (i32.const 0))"#;
    // Every second byte of the first 64 KiB is a known zero. The 64 KiB are copied again and again
    // until the buffer is full. The bytes in between stay what they were.
    let code = "(call $alloc (i32.const 33554432) (i32.const 2100)) \
        (call $fill (i32.const 1) (i32.const 0) (i32.const 33554432) (i32.const 7)) \
        (loop $l (call $fill (i32.const 1) (global.get $n) (i32.const 1) (i32.const 0)) \
            (global.set $n (i32.add (global.get $n) (i32.const 2))) \
            (br_if $l (i32.lt_u (global.get $n) (i32.const 65536)))) \
        (loop $l (call $copy (i32.const 1) (global.get $n) (i32.const 1) (i32.const 0) (global.get $n)) \
            (global.set $n (i32.shl (global.get $n) (i32.const 1))) \
            (br_if $l (i32.lt_u (global.get $n) (i32.const 33554432)))) \
        (if (i32.eqz (call $is_zero (i32.const 1) (i32.const 33554430) (i32.const 1))) (then (unreachable))) \
        (if (call $is_zero (i32.const 1) (i32.const 33554431) (i32.const 1)) (then (unreachable)))";
    let limits =
        FilterLimits { cpu: Duration::from_secs(20), wall: Duration::from_secs(20), ..FilterLimits::default() };
    let stack = Stack::over(&[bad_at_zero(imports, code)], Disk::default(), limits).await;
    let top = stack.open().await;
    assert_eq!(read(&top, 0, 512).await.unwrap(), stack.disk.bytes.lock().unwrap()[..512]);
    top.finalize().await.unwrap();
    top.close().await;
}

/// While the server runs, a guest's own line about its parameters is shown like its lines in the
/// log: as one line of limited length.
#[tokio::test]
async fn the_error_of_an_instance_that_cannot_be_configured_is_cut() {
    // The second instance gets no memory, and its error is 60000 bytes: zeroes and an end of line.
    let configure = "(if (result i32) (i32.ne (memory.grow (i32.const 16)) (i32.const -1)) (then (i32.const 1200)) \
        (else \
        (i32.store8 (i32.const 2300) (i32.const 1)) (i32.store (i32.const 2304) (i32.const 4096)) \
        (i32.store (i32.const 2308) (i32.const 60000)) (i32.store8 (i32.const 4097) (i32.const 10)) (i32.const 2300)))";
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let hold = disk.hold.clone().unwrap();
    let guest = Guest { configure, ..Guest::new(&["reads"], READS) };
    let limits = ServerLimits { memory: 2 << 20, ..ServerLimits::default() };
    let stack = Stack::within(&[guest], disk, FilterLimits::default(), limits).await;
    let top = stack.open().await;
    let first = Arc::clone(&top);
    let first = tokio::spawn(async move { read(&first, 0, 512).await });
    stack.disk.reached(1).await;
    let error = read(&top, 512, 512).await.unwrap_err().to_string();
    assert!(error.contains("guest: \\u{0}\\n\\u{0}") && error.len() < 1000, "{error}");
    hold.add_permits(1);
    ended(first).await.unwrap();
    top.finalize().await.unwrap();
    top.close().await;
}

/// The client has gone, so nothing else would end the sleep.
#[tokio::test]
async fn finalize_does_not_sleep_for_ever() {
    let sleeps = r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32)
        (call $sleep (i64.const 1000000) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (unreachable)))
        (call $sleep (i64.const -1) (i32.const 2048))
        (if (i32.ne (i32.load8_u (i32.const 2049)) (i32.const 9)) (then (unreachable)))
        (call $sleep (i64.const 1) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#;
    let guest = Guest::new(&["reads", "connection"], &format!("{READS}{sleeps}"));
    let limits = FilterLimits { setup: Duration::from_secs(1), ..FilterLimits::default() };
    let stack = Stack::over(&[guest], Disk::default(), limits).await;
    for _ in 0..2 {
        let top = stack.open().await;
        assert_eq!(top.finalize().await.unwrap_err().errno(), Errno::Eshutdown);
        top.close().await;
    }
    assert_eq!(stack.counters().faults.load(SeqCst), 0);
}
