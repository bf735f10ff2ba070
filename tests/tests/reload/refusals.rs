//! What cannot replace a running version is refused in one line, and the running version serves on.

use rbdkit_tests::{Server, TempDir};

use super::guest::Guest;
use super::versions::{State, filter, text, version_of};
use super::{BLOCK, description, reload, replace, seen, serve};

/// A component that does not fit, and what the line about it contains.
struct Refused {
    component: Vec<u8>,
    why: &'static str,
}

fn refused(guest: &Guest, why: &'static str) -> Refused {
    Refused { component: version_of(&guest.component(BLOCK), 2), why }
}

/// The candidates for a filter `f` that is stateless.
fn candidates() -> Vec<Refused> {
    let good = filter("f", State::Stateless);
    let whole = good.component(BLOCK);
    vec![
        refused(&filter("g", State::Stateless), "it is the filter g, and f is running"),
        refused(
            &Guest { describe: "(i32.store (i32.const 1060) (i32.const 7)) (i32.const 1024)", ..good.clone() },
            "its state-version is 7, and that of the running version is 0: the server has to be started again",
        ),
        refused(
            &Guest { model: 2, ..good.clone() },
            "its thread model is serialize_requests, and that of the running version is parallel",
        ),
        refused(
            &Guest {
                body: format!("(import \"other\" \"f\" (func $other))\n{}", good.body),
                world: "import other: interface { f: func(); }",
                ..good.clone()
            },
            "it imports \"other\", and filters get nothing but rbdkit:filter@0.1",
        ),
        refused(&Guest { configure: "(unreachable)", ..good.clone() }, "configure: "),
        refused(&Guest { describe: "(loop $for_ever (br $for_ever)) (unreachable)", ..good.clone() }, "describe: "),
        Refused { component: whole[..whole.len() / 2].to_vec(), why: "it cannot be compiled: " },
        Refused { component: b"no component".to_vec(), why: "it is not a WebAssembly component" },
        Refused { component: Vec::new(), why: "it is not a WebAssembly component" },
    ]
}

/// Reloads, and checks the line and that version 1 serves on.
fn is_refused(server: &Server, client: &mut rbdkit_tests::Client, why: &str) {
    let lines = reload(server, 1);
    assert!(lines[0].contains("warning: reload: ") && lines[0].contains(why), "expected {why:?}: {lines:?}");
    assert!(lines[0].contains("; version ") && lines[0].ends_with(" serves on"), "{lines:?}");
    assert_eq!((seen(client, BLOCK), description(server)), (text(1), text(1)), "{why}");
}

#[test]
fn what_does_not_fit_is_refused_in_a_line_and_the_running_version_serves_on() {
    let (dir, component) = (TempDir::new(), filter("f", State::Stateless).component(BLOCK));
    let (server, file) = (serve(&dir, &component), dir.join("f.wasm"));
    let mut client = server.client();
    for Refused { component, why } in candidates() {
        replace(&file, &component);
        is_refused(&server, &mut client, why);
    }
    std::fs::remove_file(&file).expect("the file is removed");
    is_refused(&server, &mut client, "f.wasm: No such file or directory");
    std::fs::create_dir(&file).expect("a directory");
    is_refused(&server, &mut client, "f.wasm: is a directory");
    std::fs::remove_dir(&file).expect("the directory is removed");
    // After all that, a good version is taken.
    std::fs::write(&file, version_of(&component, 2)).expect("a file for the test");
    let lines = reload(&server, 1);
    assert!(lines[0].ends_with(": connections: 1 moved, 0 stay with the old version"), "{lines:?}");
    assert_eq!((seen(&mut client, BLOCK), description(&server)), (text(2), text(2)));
    client.disconnect();
    assert!(server.stop().status.success());
}

#[test]
fn a_file_with_a_digest_on_the_command_line_takes_no_other_version() {
    let (dir, component) = (TempDir::new(), filter("f", State::Stateless).component(BLOCK));
    let first = version_of(&component, 1);
    let file = dir.file("f.wasm", &first);
    let digest = rbdkit_tests::tool("sha256sum", [&file]).ok();
    let named = format!("{}@sha256:{}", file.display(), digest.split(' ').next().expect("a digest"));
    let server = rbdkit_tests::Launch::new(["--reload", "--wasm-filter", &named, "memory", "1M"]).start();
    let mut client = server.client();
    replace(&file, &version_of(&component, 2));
    is_refused(&server, &mut client, " is not the file that was named: its SHA-256 digest is ");
}
