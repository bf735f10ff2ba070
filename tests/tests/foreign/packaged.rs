//! The plugins of Debian's packages.

use std::path::{Path, PathBuf};

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

use super::compiled::plugin_file;

fn copy(server: &Server, into: &Path) -> Vec<u8> {
    tool("nbdcopy", [server.uri().as_str(), &into.display().to_string()]).ok();
    std::fs::read(into).expect("a copy")
}

#[test]
fn the_disks_of_debians_plugins_are_those_that_nbdkit_serves() {
    let dir = TempDir::new();
    let image = dir.file("image", &(0..300_000_u32).flat_map(u32::to_ne_bytes).collect::<Vec<u8>>());
    std::fs::create_dir(dir.join("files")).expect("a directory");
    std::fs::write(dir.join("files/hello.txt"), "hello").expect("a file");
    let (image, files) = (image.display().to_string(), dir.join("files").display().to_string());
    let cases: [(&str, &[&str]); 9] = [
        ("memory", &["3M"]),
        ("file", &[&image]),
        ("pattern", &["5M"]),
        ("data", &["size=1M", "data=1 2 3 @0x10000 (65 66)*100"]),
        ("random", &["size=1M", "seed=7"]),
        ("sparse-random", &["size=4M", "seed=7"]),
        ("partitioning", &[&image, "partition-type=mbr"]),
        ("split", &[&image, &image]),
        ("floppy", &[&files]),
    ];
    for (name, parameters) in cases {
        let launch = || Launch::new([plugin_file(name)]).args(parameters);
        let ours = copy(&launch().start(), &dir.join("ours"));
        let theirs = copy(&launch().program(PathBuf::from("nbdkit")).start(), &dir.join("theirs"));
        // The time of the files is in the directory of the floppy.
        assert!(ours == theirs || name == "floppy" && ours.len() == theirs.len(), "{name}");
        assert!(!ours.is_empty(), "{name}");
    }
}

#[test]
fn requests_of_64_mib_pass_whole_and_zeroes_stay_zeroes() {
    let server = Launch::new([plugin_file("memory")]).arg("200M").start();
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
size = 64 << 20
data = bytes(range(256)) * (size // 256)
h.pwrite(data, 512)
assert h.pread(size, 512) == data
h.zero(100 << 20, 1 << 20)
assert h.pread(1 << 20, 0) == bytes(512) + data[:(1 << 20) - 512]
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
h.shutdown()
";
    nbdsh(&server.uri(), script).ok();
    // Requests that long give their memory back.
    let kept = server.resident();
    assert!(kept < 100 << 20, "{kept}");
    assert!(server.stop().status.success());
}

/// A disk in each language: its first byte says which, writes are kept, and a read at the end
/// fails.
#[test]
fn plugins_in_python_perl_lua_and_tcl_are_served() {
    let dir = TempDir::new();
    let scripts = [
        (
            "python",
            "import nbdkit, errno
API_VERSION = 2
disk = bytearray(b'p' * 1048576)
def open(readonly): return 1
def get_size(h): return 1048576
def pread(h, buf, offset, flags):
    if offset == 65536:
        nbdkit.set_error(errno.ENOSPC)
        raise Exception('an exception of Python')
    buf[:] = disk[offset:offset+len(buf)]
def pwrite(h, buf, offset, flags): disk[offset:offset+len(buf)] = buf
",
        ),
        (
            "perl",
            "my $disk = 'p' x 1048576;
sub open { return {}; }
sub get_size { return 1048576; }
sub can_write { return 1; }
sub pread { my ($h, $count, $offset, $flags) = @_; die 'an exception of Perl' if $offset == 65536;
  return substr ($disk, $offset, $count); }
sub pwrite { my ($h, $buf, $offset, $flags) = @_; substr ($disk, $offset, length $buf) = $buf; }
1;
",
        ),
        (
            "lua",
            "local disk = string.rep('p', 1048576)
function open(readonly) return 1 end
function get_size(h) return 1048576 end
function can_write(h) return true end
function pread(h, count, offset)
  if offset == 65536 then error('an exception of Lua') end
  return string.sub(disk, offset + 1, offset + count)
end
function pwrite(h, buf, offset)
  disk = string.sub(disk, 1, offset) .. buf .. string.sub(disk, offset + #buf + 1)
end
",
        ),
        (
            "tcl",
            "set disk [string repeat p 1048576]
proc plugin_open {readonly} { return 1 }
proc get_size {h} { return 1048576 }
proc can_write {h} { return 1 }
proc pread {h count offset} {
  global disk
  if {$offset == 65536} { error {an exception of Tcl} }
  return [string range $disk $offset [expr {$offset + $count - 1}]]
}
proc pwrite {h buf offset} {
  global disk
  set disk [string replace $disk $offset [expr {$offset + [string length $buf] - 1}] $buf]
}
",
        ),
    ];
    for (language, script) in scripts {
        let file = dir.file(language, script.as_bytes());
        let server = Launch::new([language]).arg(&file).start();
        let client = "
h = nbd.NBD()
h.connect_uri(uri)
assert h.get_size() == 1048576
assert h.pread(4096, 4096) == b'p' * 4096
h.pwrite(b'w' * 512, 4096)
assert h.pread(1024, 4096) == b'w' * 512 + b'p' * 512
print(fails(lambda: h.pread(512, 65536)))
assert h.pread(512, 0) == b'p' * 512
h.shutdown()
";
        let said = nbdsh(&server.uri(), client).ok();
        let expected = if language == "python" { "ENOSPC\n" } else { "EIO\n" };
        assert_eq!(said, expected, "{language}");
        server.wait_for_log("an exception of");
        assert!(server.stop().status.success(), "{language}");
    }
}

/// Debian's Ruby ends its process when it is called on a thread that it did not start, with nbdkit
/// too. The server goes on.
#[test]
fn a_plugin_in_ruby_is_loaded_and_its_crash_is_said() {
    let dir = TempDir::new();
    let script = "def open(readonly) 1 end\ndef get_size(h) 1 << 20 end\ndef pread(h, count, offset) 'r' * count end\n";
    let script = dir.file("disk.rb", script.as_bytes());
    let mut server = Launch::new(["ruby"]).arg(&script).start();
    let served = tool("nbdinfo", ["--size", &server.uri()]);
    if served.code != 0 {
        server.wait_for_log("ruby: the plugin's process was killed by signal");
    }
    assert!(server.is_alive());
    assert!(server.stop().status.success());
}

#[test]
fn a_filter_in_the_sandbox_stands_before_a_foreign_plugin() {
    let server = Launch::new(["--filter=cow".into(), plugin_file("memory")]).arg("1M").start();
    let script = "
for turn in range(2):
    h = nbd.NBD()
    h.connect_uri(uri)
    assert h.pread(512, 0) == (b'x' if turn else bytes(1)) * 512
    h.pwrite(b'x' * 512, 0)
    h.shutdown()
";
    nbdsh(&server.uri(), script).ok();
    assert!(server.stop().status.success());
}
