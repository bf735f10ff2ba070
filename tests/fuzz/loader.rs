//! Fuzzing of what loads a foreign filter, with mutated components.
//!
//! A component is a tree of sections. Most mutations keep that tree whole: they drop, double or
//! swap sections, bring them in from another component, or change bytes within one and set the
//! lengths around it right. So the damage lies behind the first check. A component that still loads
//! is asked for its description and given its parameters. There are two targets. Loading runs in
//! this process with the compiler in it; it must not panic and must give a filter or an error of
//! one line. The author's tool compiles in a child process as the server does; it must end by
//! itself, with a line and status 1 or with the answer.
//!
//! If the process itself dies, the input is in the file that was printed at the beginning.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbdkit_sandbox::{FilterLimits, Host, Options};
use rbdkit_tests::server::{program, root};
use rbdkit_tests::{Rng, TempDir, seed};

use crate::Budget;
use crate::guest::Guest;

/// What is mutated: the built-in filters, and small components that do one odd thing each.
fn corpus() -> Vec<Vec<u8>> {
    let filters = std::fs::read_dir(root().join("target/filters")).expect("target/filters (run make filters first)");
    let paths = filters.map(|entry| entry.expect("an entry").path());
    let own = paths
        .filter(|path| path.extension().is_some_and(|end| end == "wasm"))
        .map(|path| std::fs::read(path).expect("a filter"));
    let resource = Guest::reads(
        "resource",
        r#"(import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
           (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
           (func (export "things#[constructor]thing") (result i32) (call $new (i32.const 7)))
           (func (export "things#[dtor]thing") (param i32))"#,
        "(call $drop (call $new (i32.const 1)))",
    )
    .world("export things: interface { resource thing { constructor(); } }\n");
    let start = Guest::new("start", &[], "(func $go (drop (memory.grow (i32.const 1)))) (start $go)");
    let table = Guest::reads(
        "table",
        "(table $t 4 funcref) (elem (i32.const 0) func $f) (func $f (result i32) (i32.const 1))",
        "(drop (call_indirect (result i32) (i32.const 0)))",
    );
    let params = Guest {
        params: vec![("size", "size"), ("file", "path-read"), ("often", "int")],
        ..Guest::mapping("params", "", "(i32.store8 (i32.const 3000) (i32.const 1)) (return (i32.const 3000))")
    };
    let hostile = [resource, start, table, params, Guest::writes("writes", "", "(unreachable)")];
    own.chain(hostile.iter().map(|guest| guest.component(0))).collect()
}

/// A section: its number and its content.
#[derive(Clone)]
struct Section {
    id: u8,
    bytes: Vec<u8>,
}

/// Numbers of sections of a component: a module, and a component within it.
const MODULE: u8 = 1;
const COMPONENT: u8 = 4;

const HEADER: usize = 8;

fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut n = 0usize;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        n |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((n, at + 1));
        }
    }
    None
}

/// The sections behind a header, or `None` if the bytes are not whole sections.
fn sections(component: &[u8]) -> Option<Vec<Section>> {
    let mut rest = component.get(HEADER..)?;
    let mut all = Vec::new();
    while let Some((&id, behind)) = rest.split_first() {
        let (length, width) = length(behind)?;
        let bytes = behind.get(width..width + length)?;
        all.push(Section { id, bytes: bytes.to_vec() });
        rest = &behind[width + length..];
    }
    Some(all)
}

fn whole(header: &[u8], sections: &[Section]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    for section in sections {
        bytes.push(section.id);
        bytes.extend(leb(section.bytes.len()));
        bytes.extend(&section.bytes);
    }
    bytes
}

fn pick(rng: &mut Rng, count: usize) -> usize {
    rng.below(count.max(1) as u64) as usize
}

