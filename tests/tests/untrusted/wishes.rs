//! Components that wish for more than there is, for limits that there are not, or without end.

use rbdkit_tests::{Launch, TempDir};

use crate::guest::Guest;

/// A guest that wishes for these limits. Its reads at the trigger run `code` first.
fn wishing(wishes: &[(&str, u64)], imports: &str, code: &str) -> Guest {
    let (mut names, mut entries) = (String::new(), String::new());
    for (nth, (name, value)) in wishes.iter().enumerate() {
        let (entry, at) = (2200 + 16 * nth, 3000 + names.len());
        entries += &format!(
            "(i32.store (i32.const {entry}) (i32.const {at})) (i32.store (i32.const {}) (i32.const {}))
             (i64.store (i32.const {}) (i64.const {}))\n",
            entry + 4,
            name.len(),
            entry + 8,
            *value as i64
        );
        names += name;
    }
    let count = wishes.len();
    let limits = format!(
        r#"(data (i32.const 3000) "{names}")
        {entries} (i32.store (i32.const 2192) (i32.const 2200)) (i32.store (i32.const 2196) (i32.const {count}))
        (i32.const 2192)"#
    );
    let (data, limits) = limits.split_once('\n').expect("two lines");
    telling(Guest::reads("wants", &format!("{imports}\n{data}"), code), limits)
}

/// Adds the export `limits` with this body.
fn telling(guest: Guest, limits: &str) -> Guest {
    let function = format!(r#"(func (export "rbdkit:filter/wishes@0.1.0#limits") (result i32) {limits})"#);
    Guest { exports: vec!["reads", "wishes"], body: format!("{}\n{function}\n", guest.body), ..guest }
}

/// What the program says of a component that it refuses, without the directory.
fn refused(guest: &Guest) -> String {
    let dir = TempDir::new();
    let file = dir.file("x.wasm", &guest.component(0));
    let launch = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]);
    let outcome = launch.try_start().err().expect("it is refused");
    assert_eq!((outcome.status.code(), outcome.stderr.lines().count()), (Some(1), 1), "{}", outcome.stderr);
    outcome.stderr.replace(&dir.path().display().to_string(), "")
}

#[test]
fn a_wish_for_everything_gets_what_there_is_and_the_operator_is_told() {
    // More than the memory that one filter may get cannot be had, whatever was wished for.
    let code = "(if (i32.ne (memory.grow (i32.const 16384)) (i32.const -1)) (then (unreachable)))";
    let everything = ["memory", "buffers", "scratch", "setup", "waits"].map(|name| (name, u64::MAX));
    let dir = TempDir::new();
    let file = dir.file("x.wasm", &wishing(&everything, "", code).component(0));
    let launch = |options: &[&str]| {
        let server = Launch::new(["--wasm-filter"]).arg(&file).args(options).args(["memory", "1M"]).start();
        assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
        server.stop().stderr
    };
    let log = launch(&["--filter-limit", "memory-all=256M"]);
    for line in [
        "wants: it asks for memory=18446744073709551615 and gets 128M",
        "wants: it asks for buffers=18446744073709551615 and gets 1G",
        "wants: it asks for scratch=18446744073709551615 and gets 64G",
        "wants: it asks for setup=18446744073.709551615s and gets 600s",
        "wants: it asks for waits=18446744073709551615 and gets 16777216",
    ] {
        assert_eq!(log.lines().filter(|said| said.contains(line)).count(), 1, "{line}\n{log}");
    }
    // What the operator has set is his.
    let set = ["memory=1M", "buffers=1M", "scratch=1M", "setup=1s", "waits=9"];
    let set: Vec<&str> = set.iter().flat_map(|limit| ["--filter-limit", limit]).collect();
    assert_eq!(launch(&set), "");
}

#[test]
fn wishes_that_cannot_be_are_refused_in_one_line() {
    let line = |wishes: &[(&str, u64)]| refused(&wishing(wishes, "", ""));
    let there_are = "there are memory, buffers, scratch, setup, waits";
    assert_eq!(line(&[("cpu", 1)]), format!("rbdkit: error: /x.wasm: it asks for a limit \"cpu\": {there_are}\n"));
    assert_eq!(line(&[("", 1)]), format!("rbdkit: error: /x.wasm: it asks for a limit \"\": {there_are}\n"));
    let twice = [("waits", 1), ("waits", u64::MAX)];
    assert_eq!(line(&twice), "rbdkit: error: /x.wasm: it asks for the limit waits twice\n");
    let outside = "(i32.store (i32.const 2192) (i32.const 2200)) (i32.store (i32.const 2196) (i32.const -1)) \
                   (i32.const 2192)";
    let said = refused(&telling(Guest::reads("wants", "", ""), outside));
    assert!(said.starts_with("rbdkit: error: /x.wasm: limits: ") && said.contains("out of bounds"), "{said}");
    let said = refused(&telling(Guest::reads("wants", "", ""), "(unreachable)"));
    assert!(said.starts_with("rbdkit: error: /x.wasm: limits: ") && said.contains("unreachable"), "{said}");
    let said = refused(&telling(Guest::reads("wants", "", ""), "(loop $l (br $l)) (unreachable)"));
    let said = said.replace("it computed for longer than", "it took longer than");
    assert_eq!(said, "rbdkit: error: /x.wasm: limits: it took longer than 5s\n");
}
