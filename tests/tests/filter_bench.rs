//! `rbdkit-filter bench`: its table, its JSON, comparisons and profiles.

#[path = "untrusted/guest.rs"]
#[allow(dead_code, reason = "the tests of untrusted components use the rest")]
mod guest;

use std::process::{Command, Output};
use std::time::Duration;

use guest::Guest;
use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{TempDir, wait};
use serde_json::{Value, json};

/// How long the tool may take, on a machine that is busy: it compiles the filter.
const LIMIT: Duration = Duration::from_secs(300);

/// A run that is as short as it can be. Its times mean little, and no test looks at them.
fn bench(arguments: &[&str]) -> Output {
    let tool = program().with_file_name("rbdkit-filter");
    wait::output_within(LIMIT, Command::new(tool).arg("bench").args(arguments).args(["--time", "300ms", "size=4M"]))
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn every_workload_is_measured_for_people_and_for_programs() {
    let cow = filter("cow");
    let cow = cow.to_str().unwrap();
    let shown = text(&bench(&[cow]));
    has(
        &shown,
        &[
            "cow 0.1.0: ",
            "read 4 KiB         1 ",
            "write 1 MiB       32 ",
            "memory of an instance: ",
            "cold start: compile ",
        ],
    );
    let value: Value = serde_json::from_str(&text(&bench(&[cow, "--json"]))).unwrap();
    let workloads = value["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 12);
    for workload in workloads {
        for number in ["p50", "p99", "throughput", "instructions", "host-calls", "requests"] {
            assert!(workload[number].as_f64().unwrap() > 0.0, "{number}: {workload}");
        }
        assert_eq!((&workload["refused"], &workload["failed"]), (&json!(false), &json!(0)));
        for contender in ["filter", "nofilter", "none"] {
            // There are fewer on a machine that is very busy.
            assert!((1..=5).contains(&workload["rounds"][contender].as_array().unwrap().len()), "{workload}");
        }
        assert!(workload["p50"].as_f64() <= workload["p99"].as_f64(), "{workload}");
    }
    // A write of a part of a block reads the rest: that takes more than a read.
    assert!(workloads[6]["instructions"].as_u64() > workloads[0]["instructions"].as_u64());
    assert!(value["memory"].as_u64().unwrap() >= 65536);
    for time in ["compile", "load", "configure", "first-read"] {
        assert!(value["cold-start"][time].as_f64().unwrap() > 0.0, "{time}");
    }
}

#[test]
fn a_filter_that_refuses_writes_or_fails_is_shown_so() {
    let dir = TempDir::new();
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/features@0.1.0#can") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
        (i32.const 3000))"#;
    // A success, and capabilities of which none is given.
    let body = format!("{body}\n(data (i32.const 3000) \"\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\")");
    let file = dir.file("reads.wasm", &Guest::new("reads", &["reads", "features"], &body).component(0));
    let shown = text(&bench(&[file.to_str().unwrap()]));
    has(&shown, &["write 4 KiB        1 refused: the filter takes no writes"]);
    let body = "(data (i32.const 3000) \"\\01\\02\")
    (func (export \"rbdkit:filter/reads@0.1.0#pread\") (param i64 i32 i32) (result i32) (i32.const 3000))";
    let both = format!(
        "{body} (func (export \"rbdkit:filter/writes@0.1.0#pwrite\") (param i64 i32 i32) (result i32) (i32.const 3000))"
    );
    let file = dir.file("fails.wasm", &Guest::new("fails", &["reads", "writes"], &both).component(0));
    let output = bench(&[file.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "rbdkit-filter: error: every request fails: EIO\n");
    // Only the longest reads fail.
    let body = body.replace(
        "(i32.const 3000))",
        "(select (i32.const 3000) (i32.const 1200) (i32.eq (local.get 1) (i32.const 1048576))))",
    );
    let file = dir.file("fails.wasm", &Guest::new("fails", &["reads"], &body).component(0));
    let shown = text(&bench(&[file.to_str().unwrap()]));
    has(&shown, &["read 64 KiB       32 ", "read 1 MiB         1 all ", " requests failed: EIO\n"]);
    assert!(!shown.contains("read 64 KiB       32 all"), "{shown}");
}

#[test]
fn a_comparison_has_a_verdict_and_a_status() {
    let nofilter = filter("nofilter");
    let nofilter = nofilter.to_str().unwrap();
    let dir = TempDir::new();
    let json = text(&bench(&[nofilter, "--json"]));
    let mut old: Value = serde_json::from_str(&json).unwrap();
    // The earlier run was a thousand times as fast, or as slow.
    for (factor, verdict, code) in [(0.001, "slower", 1), (1000.0, "faster", 0)] {
        for workload in old["workloads"].as_array_mut().unwrap() {
            let none: Vec<f64> =
                workload["rounds"]["none"].as_array().unwrap().iter().map(|time| time.as_f64().unwrap()).collect();
            workload["rounds"]["filter"] = none.iter().map(|time| time * factor).collect();
        }
        let file = dir.file("old.json", old.to_string().as_bytes());
        let file = file.to_str().unwrap();
        let output = bench(&[nofilter, "--compare", file, "--fail-if-slower"]);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        has(&String::from_utf8_lossy(&output.stdout), &[&format!("verdict: {verdict}\n")]);
        let output = bench(&[nofilter, "--compare", file, "--json"]);
        let value: Value = serde_json::from_str(&text(&output)).unwrap();
        assert_eq!(value["comparison"]["verdict"], verdict);
        assert_eq!(value["comparison"]["workloads"].as_array().unwrap().len(), 12);
    }
    for wrong in ["{}", "", "[1", "{\"format\": 9}"] {
        let file = dir.file("wrong.json", wrong.as_bytes());
        let output = bench(&[nofilter, "--compare", file.to_str().unwrap()]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        has(&errors, &["wrong.json: is not a result of rbdkit-filter bench --json\n"]);
        assert_eq!((errors.lines().count(), output.status.code()), (1, Some(1)));
    }
}

/// Each name of a function with its samples and with its time in microseconds, as Speedscope 1.25
/// counts it: a sample counts until the next one, and the last one not at all. (Its import code and
/// that of Firefox's profiler were run on such a file: both show these names and times.)
fn weights(profile: &Value) -> Vec<(String, u64, u64)> {
    let list = |name: &str| profile[name].as_array().unwrap().clone();
    let (nodes, taken, deltas) = (list("nodes"), list("samples"), list("timeDeltas"));
    let times: Vec<u64> = deltas.iter().skip(1).map(|delta| delta.as_u64().unwrap()).chain([0]).collect();
    let of = |node: &Value| {
        let mine = || taken.iter().zip(&times).filter(|(sample, _)| **sample == node["id"]);
        let name = node["callFrame"]["functionName"].as_str().unwrap().to_string();
        (name, mine().count() as u64, mine().map(|(_, time)| time).sum())
    };
    nodes.iter().map(of).collect()
}

#[test]
fn a_profile_names_the_functions_in_which_the_guest_spends_its_time() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func $checksum (param $n i32)
        (loop $more (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $more (local.get $n))))
    (func $read (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $checksum (i32.const 20000000))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let dir = TempDir::new();
    let file = dir.file("sums.wasm", &Guest::new("sums", &["reads"], body).component(0));
    let out = dir.join("profile.json");
    let shown = text(&bench(&[file.to_str().unwrap(), "--profile", out.to_str().unwrap()]));
    has(&shown, &["profile.json (open it at https://www.speedscope.app or https://profiler.firefox.com)"]);
    let profile: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    let nodes = profile["nodes"].as_array().unwrap();
    let (taken, deltas) = (profile["samples"].as_array().unwrap(), profile["timeDeltas"].as_array().unwrap());
    assert!(!taken.is_empty() && taken.len() == deltas.len());
    let number = |name: &str| profile[name].as_u64().unwrap();
    let whole: u64 = deltas.iter().map(|delta| delta.as_u64().unwrap()).sum();
    assert_eq!(number("endTime") - number("startTime"), whole);
    // The importers know a profile of V8 by its keys.
    let mut keys: Vec<&String> = profile.as_object().unwrap().keys().collect();
    keys.sort_unstable();
    assert_eq!(keys, ["endTime", "nodes", "samples", "startTime", "timeDeltas"]);
    // Firefox reads nodes in their order, and needs a caller before those that it calls.
    for (at, node) in nodes.iter().enumerate() {
        assert_eq!(node["id"].as_u64(), Some(at as u64 + 1));
        assert!(node["children"].as_array().unwrap().iter().all(|child| child.as_u64() > node["id"].as_u64()));
        let frame = &node["callFrame"];
        assert!(frame["functionName"].is_string() && frame["url"].is_string() && frame["scriptId"].is_string());
        assert!(frame["lineNumber"].is_i64() && frame["columnNumber"].is_i64());
    }
    // Every node but the root is the child of one other.
    let children: Vec<u64> = nodes
        .iter()
        .flat_map(|node| node["children"].as_array().unwrap())
        .map(|child| child.as_u64().unwrap())
        .collect();
    let mut ids: Vec<u64> = nodes.iter().map(|node| node["id"].as_u64().unwrap()).filter(|id| *id != 1).collect();
    let mut sorted = children.clone();
    sorted.sort_unstable();
    ids.sort_unstable();
    assert_eq!(sorted, ids);
    let all = weights(&profile);
    let of = |name: &str| all.iter().find(|(known, ..)| known == name).cloned().unwrap_or_default();
    let guest = || all.iter().filter(|(name, ..)| !["(root)", "(idle)"].contains(&name.as_str()));
    let (count, time) = guest().fold((0, 0), |(count, time), one| (count + one.1, time + one.2));
    // 20 million rounds take longer than the millisecond between two samples.
    assert!(of("checksum").1 * 10 > count * 9, "{all:?}");
    assert!(of("checksum").2 * 10 > time * 9, "{all:?}");
    // The time in which no guest was sampled counts for no function: two intervals at most.
    assert!(time <= count * 2000 && time > 0, "{all:?}");
    assert_eq!(taken.last().unwrap(), &json!(2), "{all:?}");
    assert_eq!((of("(idle)").0.as_str(), of("(root)").1), ("(idle)", 0));
}
