//! Components that are refused before anything is served: with one clear line, exit status 1 and in
//! bounded time.

use std::time::{Duration, Instant};

use rbdkit_tests::{Launch, Rng, TempDir, seed};

use crate::guest::Guest;

/// What the program says of a component that it refuses.
fn refused(component: &[u8], options: &[&str]) -> String {
    let dir = TempDir::new();
    let file = dir.file("x.wasm", component);
    let began = Instant::now();
    let launch = Launch::new(["--wasm-filter"]).arg(file).args(options).env("XDG_CACHE_HOME", dir.path());
    let outcome = launch.args(["memory", "1M"]).try_start().err().expect("it is refused");
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}: {}", began.elapsed(), outcome.stderr);
    outcome.stderr.replace(&dir.path().display().to_string(), "")
}

/// What the program says of a component that it ended. On a busy machine the limit of elapsed time
/// may be reached first.
fn ended(component: &[u8], options: &[&str]) -> String {
    let line = refused(component, options);
    line.replace("it computed for longer than", "it was ended after")
        .replace("it took longer than", "it was ended after")
}

fn plain(component_text: &str) -> Vec<u8> {
    wat::parse_str(component_text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_component_that_spins_before_it_serves_is_ended() {
    let start = Guest::new("spin", &[], "(func $go (loop $l (br $l))) (start $go)");
    let describe = Guest { describe: "(loop $l (br $l)) (unreachable)", ..Guest::new("spin", &[], "") };
    let configure = Guest { configure: "(loop $l (br $l)) (unreachable)", ..Guest::new("spin", &[], "") };
    let ready = r#"
        (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (loop $l (br $l)) (unreachable))
        (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (unreachable))
        (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))"#;
    let ready = Guest::new("spin", &["lifecycle"], ready);
    let quick = &["--filter-limit", "setup=100ms"];
    // They run side by side: each takes as long as the host waits for a component's description.
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let line = ended(&start.component(0), &[]);
            assert_eq!(line, "rbdkit: error: /x.wasm: it was ended after 5s\n");
        });
        threads.spawn(|| {
            let line = ended(&describe.component(0), &[]);
            assert_eq!(line, "rbdkit: error: /x.wasm: describe: it was ended after 5s\n");
        });
        let line = ended(&configure.component(0), quick);
        assert_eq!(line, "rbdkit: error: spin: configure: it was ended after 100ms\n");
        let line = ended(&ready.component(0), quick);
        assert_eq!(line, "rbdkit: error: spin: get-ready: it was ended after 100ms\n");
    });
}

