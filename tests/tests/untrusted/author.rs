//! What the author of a component chooses and an operator sees: its name, its texts, and how many
//! filters stand in a chain.

use std::process::Command;

use rbdkit_tests::{Launch, TempDir, wait};

use crate::guest::Guest;

#[test]
fn a_file_that_calls_itself_like_a_built_in_filter_is_named_in_the_log() {
    let dir = TempDir::new();
    let reads =
        r#"(func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    for (name, warned) in [("cow", true), ("mine", false)] {
        let component = Guest::new(name, &["reads"], reads).component(0);
        let file = dir.file(&format!("{name}.wasm"), &component);
        let server = Launch::new(["--wasm-filter"]).arg(&file).args(["memory", "1M"]).start();
        let summed = String::from_utf8(wait::output(Command::new("sha256sum").arg(&file)).stdout).expect("a digest");
        let digest = summed.split(' ').next().expect("a digest");
        let line = format!(
            "rbdkit: warning: filter '{}' (sha256:{digest}) calls itself {name}, and is not the built-in filter of \
             that name",
            file.display()
        );
        let log = server.stop().stderr;
        assert_eq!(log.lines().any(|said| said == line), warned, "{log}");
    }
}

#[test]
fn a_built_in_filter_from_a_file_is_no_stranger() {
    let server = Launch::new(["--wasm-filter"]).arg(rbdkit_tests::server::filter("cow")).args(["memory", "1M"]).start();
    assert_eq!(server.stop().stderr, "");
}

#[test]
fn a_chain_has_at_most_128_filters() {
    let filters = |count: usize| Launch::new(vec!["--filter=nofilter"; count]).args(["memory", "1M"]);
    let outcome = filters(129).try_start().err().expect("it is refused");
    assert_eq!(outcome.stderr, "rbdkit: error: 129 filters are given (at most 128)\n");
    let mut server = filters(128).start();
    for _ in 0..3 {
        let mut client = server.client();
        client.write(0, b"through them all").expect("a write");
        assert_eq!(client.read(0, 16).expect("a read"), b"through them all");
        client.disconnect();
    }
    server.client().flush().expect("a flush");
    assert!(server.is_alive());
    assert_eq!(server.stop().stderr, "");
}