/// Numbers at the limits of what is checked, in the encoding of the format.
const EDGES: [&[u8]; 8] = [
    &[0x00],
    &[0x7f],
    &[0x80, 0x80, 0x80, 0x80, 0x08],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    &[0x80, 0x80, 0x04],
    &[0xff; 10],
    &[0x80; 4],
];

fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if rng.chance(60) && !bytes.is_empty() {
        let at = pick(rng, bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        return;
    }
    for _ in 0..1 + rng.below(3) {
        let at = pick(rng, bytes.len() + 1);
        match rng.below(7) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            3 => {
                let edge = EDGES[pick(rng, EDGES.len())];
                let end = (at + if rng.chance(50) { edge.len() } else { 1 }).min(bytes.len());
                bytes.splice(at..end, edge.iter().copied());
            }
            4 => {
                let end = (at + 1 + pick(rng, 20)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let from = pick(rng, bytes.len());
                let end = (from + 1 + pick(rng, 40)).min(bytes.len());
                let copied = bytes[from.min(end)..end].to_vec();
                bytes.splice(at..at, copied);
            }
            _ if rng.chance(10) => bytes.truncate(at),
            _ => {}
        }
    }
}

/// Mutates a component or a module and what is within it. Sections are taken from `other` too.
fn mutate(rng: &mut Rng, bytes: &[u8], other: &[u8], is_component: bool) -> Vec<u8> {
    let (Some(mut parts), Some(others)) = (sections(bytes), sections(other)) else {
        let mut bytes = bytes.to_vec();
        mutate_bytes(rng, &mut bytes);
        return bytes;
    };
    let mut at = pick(rng, parts.len());
    // Most of a component is its modules, and most of a module is its code. A change there is most
    // likely to leave a filter that runs.
    let large = parts.iter().enumerate().max_by_key(|(_, part)| part.bytes.len());
    if let Some((largest, _)) = large.filter(|_| rng.chance(50)) {
        at = largest;
    }
    let foreign = others.get(pick(rng, others.len())).cloned();
    match rng.below(20) {
        0 if !parts.is_empty() => drop(parts.remove(at)),
        1 if !parts.is_empty() => parts.insert(at, parts[at].clone()),
        2 => {
            let with = pick(rng, parts.len());
            parts.swap(at, with);
        }
        3 => parts.extend(foreign),
        4 if !parts.is_empty() => {
            // A section of the same kind, if there is one.
            let same = others.iter().find(|section| section.id == parts[at].id).cloned();
            if let Some(section) = same.or(foreign) {
                parts[at] = section;
            }
        }
        5 if !parts.is_empty() => parts[at].id = rng.below(14) as u8,
        _ if !parts.is_empty() => {
            let nested = is_component && [MODULE, COMPONENT].contains(&parts[at].id);
            if nested && rng.chance(80) {
                let kind = parts[at].id;
                let within = others.iter().find(|section| section.id == kind).map_or(&[][..], |section| &section.bytes);
                parts[at].bytes = mutate(rng, &parts[at].bytes, within, kind == COMPONENT);
            } else {
                mutate_bytes(rng, &mut parts[at].bytes);
            }
        }
        _ => {}
    }
    whole(&bytes[..HEADER.min(bytes.len())], &parts)
}

