//! What is called and answered is what Debian's nbdkit calls and answers.

use std::path::PathBuf;

use rbdkit_tests::{Launch, nbdsh, tool};

use super::compiled::Testing;

/// Everything that a client of libnbd can ask for. Prints what each request answers.
const SCRIPT: &str = "
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(uri)
def data(offset): return bytes(h.pread(4096, offset))[:2]
def extents():
    found = []
    h.block_status(1 << 20, 0, lambda context, offset, list, error: found.extend(list))
    return found
for flag in ['is_read_only', 'can_flush', 'is_rotational', 'can_trim', 'can_zero', 'can_fast_zero', 'can_fua',
             'can_multi_conn', 'can_cache']:
    print(flag, getattr(h, flag)())
print(h.get_size(), [h.get_block_size(kind) for kind in range(3)])
print(data(0), data(1048576 - 4096))
h.pwrite(b'x' * 4096, 8192, nbd.CMD_FLAG_FUA if h.can_fua() else 0)
h.pwrite(b'y' * 4096, 16384)
h.flush()
print(data(8192), data(16384))
h.trim(4096, 4096, nbd.CMD_FLAG_FUA if h.can_fua() else 0)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
print(fails(lambda: h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO)))
h.zero(4096, 12288)
print(data(8192), data(16384))
if h.can_cache(): h.cache(4096, 0)
if h.can_meta_context('base:allocation'):
    print(extents())
    h.block_status(512, 0, lambda *all: 0, nbd.CMD_FLAG_REQ_ONE)
print(fails(lambda: h.pread(512, 65536)))
h.shutdown()
";

/// What is asked about an export when all else is known.
const LAST_QUESTIONS: [&str; 2] = ["block_size", "export_description"];

/// The calls and the client's output for each server.
fn both(definitions: &[&str], parameters: &[&str], client: impl Fn(&str) -> String) {
    let run = |program: Option<&str>| {
        let testing = Testing::new(definitions);
        let launch = testing.launch(parameters);
        let launch = program.iter().fold(launch, |launch: Launch, program| launch.program(PathBuf::from(program)));
        let server = launch.start();
        let said = client(&server.uri()).replace(&server.socket().display().to_string(), "SOCKET");
        // nbdkit closes a connection after the client has gone.
        let opened = testing.calls().iter().filter(|call| call.starts_with("open ")).count();
        server.wait_until("every connection is closed", |_| testing.count("close") == opened);
        server.stop();
        // Which of both comes first is the server's choice.
        let mut calls = testing.calls();
        let pairs =
            calls.chunk_by_mut(|one, other| [one, other].iter().all(|call| LAST_QUESTIONS.contains(&call.as_str())));
        pairs.for_each(<[String]>::sort);
        (calls, said)
    };
    let (theirs, their_answers) = run(Some("nbdkit"));
    let (ours, our_answers) = run(None);
    assert_eq!(our_answers, their_answers);
    assert_eq!(ours, theirs, "{definitions:?} {parameters:?}");
    assert!(ours.len() > 15, "{ours:?}");
}

fn script(uri: &str) -> String {
    nbdsh(uri, SCRIPT).ok()
}

#[test]
fn the_same_functions_are_called_in_the_same_order_as_by_nbdkit() {
    for version in ["-DNBDKIT_API_VERSION=1", "-DNBDKIT_API_VERSION=2"] {
        both(&[version], &[], script);
        both(&[version, "-DFEW"], &[], script);
    }
}

#[test]
fn a_list_of_exports_takes_the_same_calls_and_gives_the_same_answers() {
    both(&[], &[], |uri| tool("nbdinfo", ["--list", uri]).ok());
}

#[test]
fn errors_reach_the_client_with_the_errno_that_nbdkit_sends() {
    for parameter in ["fail=pread", "lie=errno", "lie=no-zero", "fail=flush"] {
        let probe = |uri: &str| {
            let script = "
h = nbd.NBD()
h.connect_uri(uri)
print(fails(lambda: h.pread(512, 65536)), fails(lambda: h.flush()), fails(lambda: h.zero(4096, 0)))
h.shutdown()
";
            nbdsh(uri, script).ok()
        };
        both(&[], &[parameter], probe);
    }
}

#[test]
fn dump_plugin_prints_what_nbdkit_prints() {
    for definitions in [&["-DNBDKIT_API_VERSION=1", "-DMAGIC"][..], &["-DFEW", "-DTHREAD_MODEL=1"], &[]] {
        let testing = Testing::new(definitions);
        let library = testing.library.display().to_string();
        let arguments = [library.as_str(), "--dump-plugin", "-D", "testing.flag=5"];
        let ours = tool(&rbdkit_tests::server::program().display().to_string(), arguments).ok();
        let theirs = tool("nbdkit", arguments).ok();
        assert_eq!(ours, theirs);
        assert!(ours.contains("testing_key=value 5\n"), "{ours}");
    }
}
