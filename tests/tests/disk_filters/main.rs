//! Filters that change what a client is told of a disk, where its data lies, and what may be
//! written: with real clients, and beside nbdkit's filters of the same name.

mod capabilities;
mod evil;
mod layout;
mod noparallel;
mod protection;

use std::path::PathBuf;

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, TempDir, nbdsh};

/// What an nbdsh script prints over a disk of scripts, followed by the requests that reached the
/// disk: the operation, offset, length and flags. `program` is another one than the program under
/// test.
fn observe(program: Option<&str>, arguments: &[&str], script: &str) -> String {
    let dir = TempDir::new();
    let (disk, asked) = (dir.sparse_file("disk", 1 << 20), dir.join("asked"));
    let (disk, asked) = (disk.display(), asked.display());
    let note = |operation: &str, count: &str, offset: &str, flags: &str| {
        format!("{operation}=echo {operation} ${offset} ${count} ${flags} >>{asked}")
    };
    let launch = Launch::new(["-v"])
        .args(arguments.iter().filter(|argument| argument.starts_with("--")))
        .args(["eval", "get_size=echo 1048576"])
        .args(["can_write=exit 0", "can_zero=exit 0", "can_trim=exit 0", "can_extents=exit 0", "can_flush=exit 0"])
        .args(["can_fua=echo native", "can_cache=echo native", "can_fast_zero=exit 0"])
        .arg(note("pread", "3", "4", "5") + &format!("; dd if={disk} bs=1 skip=$4 count=$3 status=none"))
        .arg(note("pwrite", "3", "4", "5") + &format!("; dd of={disk} bs=1 seek=$4 conv=notrunc status=none"))
        .arg(note("zero", "3", "4", "5") + &format!("; dd if=/dev/zero of={disk} bs=1 seek=$4 count=$3 conv=notrunc"))
        .arg(note("trim", "3", "4", "5"))
        .arg(format!("flush=echo flush >>{asked}"))
        .arg(note("cache", "3", "4", "5"))
        .arg("extents=echo 0 4096; echo 4096 1044480 hole,zero")
        .args(arguments.iter().filter(|argument| !argument.starts_with("--")));
    let launch = match program {
        Some(program) => launch.program(PathBuf::from(program)),
        None => launch,
    };
    let server = launch.start();
    let printed = nbdsh(&server.uri(), &format!("{PRELUDE}\n{script}")).ok();
    let asked = std::fs::read_to_string(dir.join("asked")).unwrap_or_default();
    let asked: Vec<&str> = asked.lines().map(str::trim_end).collect();
    format!("{printed}{}", asked.join("\n"))
}

/// `can()` says what is offered, and `what(call)` how a call ends.
const PRELUDE: &str = "
h.add_meta_context('base:allocation')
h.connect_uri(uri)
def what(name, *arguments):
    print(name, *arguments[1:], fails(lambda: getattr(h, name)(*arguments)))
def can():
    print(*[word for word in 'cache fast_zero flush fua multi_conn trim zero'.split() if getattr(h, 'can_' + word)()])
    print('read-only' if h.is_read_only() else 'writable', 'rotational' if h.is_rotational() else '', h.get_size())
def walk():
    entries, at = [], 0
    def note(context, offset, list, error):
        for length, kind in zip(list[::2], list[1::2]):
            if entries and entries[-1][1] == kind:
                entries[-1][0] += length
            else:
                entries.append([length, kind])
    while at < h.get_size():
        h.block_status(h.get_size() - at, at, note)
        at = sum(entry[0] for entry in entries)
    print(entries)
FUA, FAST, NO_HOLE = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_NO_HOLE
";

/// What the program under test does, which nbdkit 1.32 does as well.
fn same_as_nbdkit(arguments: &[&str], script: &str) -> String {
    let ours = observe(None, arguments, script);
    if !is_nbdkit() {
        let theirs = observe(Some("nbdkit"), arguments, script);
        assert_eq!(ours, theirs, "{arguments:?}: ours is on the left, nbdkit's on the right");
    }
    ours
}

/// The error of a server that does not start.
fn refused(arguments: &[&str]) -> String {
    let outcome = Launch::new(arguments).try_start().err().expect("the server starts");
    outcome.stderr
}