fn input(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[pick(rng, corpus.len())].clone();
    let other = &corpus[pick(rng, corpus.len())];
    match rng.below(20) {
        // A file that a full disk cut off.
        0 => bytes.truncate(pick(rng, bytes.len())),
        1 => mutate_bytes(rng, &mut bytes),
        2 => {
            let (at, from) = (pick(rng, bytes.len()), pick(rng, other.len()));
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        _ => {
            for _ in 0..1 + rng.below(2) {
                bytes = mutate(rng, &bytes, other, true);
            }
        }
    }
    bytes
}

/// The file with the input of the round. If the process dies, the input is there.
struct Evidence(PathBuf);

impl Evidence {
    fn new(target: &str, seed: u64) -> Evidence {
        let path = std::env::temp_dir().join(format!("rbdkit-fuzz-{target}-{}.wasm", std::process::id()));
        println!("RBDKIT_SEED={seed}; the input of the round is {}", path.display());
        Evidence(path)
    }

    fn keep(&self, input: &[u8]) {
        std::fs::write(&self.0, input).expect("the input is written");
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// How far the inputs came.
#[derive(Debug, Default)]
struct Came {
    refused: u64,
    described: u64,
    configured: u64,
}

/// Loads and configures a component as the server does.
fn load(host: &Arc<Host>, input: &[u8], came: &mut Came) {
    let module = match host.load("x", input) {
        Ok(module) => module,
        Err(error) => {
            let line = error.to_string();
            assert!(line.starts_with("x: ") && !line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 4096, "a line of {} bytes", line.len());
            came.refused += 1;
            return;
        }
    };
    came.described += 1;
    let description = module.description();
    assert!(!description.name.is_empty() && !description.longname.chars().any(char::is_control));
    let limits = FilterLimits { setup: Duration::from_millis(200), ..FilterLimits::default() };
    if module.configure(Vec::new(), limits).is_ok() {
        came.configured += 1;
    }
}

#[test]
fn fuzz_loading_a_filter() {
    let seed = seed();
    let (mut rng, corpus) = (Rng::new(seed ^ 0x10ad), corpus());
    let evidence = Evidence::new("loader", seed);
    // Compiled code is not kept.
    let host = Host::new(Options { cache_dir: Some("/nowhere".into()), ..Options::default() }).expect("a host");
    for component in &corpus {
        let mut came = Came::default();
        load(&host, component, &mut came);
        assert_eq!(came.described, 1, "what is mutated is well");
    }
    let budget = Budget::new(60);
    let (mut round, mut came) = (0, Came::default());
    while budget.goes_on(round) {
        let input = input(&mut rng, &corpus);
        evidence.keep(&input);
        let began = Instant::now();
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| load(&host, &input, &mut came)));
        assert!(checked.is_ok(), "seed {seed} round {round}: see {}", evidence.0.display());
        // The limit of `describe`, and the time to compile a small component on a busy machine.
        assert!(began.elapsed() < Duration::from_secs(60), "seed {seed} round {round}: {:?}", began.elapsed());
        round += 1;
    }
    println!("{round} components loaded: {came:?}");
}

#[test]
fn fuzz_the_authors_tool() {
    let seed = seed();
    let (mut rng, corpus) = (Rng::new(seed ^ 0x7001), corpus());
    let evidence = Evidence::new("tool", seed);
    let tool = program().with_file_name("rbdkit-filter");
    let dir = TempDir::new();
    let budget = Budget::new(20);
    let (mut round, mut succeeded) = (0, 0);
    while budget.goes_on(round) {
        let input = input(&mut rng, &corpus);
        evidence.keep(&input);
        let arguments: &[&str] = [&["inspect"][..], &["inspect", "--json"], &["check"]][pick(&mut rng, 3)];
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120"]).arg(&tool).args(arguments).arg(&evidence.0);
        command.env("XDG_CACHE_HOME", "/nowhere").env("TMPDIR", dir.path()).stdin(Stdio::null());
        let output = command.output().expect("the tool is there");
        let said = String::from_utf8_lossy(&output.stderr);
        let why =
            format!("seed {seed} round {round}, {arguments:?} {}: {}\n{said}", evidence.0.display(), output.status);
        // It ended by itself: neither by a signal nor by the time limit.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{why}");
        assert!(!said.contains("panicked"), "{why}");
        assert!(!said.bytes().any(|byte| byte.is_ascii_control() && byte != b'\n'), "{why}");
        succeeded += u64::from(output.status.success());
        assert!(output.status.success() || !(said.is_empty() && output.stdout.is_empty()), "{why}");
        round += 1;
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 0, "temporary files");
    println!("{round} components given to the tool, {succeeded} of them accepted");
}
