//! The filters blocksize, cacheextents, rate and scan in the program.

use std::time::{Duration, Instant};

use rbdkit_slow_server::{Content, Rules, SlowServer};
use rbdkit_tests::{Launch, Rng, Server, TempDir, nbdsh, seed, tool};

/// A server with this filter over scripts of a disk. The scripts write each request that reaches
/// them into the file `asked`.
fn noting(filter: &str, dir: &TempDir, more: &[&str]) -> Server {
    let (disk, asked) = (dir.sparse_file("disk", 1 << 20), dir.join("asked"));
    let (disk, asked) = (disk.display(), asked.display());
    let note = |operation: &str| format!("{operation}=echo {operation} $4 $3 >>{asked}");
    let extents = "for n in 0 1 2 3; do echo $((n * 262144)) 131072; \
                   echo $((n * 262144 + 131072)) 131072 hole,zero; done";
    Launch::new([format!("--filter={filter}")])
        .args(["eval", "get_size=echo 1048576"])
        .args(["can_write=exit 0", "can_zero=exit 0", "can_trim=exit 0", "can_extents=exit 0"])
        .arg(format!("{}; dd if={disk} bs=1 skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none", note("pread")))
        .arg(format!("{}; dd of={disk} seek=$4 oflag=seek_bytes conv=notrunc status=none", note("pwrite")))
        .arg(format!("{}; dd if=/dev/zero of={disk} bs=1 seek=$4 count=$3 conv=notrunc status=none", note("zero")))
        .arg(note("trim"))
        .arg(format!("{}; {extents}", note("extents")))
        .args(more)
        .start()
}

fn asked(dir: &TempDir) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("asked")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

#[test]
fn blocksize_aligns_and_cuts_requests() {
    let dir = TempDir::new();
    let server = noting("blocksize", &dir, &["minblock=512", "maxdata=4096", "maxlen=8192"]);
    let script = "h.connect_uri(uri)\nh.pwrite(b'x' * 1000, 100)\nassert h.pread(1000, 100) == b'x' * 1000\n\
                  assert h.pread(2, 99) == b'\\0x' and h.pread(2, 1099) == b'x\\0'\n\
                  h.pread(10000, 0)\nh.trim(20000, 100)";
    nbdsh(&server.uri(), script).ok();
    let asked = asked(&dir);
    for line in &asked {
        let numbers: Vec<u64> = line.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
        assert!(numbers[..2].iter().all(|number| number.is_multiple_of(512)), "{line}");
        assert!(numbers[1] <= if line.starts_with("trim") { 8192 } else { 4096 }, "{line}");
    }
    assert_eq!(asked[..4], ["pread 0 512", "pwrite 0 512", "pwrite 512 512", "pread 1024 512"].map(str::to_string));
}

#[test]
fn a_disk_through_blocksize_reads_as_it_was_written_with_many_at_once() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk.img", 1 << 20);
    let server =
        Launch::new(["--filter=blocksize", "file"]).path("file", &disk).args(["minblock=4k", "maxdata=16k"]).start();
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    // Neighbours write within one block at the same time, and none may overwrite the other's bytes.
    let mut rng = Rng::new(seed);
    let mut model = vec![0u8; 1 << 20];
    let mut script = String::from("h.connect_uri(uri)\n");
    for round in 0..20 {
        let mut at = rng.below(1000) as usize;
        let mut count = 0;
        while count < 12 {
            let length = 1 + rng.below(9000) as usize;
            let byte = (round * 12 + count + 1) as u8;
            script
                .push_str(&format!("h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([{byte}]) * {length}), {at})\n"));
            model[at..at + length].fill(byte);
            at += length;
            count += 1;
        }
        script.push_str("while h.aio_in_flight() > 0:\n    h.poll(-1)\n");
    }
    nbdsh(&server.uri(), &script).ok();
    let copy = dir.join("copy");
    tool("nbdcopy", [server.uri().as_str(), copy.to_str().expect("UTF-8")]).ok();
    assert!(std::fs::read(&copy).expect("the copy") == model, "the disk differs from the model");
}

#[test]
fn cacheextents_asks_once_for_extents_that_a_client_asks_piece_by_piece_and_forgets_them_with_a_write() {
    let dir = TempDir::new();
    let server = noting("cacheextents", &dir, &[]);
    let script = "\
h.add_meta_context('base:allocation')
h.connect_uri(uri)
def walk():
    entries, at = [], 0
    def note(context, offset, list, error):
        entries.extend(list)
    while at < 1048576:
        h.block_status(1048576 - at, at, note, nbd.CMD_FLAG_REQ_ONE)
        at = sum(entries[::2])
    return entries
assert walk() == [131072, 0, 131072, 3] * 4, walk()
h.pwrite(b'x' * 512, 0)
assert walk() == [131072, 0, 131072, 3] * 4";
    nbdsh(&server.uri(), script).ok();
    let asked = asked(&dir);
    assert_eq!(asked, ["extents 0 1048576", "pwrite 0 512", "extents 0 1048576"]);
}

