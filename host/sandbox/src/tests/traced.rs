//! What a tool learns of guests: the record of their calls, counted instructions, and samples.

use std::sync::Arc;

use rbdkit_plugin_api::Flags;

use super::support::*;
use crate::{CodeExtras, FilterLimits, GuestCall, Host, Options, Profile, Trace};

/// A filter over a disk, on a host with these options.
async fn stack(guest: &Guest, options: Options) -> Stack {
    let host = Host::new(Options { cache_dir: Some("/proc/nowhere".into()), ..options }).unwrap();
    let module = host.load("guest.wasm", &guest.component()).unwrap();
    let layer = module.configure(vec![], FilterLimits::default()).unwrap();
    Stack::of(host, vec![layer], Disk::default()).await
}

/// The calls of the host in a call of the guest, as `name(arguments) = result`.
fn host_calls(call: &GuestCall) -> Vec<String> {
    call.host_calls.iter().map(|host| format!("{}({}) = {}", host.name, host.arguments, host.result)).collect()
}

/// A filter that copies the first 20 bytes of a read out and in again, and loops for a while.
const COPIES: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "get-size" (func $size (param i32)))
    (import "rbdkit:filter/buffer@0.1.0" "read" (func $read (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 1) (i64.const 0) (i64.const 4096) (i32.const 1) (i32.const 2048))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (call $read (i32.const 0) (i32.const 0) (i32.const 20) (i32.const 2056))
        (call $write (i32.const 0) (i32.const 0) (i32.load (i32.const 2056)) (i32.load (i32.const 2060)))
        (call $size (i32.const 2064))
        (i32.const 2048))"#;

#[tokio::test]
async fn a_record_names_every_call_of_the_host_with_its_arguments_and_result() {
    let trace = Arc::new(Trace::default());
    let options = Options { trace: Some(Arc::clone(&trace)), extras: CodeExtras::LinesAndCount, ..Options::default() };
    let stack = stack(&Guest::new(&["reads"], COPIES), options).await;
    let top = stack.open().await;
    write(&stack.chain.top(stack.client()).open(false, "").await.unwrap(), 512, &[7; 32], Flags::NONE).await.ok();
    let names: Vec<&str> = trace.take().iter().map(|call| call.name).collect();
    assert_eq!(names[..3], ["instantiate", "describe", "instantiate"]);
    assert!(names.contains(&"configure"), "{names:?}");
    let expected = read(&top, 512, 100).await.unwrap();
    let first: Vec<String> = expected[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let payload = format!("[20 bytes: {} ...]", first.join(" "));
    let calls = trace.take();
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].name, calls[0].arguments.as_str()), ("pread", "offset=512, length=100, flags=none"));
    assert_eq!((calls[0].outcome.as_str(), calls[0].left_out), ("ok", 0));
    let shown = host_calls(&calls[0]);
    assert_eq!(
        shown[..4],
        [
            "locks.lock(scope=exportname, offset=0, length=4096, mode=exclusive) = ok".to_string(),
            "next.pread(offset=512, length=100, buf=0, at=0) = ok".to_string(),
            format!("buffer.read(buf=0, at=0, length=20) = {payload}"),
            format!("buffer.write(buf=0, at=0, data={payload}) = ok"),
        ]
    );
    assert!(shown[4].starts_with("next.get-size() = "), "{shown:?}");
    // 23 operators, some of which count nothing, and what copying the list takes.
    let instructions = calls[0].instructions.unwrap();
    assert!((20..100).contains(&instructions), "{instructions}");
    assert!(calls[0].memory >= 65536 && calls[0].took >= calls[0].host_calls[1].took);
    read(&top, 512, 100).await.unwrap();
    assert_eq!(trace.take()[0].instructions, Some(instructions), "the same work counts the same");
}

#[tokio::test]
async fn a_record_says_why_a_call_failed() {
    let trace = Arc::new(Trace::default());
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "len" (func $len (param i32) (result i32)))
    (func $checksum (drop (call $len (i32.const 99))))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (i64.const -1) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i64.eqz (local.get 0)) (then (call $checksum)))
        (i32.store8 (i32.const 2049) (i32.load8_u (i32.const 2049)))
        (i32.const 2048))"#;
    let guest = Guest::new(&["reads"], body);
    let stack = stack(&guest, Options { trace: Some(Arc::clone(&trace)), ..Options::default() }).await;
    let top = stack.open().await;
    trace.take();
    read(&top, 512, 16).await.unwrap_err();
    let calls = trace.take();
    assert_eq!((calls[0].outcome.as_str(), calls[0].host_calls[0].result.as_str()), ("EINVAL", "EINVAL"));
    assert_eq!(calls[0].instructions, None, "this code does not count them");
    read(&top, 0, 16).await.unwrap_err();
    let calls = trace.take();
    let (outcome, result) = (&calls[0].outcome, &calls[0].host_calls[1].result);
    assert!(outcome.starts_with("fault: ") && outcome.contains("; in checksum+0x"), "{outcome}");
    assert!(result.starts_with("ends the guest: "), "{result}");
}

#[tokio::test]
async fn a_server_records_nothing_and_counts_nothing() {
    let stack = stack(&Guest::new(&["reads"], COPIES), Options::default()).await;
    read(&stack.open().await, 0, 20).await.unwrap();
    assert_eq!(stack.counters().bytes_crossed(), 40);
}

#[tokio::test]
async fn samples_name_the_functions_that_compute() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func $spin (param $n i32)
        (loop $more (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $more (local.get $n))))
    (func $read (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $spin (i32.const 3000000))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let profile = Profile::begin();
    let options = Options { profile: Some(Arc::clone(&profile)), ..Options::default() };
    let stack = stack(&Guest::new(&["reads"], body), options).await;
    let top = stack.open().await;
    let spins = || {
        let samples = profile.samples();
        let spin = samples.nodes.iter().position(|node| node.name == "spin")?;
        assert_eq!(samples.nodes[samples.nodes[spin].caller?].name, "read");
        Some(samples.samples.iter().filter(|(_, at)| *at == spin).count())
    };
    while spins().is_none_or(|count| count < 3) {
        read(&top, 0, 16).await.unwrap();
    }
}