#[test]
fn imports_that_are_not_granted_are_refused_by_name() {
    for import in [
        // There are stubs of some interfaces of WASI 0.2 and of nothing else.
        "wasi:http/outgoing-handler@0.2.0",
        "wasi:keyvalue/store@0.2.0",
        "wasi:cli/run@0.2.0",
        "wasi:cli/environment@0.3.0",
        "wasi:filesystem/preopens@0.2.0-rc-2023-11-10",
        "wasi:sockets/tcp",
        "rbdkit:host/secrets@0.1.0",
    ] {
        let line = refused(&plain(&format!(r#"(component (import "{import}" (instance)))"#)), &[]);
        let expected = format!(
            "rbdkit: error: /x.wasm: it imports \"{import}\", \
             and filters get nothing but rbdkit:filter@0.1 and stubs of some of \
             WASI 0.2\n"
        );
        assert_eq!(line, expected);
    }
    let newer = r#"(component (import "rbdkit:filter/log@0.2.0" (instance)))"#;
    let expected = "rbdkit: error: /x.wasm: it was built for rbdkit:filter@0.2.0, and this host has 0.1.0\n";
    assert_eq!(refused(&plain(newer), &[]), expected);
    let unknown =
        r#"(component (import "rbdkit:filter/log@0.1.0" (instance (export "shell" (func (param "a" string))))))"#;
    let line = refused(&plain(unknown), &[]);
    assert!(line.contains("it does not fit this host's rbdkit:filter@0.1.0"), "{line}");
    let unknown =
        r#"(component (import "rbdkit:filter/exec@0.1.0" (instance (export "run" (func (param "a" string))))))"#;
    let line = refused(&plain(unknown), &[]);
    assert!(line.contains("rbdkit:filter/exec") || line.contains("it does not fit"), "{line}");
    // Functions that a stub does not have, or has with another type.
    for function in [r#""shell" (func (param "a" string))"#, r#""get-arguments" (func (result string))"#] {
        let import = format!(r#"(component (import "wasi:cli/environment@0.2.0" (instance (export {function}))))"#);
        let line = refused(&plain(&import), &[]);
        assert!(line.contains("it does not fit") && line.contains("wasi:cli/environment"), "{line}");
    }
}

#[test]
fn features_that_are_off_are_refused() {
    let core = |text: &str| plain(&format!("(component (core module {text}))"));
    for (what, component) in [
        ("threads", core("(memory 1 2 shared)")),
        ("atomics", core("(memory 1) (func (drop (i32.atomic.load (i32.const 0))))")),
        ("memory64", core("(memory i64 1)")),
        ("table64", core("(table i64 1 funcref)")),
        ("page sizes", core("(memory 1 (pagesize 1))")),
        ("gc structs", core("(type (struct (field i32)))")),
        ("gc arrays", core("(type (array i8))")),
        ("function references", core("(type $f (func)) (func (param (ref $f)))")),
        ("exceptions", core("(tag (param i32))")),
        ("old exceptions", core("(func try catch_all end)")),
        ("relaxed simd", core("(func (drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0))))")),
        ("stack switching", core("(type $f (func)) (type $c (cont $f))")),
        (
            "wide arithmetic",
            core(
                "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) \
                 (local.get 2) (local.get 3)))",
            ),
        ),
        (
            "async lift",
            plain(
                "(component (core module $m (func (export \"f\"))) (core instance $i (instantiate $m)) \
                 (func (export \"f\") async (canon lift (core func $i \"f\") async)))",
            ),
        ),
        ("futures", plain("(component (type (future u8)))")),
        ("streams", plain("(component (type (stream u8)))")),
        ("error contexts", plain("(component (core func (canon error-context.drop)))")),
    ] {
        let line = refused(&component, &[]);
        assert!(line.starts_with("rbdkit: error: /x.wasm: it cannot be compiled: "), "{what}: {line}");
    }
}

#[test]
fn files_that_are_not_components_are_refused() {
    let dir = TempDir::new();
    for (bytes, message) in [
        (&b""[..], "it is not a WebAssembly component"),
        (b"\x7fELF", "it is not a WebAssembly component"),
        (b"\0asm\x0d\0\x01", "it is not a WebAssembly component"),
        (b"\0asm\x01\0\0\0", "it is a core WebAssembly module, not a component"),
    ] {
        let line = refused(bytes, &[]);
        assert!(line.contains(message), "{line}");
    }
    // Compiled code that others made is never loaded.
    let line = refused(b"\x7fELF\x02\x01\x01\xc8wasmtime", &[]);
    assert!(line.contains("it is not a WebAssembly component"), "{line}");
    let large = dir.sparse_file("large.wasm", (64 << 20) + 1);
    let outcome = Launch::new(["--wasm-filter"]).arg(&large).args(["memory", "1M"]).try_start().err().expect("refused");
    assert!(outcome.stderr.ends_with("is larger than 64 MiB\n"), "{}", outcome.stderr);
    for pinned in ["0".repeat(64), "f".repeat(64)] {
        let file = dir.file("good.wasm", &Guest::reads("good", "", "").component(0));
        let pin = format!("{}@sha256:{pinned}", file.display());
        let outcome = Launch::new(["--wasm-filter", &pin, "memory", "1M"]).try_start().err().expect("refused");
        assert!(
            outcome.stderr.contains("is not the file that was named: its SHA-256 digest is "),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn pipes_and_devices_are_neither_waited_for_nor_read_without_end() {
    let dir = TempDir::new();
    let fifo = dir.join("fifo.wasm");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("a pipe");
    for (file, message) in [
        (fifo.as_path(), "it is not a WebAssembly component"),
        ("/dev/zero".as_ref(), "is not a file"),
        (dir.path(), "is a directory"),
    ] {
        for pin in [String::new(), format!("@sha256:{}", "0".repeat(64))] {
            let name = format!("{}{pin}", file.display());
            let outcome = Launch::new(["--wasm-filter", &name, "memory", "1M"]).try_start().err().expect("refused");
            let message = if pin.is_empty() || file != fifo { message } else { "is not the file that was named" };
            assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        }
    }
}

#[test]
fn a_description_cannot_depend_on_time_or_chance() {
    // The first letter of the component's name is one of sixteen and depends on the time, the clock
    // or chance.
    for (import, ask) in [
        (r#"(import "rbdkit:filter/clock@0.1.0" "random" (func $ask (result i64)))"#, "(call $ask)"),
        (r#"(import "rbdkit:filter/clock@0.1.0" "monotonic" (func $ask (result i64)))"#, "(call $ask)"),
        (r#"(import "rbdkit:filter/clock@0.1.0" "realtime" (func $ask (result i64)))"#, "(call $ask)"),
    ] {
        let mixed = format!(
            "(func $mixed (result i32) (i32.wrap_i64 (i64.rem_u (i64.div_u {ask} (i64.const 7)) (i64.const 16))))"
        );
        let describe = "(i32.store8 (i32.const 1100) (i32.add (i32.const 97) (call $mixed))) (i32.const 1024)";
        let guest = Guest { describe, ..Guest::reads("name", &format!("{import}\n{mixed}"), "") };
        let dir = TempDir::new();
        let file = dir.file("x.wasm", &guest.component(0));
        let told: std::collections::BTreeSet<String> = (0..8)
            .map(|_| {
                let program = rbdkit_tests::server::program();
                let arguments = ["--wasm-filter".as_ref(), file.as_os_str(), "--version".as_ref()];
                rbdkit_tests::tool(&program.display().to_string(), arguments).ok()
            })
            .collect();
        assert_eq!(told.len(), 1, "{import}: {told:?}");
    }
}

#[test]
fn more_memories_or_tables_than_there_may_be_are_refused() {
    let memories: String = (0..9).map(|n| format!("(memory $m{n} 1)\n")).collect();
    let line = refused(&Guest::new("many", &[], &memories).component(0), &[]);
    assert!(line.contains("resource limit exceeded") && line.contains("memory"), "{line}");
    let tables: String = (0..17).map(|n| format!("(table $t{n} 1 funcref)\n")).collect();
    let line = refused(&Guest::new("many", &[], &tables).component(0), &[]);
    assert!(line.contains("resource limit exceeded") && line.contains("table"), "{line}");
    // Memory of 64 MiB and one page at the start.
    let line = refused(&Guest::new("large", &[], "(memory $m 1024)").component(0), &[]);
    assert!(line.contains("/x.wasm: "), "{line}");
}

#[test]
fn a_compile_bomb_is_compiled_or_refused_within_bounds() {
    // A bomb of twenty thousand functions. An honest interpreter may have as many.
    let functions: String = (0..20_000).map(|n| format!("(func $f{n} (result i32) (i32.const {n}))\n")).collect();
    let component = Guest::new("functions", &[], &functions).component(0);
    let dir = TempDir::new();
    let launch = Launch::new(["--wasm-filter"]).arg(dir.file("x.wasm", &component)).env("XDG_CACHE_HOME", dir.path());
    let server = launch.args(["memory", "1M"]).start();
    println!("20000 functions: listening after {:?}", server.start_time());
    assert!(server.client().read(0, 512).is_ok());
    drop(server);

    // Nested blocks. The parser of the text format would not take them.
    let nested = nested_blocks(1_000_000);
    let line = refused(&nested, &["--filter-limit", "compile=2s"]);
    // The limit is the compiler's processor time; on a busy machine it may be twice as much elapsed
    // time.
    let ended = ["more than 2s of processor time\n", "longer than 4s\n"];
    let ended = ended.map(|why| format!("rbdkit: error: /x.wasm: it cannot be compiled: compiling it took {why}"));
    assert!(ended.contains(&line), "{line}");
    let line = refused(&component, &["--filter-limit", "compile-memory=100M"]);
    assert_eq!(
        line,
        "rbdkit: error: /x.wasm: it cannot be compiled: the compiler does not cope with it, or needs more than 100 MiB \
         of memory\n"
    );

    // More locals than a function may have.
    let locals = "(local i32)".repeat(50_001);
    let line = refused(&plain(&format!("(component (core module (func {locals})))")), &[]);
    assert!(line.contains("cannot be compiled: "), "{line}");

    // Nested types.
    let mut types = String::from("(type $t0 (tuple u8 u8))");
    for n in 0..200 {
        types.push_str(&format!("(type $t{} (tuple $t{n} $t{n}))", n + 1));
    }
    let line = refused(&plain(&format!("(component {types})")), &[]);
    assert!(line.contains("cannot be compiled: "), "{line}");
}

/// A component with a function of `depth` nested blocks.
fn nested_blocks(depth: usize) -> Vec<u8> {
    let mut body = vec![0];
    body.extend([0x02, 0x40].repeat(depth));
    body.extend(vec![0x0b; depth + 1]);
    let mut code = vec![1];
    leb(&mut code, body.len());
    code.extend(body);
    let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a".to_vec();
    leb(&mut module, code.len());
    module.extend(code);
    let mut component = b"\0asm\x0d\0\x01\0\x01".to_vec();
    leb(&mut component, module.len());
    component.extend(module);
    component
}

fn leb(into: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        into.push(n as u8 | 0x80);
        n >>= 7;
    }
    into.push(n as u8);
}

#[test]
fn a_component_of_64_mib_is_refused_or_served_within_bounds() {
    // Nearly all of it is data for which the guest's memory has no room.
    let data = vec![b'x'; 60 << 20];
    let mut module = wat::parse_str("(module (memory 1))").expect("a module");
    // Section 11 with one active segment at 0.
    let mut segment = vec![1, 0, 0x41, 0, 0x0b];
    leb(&mut segment, data.len());
    segment.extend(data);
    module.push(11);
    leb(&mut module, segment.len());
    module.extend(segment);
    let mut component = b"\0asm\x0d\0\x01\0\x01".to_vec();
    leb(&mut component, module.len());
    component.extend(module);
    let line = refused(&component, &[]);
    assert!(line.contains("it does not export rbdkit:filter/filter: it is not a filter"), "{line}");
}

#[test]
fn truncated_and_bit_flipped_files_are_refused_or_harmless() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let good = Guest::reads("good", "", "").component(0);
    let dir = TempDir::new();
    for round in 0..12 {
        let mut bytes = good.clone();
        if rng.chance(40) {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        } else {
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << rng.below(8);
            }
        }
        let file = dir.file("x.wasm", &bytes);
        let launch = Launch::new(["--wasm-filter"]).arg(file).env("XDG_CACHE_HOME", dir.path());
        match launch.args(["--filter-limit", "setup=1s", "memory", "1M"]).try_start() {
            Ok(mut server) => assert!(server.is_alive(), "seed {seed} round {round}"),
            Err(outcome) => {
                assert_eq!(outcome.status.code(), Some(1), "seed {seed} round {round}: {}", outcome.stderr);
                assert_eq!(outcome.stderr.lines().count(), 1, "seed {seed} round {round}: {}", outcome.stderr);
            }
        }
    }
}
