//! Components whose author chooses sizes that no limit of wasmtime bounds.

use std::time::{Duration, Instant};

use rbdkit_plugin_api::Errno;

use super::support::{Disk, Guest, READS, Stack, host, host_within, read, until};
use crate::{FilterLimits, ServerLimits};

/// A component of a filter, to which a module is added that it instantiates `count` times.
fn with_instances(filter: &Guest, module: &str, count: usize) -> Vec<u8> {
    let module = wat::parse_str(module).unwrap();
    let mut component = filter.component();
    let modules = wasmparser::Parser::new(0).parse_all(&component);
    let first = modules.filter(|payload| matches!(payload, Ok(wasmparser::Payload::ModuleSection { .. }))).count();
    let mut added = wasm_encoder::Component::new();
    added.section(&wasm_encoder::RawSection { id: 1, data: &module });
    let mut instances = wasm_encoder::InstanceSection::new();
    for _ in 0..count {
        instances.instantiate::<[(&str, wasm_encoder::ModuleArg); 0], &str>(first as u32, []);
    }
    added.section(&instances);
    // Sections may follow each other in any order.
    component.extend(&added.finish()[8..]);
    component
}

fn globals(count: usize) -> String {
    format!("(module {})", "(global i64 (i64.const 1))".repeat(count))
}

#[test]
fn what_an_instance_takes_besides_memory_is_charged_before_it_is_made() {
    let filter = Guest::new(&["reads"], READS);
    let load = |component: &[u8]| host().load("guest.wasm", component).map_err(|error| error.to_string());
    // 120 times 800 KB of globals.
    let error = load(&with_instances(&filter, &globals(50_000), 120)).err().unwrap();
    assert_eq!(error, "guest.wasm: memory: the filter asked for 91.9 MiB; the limit is 64 MiB");
    // 20 times is allowed by the limit for describing, and not by the operator's.
    let component = with_instances(&filter, &globals(50_000), 20);
    let configure = |memory: u64| {
        let limits = FilterLimits { memory, ..FilterLimits::default() };
        load(&component).unwrap().configure(vec![], limits).map(|_| ()).map_err(|error| error.to_string())
    };
    let error = configure(8 << 20).unwrap_err();
    assert_eq!(
        error,
        "guest: cannot be started: memory: the filter asked for 15.4 MiB; the limit is 8 MiB \
         (--filter-limit guest:memory=SIZE)"
    );
    configure(20 << 20).unwrap();
}

#[tokio::test]
async fn what_instances_take_besides_memory_counts_towards_that_of_all_filters() {
    let component = with_instances(&Guest::new(&["reads"], READS), &globals(50_000), 10);
    let host = host_within(ServerLimits { memory: 12 << 20, ..ServerLimits::default() });
    let mut modules: Vec<_> = (0..3).map(|_| host.load("guest.wasm", &component).unwrap()).collect();
    let mut configure = || {
        let module = modules.pop().unwrap();
        module.configure(vec![], FilterLimits::default()).map_err(|error| error.to_string())
    };
    let first = configure().unwrap();
    let error = configure().err().unwrap();
    assert_eq!(
        error,
        "guest: cannot be started: memory: the filter asked for 7.7 MiB more; the limit of all filters together is \
         12 MiB (--filter-limit memory-all=SIZE)"
    );
    drop(first);
    configure().unwrap();
}

#[test]
fn a_component_that_copies_its_segments_again_and_again_is_refused() {
    let segments = format!("(module (memory 100) (data (i32.const 0) \"{}\"))", "x".repeat(6 << 20));
    let component = with_instances(&Guest::new(&["reads"], READS), &segments, 100);
    let error = host().load("guest.wasm", &component).err().unwrap().to_string();
    assert_eq!(error, "guest.wasm: making an instance copies 600 MiB (at most 256 MiB)");
}

/// A filter whose read traps in a function of this name.
fn traps_in(name: &str) -> Guest {
    let body = format!(
        r#"(func $"{name}" (unreachable))
        (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
            (call $"{name}") (i32.const 2048))"#
    );
    Guest::new(&["reads"], &body)
}

#[tokio::test]
async fn a_fault_in_a_function_with_an_endless_name_costs_no_more_than_any_other() {
    let mut times = Vec::new();
    for length in [10, 10 << 20] {
        let stack = Stack::new(&[traps_in(&"n".repeat(length))]).await;
        let top = stack.open().await;
        let started = Instant::now();
        for _ in 0..7 {
            assert_eq!(read(&top, 0, 512).await.unwrap_err().errno(), Errno::Eio);
        }
        times.push(started.elapsed());
    }
    // Seven copies of 10 MiB, each demangled, took seconds.
    assert!(times[1] < times[0] * 10 + Duration::from_millis(200), "{times:?}");
}

