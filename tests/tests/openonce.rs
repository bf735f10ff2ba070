//! The filter openonce: what is opened below, and when it is closed.

use rbdkit_tests::{Client, Launch, Server, TempDir, nbdsh};

/// A plugin that writes each open and close into the file `log`, over a disk in a file.
fn logging(dir: &TempDir, model: &str, more: &[&str]) -> Server {
    let (disk, log) = (dir.sparse_file("disk", 1 << 20), dir.join("log"));
    let (disk, log) = (disk.display(), log.display());
    Launch::new(["--filter=openonce", "eval", "get_size=echo 1048576"])
        .arg(format!("thread_model=echo {model}"))
        .arg(format!("open=echo open $3 readonly=$2 >>{log}; echo $3"))
        .arg(format!("close=echo close >>{log}"))
        .arg(format!("pread=dd if={disk} bs=1 skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none"))
        .arg(format!("pwrite=dd of={disk} seek=$4 oflag=seek_bytes conv=notrunc status=none"))
        .args(["can_write=exit 0", "can_flush=exit 0", "can_multi_conn=exit 0"])
        .args(more)
        .start()
}

fn log(dir: &TempDir) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// Opens `count` connections at once, writes through each, and reads what all have written through
/// the first.
fn many(count: usize) -> String {
    format!(
        "import threading\n\
         hs = [nbd.NBD() for _ in range({count})]\n\
         ts = [threading.Thread(target=x.connect_uri, args=(uri,)) for x in hs]\n\
         [t.start() for t in ts]\n\
         [t.join() for t in ts]\n\
         [x.pwrite(bytes([i]) * 512, i * 512) for i, x in enumerate(hs)]\n\
         [x.flush() for x in hs]\n\
         assert hs[0].pread({count} * 512, 0) == b''.join(bytes([i]) * 512 for i in range({count}))\n\
         [x.shutdown() for x in hs]"
    )
}

#[test]
fn many_clients_open_the_plugin_once_and_the_end_of_the_server_closes_it() {
    let dir = TempDir::new();
    let server = logging(&dir, "parallel", &[]);
    for _ in 0..2 {
        nbdsh(&server.uri(), &many(20)).ok();
    }
    assert_eq!(log(&dir), ["open readonly=false"]);
    server.stop();
    assert_eq!(log(&dir), ["open readonly=false", "close"]);
}

#[test]
fn names_of_one_disk_share_it_and_names_that_are_listed_have_their_own() {
    let dir = TempDir::new();
    let list = "list_exports=echo NAMES; echo one; echo two";
    let server = logging(&dir, "parallel", &[list, "default_export=echo one"]);
    let script = "import urllib.parse\n\
                  def use(name):\n\
                  \x20   x = nbd.NBD()\n\
                  \x20   x.set_export_name(name)\n\
                  \x20   x.connect_unix(urllib.parse.parse_qs(urllib.parse.urlparse(uri).query)['socket'][0])\n\
                  \x20   x.pread(512, 0)\n\
                  \x20   x.shutdown()\n\
                  for name in ['', 'one', 'two', 'two', 'one', '']: use(name)";
    nbdsh(&server.uri(), script).ok();
    assert_eq!(log(&dir), ["open one readonly=false", "open two readonly=false"]);
    server.stop();
    assert_eq!(log(&dir).len(), 4);
}

#[test]
fn a_disk_that_nobody_uses_is_closed_when_the_plugin_serves_one_connection_at_a_time() {
    let dir = TempDir::new();
    let list = "list_exports=echo NAMES; echo one; echo two";
    let server = logging(&dir, "serialize_connections", &[list, "default_export=echo one"]);
    let script = "import urllib.parse\n\
                  path = urllib.parse.parse_qs(urllib.parse.urlparse(uri).query)['socket'][0]\n\
                  for name in ['one', 'one', 'two', 'one']:\n\
                  \x20   x = nbd.NBD()\n\
                  \x20   x.set_export_name(name)\n\
                  \x20   x.connect_unix(path)\n\
                  \x20   x.pread(512, 0)\n\
                  \x20   x.shutdown()";
    nbdsh(&server.uri(), script).ok();
    let open = |name: &str| format!("open {name} readonly=false");
    assert_eq!(log(&dir), [open("one"), "close".into(), open("two"), "close".into(), open("one")]);
    server.stop();
    assert_eq!(log(&dir).len(), 6);
}

#[test]
fn clients_of_a_hanging_open_can_leave_and_the_next_one_opens_it() {
    let dir = TempDir::new();
    let gate = dir.join("gate");
    let wait = format!("open=while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let server =
        Launch::new(["--filter=openonce", "eval", "get_size=echo 512", "pread=head -c $3 /dev/zero"]).arg(wait).start();
    let script = "x = nbd.NBD()\n\
                  x.aio_connect_unix(uri.split('socket=')[1])\n\
                  while not x.aio_is_negotiating() and not x.aio_is_connecting(): x.poll(-1)\n\
                  x.poll(200)\n\
                  del x";
    nbdsh(&server.uri(), script).ok();
    std::fs::write(&gate, b"").expect("the gate");
    nbdsh(&server.uri(), "h.connect_uri(uri)\nassert h.pread(512, 0) == bytes(512)").ok();
    server.stop();
}

#[test]
fn a_name_whose_open_hangs_keeps_clients_of_other_names_not_waiting() {
    let dir = TempDir::new();
    let gate = dir.join("gate");
    let open = format!("open=if [ $3 = hangs ]; then while [ ! -e {} ]; do sleep 0.05; done; fi", gate.display());
    let server = Launch::new(["--filter=openonce", "eval", "get_size=echo 512", "pread=head -c $3 /dev/zero"])
        .args(["thread_model=echo parallel", "list_exports=echo NAMES; echo one; echo two; echo hangs"])
        .arg(open)
        .start();
    let read = |name: &str| assert_eq!(Client::negotiate(server.socket(), name, true).read(0, 512), Ok(vec![0; 512]));
    read("one");
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| read("hangs"));
        // One that is open, and one that is not.
        read("one");
        read("two");
        assert!(!hanging.is_finished());
        std::fs::write(&gate, b"").expect("the gate");
    });
    server.stop();
}