#[test]
fn rate_limits_a_client_and_follows_its_file() {
    let dir = TempDir::new();
    let file = dir.join("rate");
    // 8 Mbit/s are 1 MiB a second. After a burst of one second's worth the second MiB takes a
    // second.
    let server =
        Launch::new(["--filter=rate", "memory", "64M", "rate=8M", "burstiness=1"]).path("rate-file", &file).start();
    let read = |mib: u32| {
        let started = Instant::now();
        nbdsh(&server.uri(), &format!("h.connect_uri(uri)\nfor n in range({mib}):\n    h.pread(1 << 20, n << 20)"))
            .ok();
        started.elapsed()
    };
    assert!(read(3) >= Duration::from_millis(1900), "faster than the limit");
    std::fs::write(dir.join("new"), "0\n").expect("a file");
    std::fs::rename(dir.join("new"), &file).expect("a file");
    // The filter reads the file every quarter of a second, and the old limit holds until then.
    server.wait_until("the limit is lifted", |_| read(1) < Duration::from_millis(900));
    assert!(read(40) < Duration::from_secs(20), "there is no limit any more");
}

/// The curl plugin reads one byte to find out the size of the disk.
const PROBE: u64 = 1;

/// A disk behind a web server that waits `delay` milliseconds before each answer, and a server with
/// these filters over it.
fn remote(size: u64, delay: u64, filters: &[&str], more: &[&str]) -> (SlowServer, Server) {
    let rules = Rules { delay: Duration::from_millis(delay), ..Rules::default() };
    let source = SlowServer::start(Content::Pattern { seed: 3, size }, rules, None).expect("the slow server");
    let url = format!("{}/disk.img", source.url());
    let server = Launch::new(["-r", "--filter=scan"]).args(filters).args(["curl", &url]).args(more).start();
    (source, server)
}

#[test]
fn scan_fetches_the_whole_disk_once_while_a_client_is_connected_and_asks_for_nothing() {
    const SIZE: u64 = (33 << 20) + 12_345;
    for (stack, more) in [("--filter=cache", &[][..]), ("--filter=cow", &["cow-on-cache=true"])] {
        let (source, server) = remote(SIZE, 1, &[stack], more);
        let mut client = server.client();
        source.wait_until("the whole disk was fetched", |counts| counts.bytes >= SIZE + PROBE);
        let mut expected = vec![0; 1 << 20];
        for n in 0..33 {
            Content::Pattern { seed: 3, size: SIZE }.read(&mut expected, n << 20).expect("the pattern");
            assert!(client.read(n << 20, 1 << 20).expect("a read") == expected, "{stack}: MiB {n} differs");
        }
        client.read(33 << 20, 12_345).expect("a read");
        assert_eq!(source.counts().bytes, SIZE + PROBE, "{stack}: something was fetched twice");
        assert!(source.counts().at_once > 4, "{stack}: requests were sent one after another");
    }
}

#[test]
fn a_scan_stops_with_the_last_client_and_goes_on_with_the_next() {
    const SIZE: u64 = 64 << 20;
    let (source, server) = remote(SIZE, 20, &["--filter=cache", "-v"], &[]);
    let client = server.client();
    source.wait_until("it has begun", |counts| counts.bytes >= 4 << 20);
    drop(client);
    assert!(source.counts().bytes < SIZE, "the scan ended too early to test anything");
    // If the next client connected earlier, the first would not have been the last one, and what
    // was under way would not be fetched again.
    server.wait_for_log("connection 1: closed");
    let mut client = server.client();
    // The pieces that were under way when the first client left are fetched again: 1 MiB for each
    // of twelve workers. So the whole disk's number of bytes is reached before the last bytes are
    // there, and the client may ask for as many again.
    let most = SIZE + (24 << 20);
    for n in (0..64).rev() {
        // From the end backwards, which does not move the scan on.
        source.wait_until("the rest was fetched", |counts| counts.bytes >= SIZE);
        client.read(n << 20, 1 << 20).expect("a read");
    }
    let bytes = source.counts().bytes;
    assert!((SIZE..=most).contains(&bytes), "{bytes} of {SIZE} bytes fetched");
}

#[test]
fn scan_follows_its_parameters_for_the_length_of_a_piece_and_for_beginning_again() {
    let dir = TempDir::new();
    let cache = |dir: &TempDir| format!("cache=echo cache $4 $3 >>{}", dir.join("asked").display());
    let caching = ["can_cache=echo native", &cache(&dir)];
    let server = noting("scan", &dir, &[&caching[..], &["scan-size=256k"]].concat());
    let client = server.client();
    server
        .wait_until("all was asked for", |_| asked(&dir).iter().filter(|line| line.starts_with("cache")).count() >= 4);
    let mut lines: Vec<String> = asked(&dir).into_iter().filter(|line| line.starts_with("cache")).collect();
    lines.sort();
    // The zeroes at the end of a piece are left out.
    assert_eq!(lines, ["cache 0 131072", "cache 262144 131072", "cache 524288 131072", "cache 786432 131072"]);
    drop(client);

    let dir = TempDir::new();
    let caching = ["can_cache=echo native", &cache(&dir)];
    let server = noting("scan", &dir, &[&caching[..], &["scan-size=512k", "scan-forever=true"]].concat());
    let _client = server.client();
    server.wait_until("it begins again", |_| asked(&dir).iter().filter(|line| *line == "cache 0 393216").count() >= 3);
}

#[test]
fn scan_without_a_layer_that_caches_says_so_and_asks_for_nothing() {
    let (source, server) = remote(1 << 20, 0, &[], &[]);
    let mut client = server.client();
    client.read(0, 512).expect("a read");
    server.wait_until("it is told", |server| server.stderr().contains("nothing below can cache"));
    assert_eq!(source.counts().bytes, 512 + PROBE);
}