#[tokio::test]
async fn a_guest_that_was_refused_memory_and_traps_names_the_limit() {
    let limits = FilterLimits { memory: 1 << 20, ..FilterLimits::default() };
    let ends = |refused: &str, end: &str| {
        let body = format!(
            r#"(table $t 1 funcref)
            (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
                (if (i64.eqz (local.get 0)) (then (drop {refused}))) {end} (unreachable))"#
        );
        Guest::new(&["reads"], &body)
    };
    let traps = |refused: &str| ends(refused, "");
    for refused in ["(memory.grow (i32.const 100))", "(table.grow $t (ref.null func) (i32.const 100000))"] {
        let stack = Stack::over(&[traps(refused)], Disk::default(), limits.clone()).await;
        let top = stack.open().await;
        let error = read(&top, 0, 512).await.unwrap_err().to_string();
        let why = "the limit is 1 MiB (--filter-limit guest:memory=SIZE): wasm trap: wasm `unreachable` instruction \
                   executed";
        assert!(error.contains(why), "{error}");
        // In another call the trap has another reason.
        let error = read(&top, 512, 512).await.unwrap_err().to_string();
        assert!(error.contains("pread: wasm trap:"), "{error}");
    }
    let null_pointer = ends("(memory.grow (i32.const 100))", "(drop (i32.load (i32.const -8)))");
    let stack = Stack::over(&[null_pointer], Disk::default(), limits).await;
    let error = read(&stack.open().await, 0, 512).await.unwrap_err().to_string();
    let why = "memory: the filter asked for 6.4 MiB; the limit is 1 MiB (--filter-limit guest:memory=SIZE): wasm \
               trap: out of bounds memory access";
    assert!(error.contains(why), "{error}");
    let all = ServerLimits { memory: 1 << 20, ..ServerLimits::default() };
    let guest = traps("(memory.grow (i32.const 100))");
    let stack = Stack::within(&[guest], Disk::default(), FilterLimits::default(), all).await;
    let error = read(&stack.open().await, 0, 512).await.unwrap_err().to_string();
    let why = "memory: the filter asked for 6.3 MiB more; the limit of all filters together is 1 MiB (--filter-limit \
               memory-all=SIZE): wasm trap";
    assert!(error.contains(why), "{error}");
}

#[test]
fn modules_of_any_shape_are_loaded_or_refused_with_one_line() {
    let many = |item: &str, count: usize| format!("(module {})", item.repeat(count));
    let shapes = [
        many("(type (func))", 100_000),
        many("(func)", 20_000),
        many("(elem declare func)", 50_000),
        many("(data \"x\")", 50_000),
        format!(
            "(module (func $f) {})",
            (0..20_000).map(|n| format!("(export \"{n}\" (func $f))")).collect::<String>()
        ),
    ];
    for shape in shapes {
        let component = with_instances(&Guest::new(&["reads"], READS), &shape, 1);
        let loaded = host().load("guest.wasm", &component);
        if let Err(error) = loaded {
            assert!(error.to_string().len() < 600 && !error.to_string().contains('\n'), "{error}");
        }
    }
    let mut nested = Guest::new(&["reads"], READS).component();
    for _ in 0..40 {
        let mut outer = wasm_encoder::Component::new();
        outer.section(&wasm_encoder::RawSection { id: 4, data: &nested });
        nested = outer.finish();
    }
    let error = host().load("guest.wasm", &nested).err().unwrap().to_string();
    assert_eq!(error, "guest.wasm: its components are inside each other more than 16 deep");
}

#[tokio::test]
async fn an_idle_client_does_not_keep_a_processor_busy_with_background_work() {
    let body = r#"
    (func $spin (local $n i32)
        (loop $l (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $l (i32.lt_u (local.get $n) (i32.const 20000000)))))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32) (call $spin) (i32.const 1200))
    (func (export "rbdkit:filter/background@0.1.0#next-range") (result i32)
        (call $spin)
        (i32.store8 (i32.const 4096) (i32.const 1))
        (i64.store (i32.const 4112) (i64.const 65536))
        (i32.const 4096))
"#;
    let stack = Stack::new(&[Guest::new(&["reads", "background"], body)]).await;
    let top = stack.open().await;
    let started = Instant::now();
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        read(&top, 0, 512).await.unwrap();
        shortest = shortest.min(started.elapsed());
    }
    let prefetches = || stack.counters().prefetches.load(std::sync::atomic::Ordering::SeqCst);
    until("4 background ranges", || prefetches() >= 4).await;
    // Three pauses of 19 times a call have passed. A call may be faster than those measured.
    assert!(started.elapsed() > shortest * 3 * 10, "{:?}, {shortest:?} a call", started.elapsed());
    top.finalize().await.unwrap();
    top.close().await;
}
