//! Disks that are computed: random, sparse-random, full, ones, zero and info.

use rbdkit_tests::{Server, nbdsh, tool};

use crate::{abilities, copy, export, nbdkit};

#[test]
fn random_disks_of_a_seed_are_nbdkits() {
    for arguments in [
        &["random", "300001", "seed=42"][..],
        &["random", "4096", "seed=0xffffffff"],
        &["sparse-random", "50M", "seed=42", "runlength=262144"],
        &["sparse-random", "5000001", "seed=7", "percent=50", "runlength=8192", "random-content=true"],
        &["sparse-random", "1M", "seed=1", "percent=100"],
        &["sparse-random", "1M", "percent=0"],
    ] {
        let (ours, theirs) = (copy(&Server::start(arguments)), copy(&nbdkit(arguments).start()));
        assert_eq!(ours.len(), theirs.len(), "{arguments:?}");
        let difference = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(difference, None, "{arguments:?}: the first byte that differs");
    }
}

#[test]
fn clients_can_do_what_nbdkit_offers() {
    for arguments in [&["random", "1M"][..], &["sparse-random", "1M"], &["full", "1M"], &["zero"], &["info"]] {
        assert_eq!(abilities(&Server::start(arguments)), abilities(&nbdkit(arguments).start()), "{arguments:?}");
    }
}

#[test]
fn a_copy_of_a_disk_onto_itself_is_checked() {
    for plugin in ["random", "sparse-random"] {
        let server = Server::start([plugin, "3M", "seed=5"]);
        tool("nbdcopy", [server.uri(), server.uri()]).ok();
        let script = "
h = nbd.NBD()
h.connect_uri(uri)
right = h.pread(5000, 1000)
h.pwrite(right, 1000)
wrong = bytearray(right)
wrong[4999] ^= 1
print(fails(lambda: h.pwrite(wrong, 1000)))
";
        assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO\n", "{plugin}");
    }
    // Only holes of a sparse disk can be zeroed.
    let server = Server::start(["sparse-random", "8M", "seed=3", "percent=50", "runlength=65536"]);
    let script = "
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(uri)
extents = []
def see(context, offset, entries, error):
    global extents
    extents = entries
h.block_status(8 << 20, 0, see)
offset, right = 0, True
for length, flags in zip(extents[::2], extents[1::2]):
    for call in (h.zero, h.trim):
        expected = 'success' if flags == 3 else 'EIO'
        right = right and fails(lambda: call(length, offset)) == expected
    offset += length
print(len(extents) > 20, right)
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "True True\n");
}

#[test]
fn on_a_full_disk_there_is_no_space() {
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
print(h.pread(16, 0) == bytes(16))
print(fails(lambda: h.pwrite(bytes(512), 0)), fails(lambda: h.zero(512, 0)), fails(lambda: h.trim(512, 0)))
print(fails(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)))
";
    let ours = nbdsh(&Server::start(["full", "1M"]).uri(), script).ok();
    assert_eq!(ours, "True\nENOSPC ENOSPC ENOSPC\nENOTSUP\n");
    assert_eq!(nbdsh(&nbdkit(&["full", "1M"]).start().uri(), script).ok(), ours);
}

#[test]
fn a_disk_of_ones_keeps_nothing() {
    let server = Server::start(["ones", "1M", "byte=0x55"]);
    let script = "
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(uri)
h.pwrite(b'hello', 5)
h.zero(4096, 0)
h.trim(4096, 0)
h.flush()
print(h.get_size(), h.pread(4096, 3) == b'U' * 4096)
h.block_status(1 << 20, 0, lambda context, offset, entries, error: print(entries))
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "1048576 True\n[1048576, 0]\n");
    assert_eq!(tool("nbdinfo", ["--size", &Server::start(["ones"]).uri()]).ok(), "0\n");
    assert_eq!(tool("nbdinfo", ["--size", &Server::start(["zero"]).uri()]).ok(), "0\n");
}

#[test]
fn info_tells_a_client_what_the_server_knows_of_it() {
    let told = |mode: &str, name: &str| {
        let server = Server::start(["info", mode]);
        let script = "
h = nbd.NBD()
h.connect_uri(uri)
size = h.get_size()
print(bytes(h.pread(size, 0)) if size else b'')
";
        nbdsh(&export(&server, name), script).ok()
    };
    assert_eq!(told("exportname", "hello"), "b'hello'\n");
    assert_eq!(told("exportname", ""), "b''\n");
    assert_eq!(told("mode=base64exportname", "aGVsbG8A"), "b'hello\\x00'\n");
    assert_eq!(told("address", "x"), "b'unix'\n");
    assert!(told("version", "").starts_with("b'0."));

    let times = |mode: &str| {
        let server = Server::start(["info", mode]);
        let script = "
import struct, time
def told(h):
    seconds, micros = struct.unpack('>QI', h.pread(12, 0))
    assert micros < 1000000
    return seconds + micros / 1000000
h = nbd.NBD()
h.connect_uri(uri)
assert h.get_size() == 12
before, first, second, after = time.time(), told(h), told(h), time.time()
print(first <= second, before - 1 <= first <= after + 1)
";
        nbdsh(&server.uri(), script).ok()
    };
    assert_eq!(times("time"), "True True\n");
    assert_eq!(times("uptime"), "True False\n");
    assert_eq!(times("conntime"), "True False\n");
}

#[test]
fn an_export_name_that_is_not_base64_is_refused() {
    let server = Server::start(["info", "base64exportname"]);
    tool("nbdinfo", [export(&server, "not*base64")]).fails();
    server.wait_for_log("the export name is not base64");
}
