//! Every filter, alone and in stacks, compared with the reference model byte by byte.
//!
//! `RBDKIT_SEED` repeats the requests of a run; the order in which threads run may differ.
//! `RBDKIT_OPS` sets the number of operations in all.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use rbdkit_tests::model::{Crowd, Disk, content, sparse};
use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Control, Launch, Rng, TempDir, seed, tool};

/// The number of operations of all tests in this file together, unless `RBDKIT_OPS` sets another.
const OPERATIONS: u64 = 110_000;
/// Not a multiple of any filter's block.
const SIZE: usize = (6 << 20) + 1234;
/// So short that some twenty stripes share a block of 64 KiB.
const NARROW: u64 = 3001;
/// Bytes in front of the part that an offset filter shows, and behind it.
const MARGIN: usize = 4097;

/// The plugin below the filters.
#[derive(Clone, Copy, PartialEq)]
enum Below {
    File,
    Memory,
    /// A file that qemu-img has encrypted. The last bytes, which are no sector, are left out.
    Encrypted,
}

impl Below {
    fn is_file(self) -> bool {
        self != Below::Memory
    }
}

/// What the file has to hold when the server has ended.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// What clients wrote.
    Written,
    /// What it held at first.
    Untouched,
    /// Not checked, because nothing is promised.
    Unsaid,
}

struct Case<'a> {
    name: &'a str,
    arguments: &'a [&'a str],
    below: Below,
    after: After,
    may_fail: bool,
    offset: bool,
    /// Its part of all operations, in thousandths.
    share: u64,
}

const PLAIN: Case<'static> = Case {
    name: "",
    arguments: &[],
    below: Below::File,
    after: After::Written,
    may_fail: false,
    offset: false,
    share: 50,
};

fn check(case: &Case) {
    check_with(seed(), case);
}

/// Parameters may name files in the directory of the test, `{dir}`.
fn check_with(seed: u64, case: &Case) {
    let total = std::env::var("RBDKIT_OPS").map_or(OPERATIONS, |text| text.parse().expect("RBDKIT_OPS is a number"));
    println!("{}: RBDKIT_SEED={seed}", case.name);
    let dir = TempDir::new();
    let first = match case.below {
        Below::File => content(seed, SIZE),
        Below::Memory => vec![0; SIZE],
        Below::Encrypted => content(seed, SIZE / 512 * 512),
    };
    let image = if case.below == Below::Encrypted { encrypted(&dir, &first) } else { first.clone() };
    let margin = if case.offset { MARGIN } else { 0 };
    let whole = [vec![0xa5; margin], image.clone(), vec![0xa5; margin]].concat();
    let arguments: Vec<String> =
        case.arguments.iter().map(|word| word.replace("{dir}", &dir.join("").to_string_lossy())).collect();
    let (options, parameters): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|arg| arg.starts_with("--"));
    let file = sparse(&dir, "disk.img", &whole);
    let mut launch = Launch::new(options);
    launch = match case.below.is_file() {
        true => launch.arg("file").path("file", &file),
        false => launch.arg("memory").arg(SIZE.to_string()),
    };
    launch = parameters.iter().fold(launch, Launch::arg);
    if case.offset {
        launch = launch.arg(format!("offset={margin}")).arg(format!("range={}", image.len()));
    }
    let server = launch.start();
    let mut crowd = Crowd::new(seed, total * case.share / 2000);
    crowd.may_fail = case.may_fail;
    let mut disk = Disk::new(&first, crowd.stripe);
    let ends = AtomicBool::new(false);
    let (wide, narrow) = std::thread::scope(|scope| {
        if case.arguments.contains(&"--filter=pause") {
            scope.spawn(|| pause_again_and_again(&dir.join("control"), Rng::new(seed), &ends));
        }
        let _end = EndOnDrop(&ends);
        let wide = disk.exercise(server.socket(), &crowd);
        // The same again with stripes so narrow that all connections share every block of a filter.
        crowd.stripe = NARROW;
        disk.cut(crowd.stripe);
        (wide, disk.exercise(server.socket(), &crowd))
    });
    let mut client = server.client();
    disk.compare_with("read by a new connection", &mut client, case.may_fail);
    let holds = |what: &str| {
        let bytes = std::fs::read(&file).expect("the file");
        let (before, rest) = bytes.split_at(margin);
        let (image, after) = rest.split_at(image.len());
        assert!(before.iter().all(|&byte| byte == 0xa5), "{what}: something was written in front of the range");
        assert!(after.iter().all(|&byte| byte == 0xa5), "{what}: something was written behind the range");
        match case.below {
            Below::Encrypted => disk.compare(what, &decrypted(&dir, image)),
            _ => disk.compare(what, image),
        }
    };
    if client.can(rbdkit_tests::raw::can::FLUSH) {
        let mut tries = 0;
        while let Err(error) = client.flush() {
            tries += 1;
            assert!(case.may_fail && tries < 1000, "flush failed with {error}");
        }
        if case.below.is_file() && case.after == After::Written {
            holds("the file after a flush");
        }
    }
    client.disconnect();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
    match (case.below.is_file(), case.after) {
        (true, After::Written) => holds("the file at the end"),
        (true, After::Untouched) => {
            assert!(std::fs::read(&file).expect("the file") == whole, "the file changed")
        }
        _ => {}
    }
    println!("{}: {wide:?}, then {narrow:?}", case.name);
}

/// Tells a thread to end, also if the test fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Closes and opens the gate of the filter pause at random moments, until it is told to end.
fn pause_again_and_again(control: &Path, mut rng: Rng, ends: &AtomicBool) {
    let mut control = Control::connect(control);
    while !ends.load(SeqCst) {
        for (command, answer) in [(b"p", "P"), (b"r", "R")] {
            assert_eq!(control.say(command, 1), answer);
            #[expect(
                clippy::disallowed_methods,
                reason = "a random time, and not one that something has to happen in"
            )]
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
        }
    }
}

/// What qemu-img has to be told of the key.
const SECRET: &str = "secret,id=key,data=hush";

/// A disk with this content that qemu-img has encrypted (LUKS1). The passphrase is in the file
/// `pass`.
fn encrypted(dir: &TempDir, content: &[u8]) -> Vec<u8> {
    dir.file("pass", b"hush");
    let (plain, image) = (dir.file("plain", content), dir.join("image"));
    let words = ["convert", "--object", SECRET, "-f", "raw", "-O", "luks", "-o", "key-secret=key,iter-time=10"];
    tool("qemu-img", words.map(Into::into).into_iter().chain([plain, image.clone()])).ok();
    std::fs::read(image).expect("the image")
}

/// The content of an encrypted disk, by qemu-img.
fn decrypted(dir: &TempDir, image: &[u8]) -> Vec<u8> {
    let (image, plain) = (dir.file("written", image), dir.join("read"));
    let driver = format!("driver=luks,key-secret=key,file.filename={}", image.display());
    let words = ["convert", "--object", SECRET, "--image-opts", &driver, "-O", "raw"];
    tool("qemu-img", words.map(Into::into).into_iter().chain([plain.clone()])).ok();
    std::fs::read(plain).expect("the content")
}

#[test]
fn file_alone_is_the_model() {
    check(&Case { name: "file", ..PLAIN });
}

#[test]
fn memory_alone_is_the_model() {
    check(&Case { name: "memory", below: Below::Memory, ..PLAIN });
}

#[test]
fn nofilter_is_the_model() {
    check(&Case { name: "nofilter", arguments: &["--filter=nofilter"], below: Below::Memory, ..PLAIN });
}

#[test]
fn offset_is_the_model_and_stays_within_its_range() {
    check(&Case { name: "offset", arguments: &["--filter=offset"], offset: true, ..PLAIN });
}

#[test]
fn delay_is_the_model() {
    let arguments = &["--filter=delay", "rdelay=1ms", "wdelay=1ms"];
    check(&Case { name: "delay", arguments, share: 15, ..PLAIN });
}

#[test]
fn error_that_never_happens_is_the_model() {
    check(&Case { name: "error 0%", arguments: &["--filter=error", "error-rate=0%"], ..PLAIN });
}

#[test]
fn error_that_happens_fails_requests_and_loses_nothing_else() {
    let arguments = &["--filter=error", "error=EIO", "error-rate=5%"];
    check(&Case { name: "error 5%", arguments, may_fail: true, ..PLAIN });
}

#[test]
fn filters_that_change_what_is_offered_are_the_model() {
    for arguments in [
        &["--filter=fua", "fuamode=force"][..],
        &["--filter=fua"],
        &["--filter=nozero", "zeromode=emulate"],
        &["--filter=nozero", "zeromode=notrim"],
        &["--filter=nocache", "cachemode=emulate"],
        &["--filter=noextents"],
        &["--filter=rotational"],
        &["--filter=readonly", "readonly-file=/nonexistent"],
        &["--filter=protect", "protect=~-"],
        &["--filter=truncate", "round-down=2"],
    ] {
        if is_nbdkit() && (arguments[0].ends_with("rotational") || arguments[0].ends_with("readonly")) {
            continue;
        }
        check(&Case { name: &arguments.join(" "), arguments, share: 10, ..PLAIN });
    }
}

#[test]
fn requests_that_are_serialized_are_the_model() {
    for serialize in ["serialize=requests", "serialize=all-requests"] {
        check(&Case { name: serialize, arguments: &["--filter=noparallel", serialize], share: 10, ..PLAIN });
    }
}

#[test]
fn filters_that_move_or_change_bytes_are_the_model() {
    if is_nbdkit() {
        return;
    }
    // Over a disk of zeroes, which reads the same when it is moved.
    let zeroes = Case { below: Below::Memory, share: 25, ..PLAIN };
    let map = &["--filter=map", "map=0-999999:1000000", "map=1000000-1999999:0", "map=5000000-5000006:5000000"];
    check(&Case { name: "map", arguments: map, ..zeroes });
    let swab = &["--filter=blocksize", "--filter=swab"];
    check(&Case { name: "blocksize, swab", arguments: swab, ..zeroes });
    // Twice is not at all.
    let twice = &["--filter=blocksize", "--filter=swab", "--filter=swab"];
    check(&Case { name: "blocksize, swab, swab", arguments: twice, share: 25, ..PLAIN });
    let evil = &["--filter=evil", "evil-probability=0"];
    check(&Case { name: "evil 0", arguments: evil, share: 10, ..PLAIN });
}

#[test]
fn what_is_logged_and_counted_is_the_model() {
    let arguments = &["--filter=log", "--filter=stats", "--filter=count", "logfile=/dev/null", "statsfile=/dev/null"];
    check(&Case { name: "log, stats, count", arguments, ..PLAIN });
}

#[test]
fn readahead_is_the_model() {
    check(&Case { name: "readahead", arguments: &["--filter=readahead"], ..PLAIN });
}

#[test]
fn filters_that_only_watch_are_the_model() {
    for (name, arguments) in [
        ("blocksize-policy", &["--filter=blocksize-policy", "blocksize-preferred=32k"][..]),
        ("exportname", &["--filter=exportname", "exportdesc=none"]),
        ("ip", &["--filter=ip", "allow=anyunix", "deny=all"]),
        ("limit", &["--filter=limit", "limit=0"]),
        ("multi-conn", &["--filter=multi-conn", "multi-conn-mode=plugin"]),
    ] {
        check(&Case { name, arguments, share: 10, ..PLAIN });
    }
}

/// The header and the data are behind other bytes.
#[test]
fn an_encrypted_disk_is_the_model_for_us_and_for_qemu() {
    let arguments = &["--filter=luks", "--filter=offset", "passphrase=+{dir}/pass"];
    check(&Case { name: "luks, offset", arguments, below: Below::Encrypted, offset: true, share: 30, ..PLAIN });
}

#[test]
fn a_disk_that_is_paused_again_and_again_is_the_model() {
    let arguments = &["--filter=pause", "pause-control={dir}/control"];
    check(&Case { name: "pause", arguments, share: 20, ..PLAIN });
    let arguments = &["--filter=cache", "--filter=pause", "pause-control={dir}/control"];
    check(&Case { name: "cache, pause", arguments, share: 20, ..PLAIN });
}

/// nbdkit 1.32 has no such filter.
#[test]
fn spinning_is_the_model() {
    if is_nbdkit() {
        return;
    }
    let arguments = &[
        "--filter=spinning",
        "heads=3",
        "separate-heads=true",
        "min-seek-time=0",
        "half-seek-time=100us",
        "max-seek-time=1ms",
    ];
    check(&Case { name: "spinning", arguments, share: 10, ..PLAIN });
}

#[test]
fn cow_is_the_model_and_the_file_stays_as_it_was() {
    check(&Case { name: "cow", arguments: &["--filter=cow"], after: After::Untouched, ..PLAIN });
}

#[test]
fn cow_with_small_blocks_is_the_model() {
    let arguments = &["--filter=cow", "cow-block-size=4096", "cow-on-cache=true"];
    check(&Case { name: "cow 4k", arguments, after: After::Untouched, ..PLAIN });
}

#[test]
fn cow_on_read_is_the_model() {
    let arguments = &["--filter=cow", "cow-on-read=true"];
    check(&Case { name: "cow on read", arguments, after: After::Untouched, ..PLAIN });
}

#[test]
fn cache_writeback_is_the_model() {
    check(&Case { name: "cache writeback", arguments: &["--filter=cache", "cache=writeback"], ..PLAIN });
}

#[test]
fn cache_writethrough_is_the_model() {
    let arguments = &["--filter=cache", "cache=writethrough", "cache-on-read=true"];
    check(&Case { name: "cache writethrough", arguments, ..PLAIN });
}

#[test]
fn cache_unsafe_is_the_model_while_the_server_lives() {
    let arguments = &["--filter=cache", "cache=unsafe"];
    check(&Case { name: "cache unsafe", arguments, after: After::Unsaid, ..PLAIN });
}

/// Debian's nbdkit loses blocks here, so this test is left out when the tests themselves are tried
/// with it.
#[test]
fn cache_so_small_that_it_always_reclaims_is_the_model() {
    if is_nbdkit() {
        return;
    }
    let arguments = &["--filter=cache", "cache-max-size=1M", "cache-min-block-size=4K", "cache-on-read=true"];
    check(&Case { name: "cache reclaiming", arguments, share: 100, ..PLAIN });
    let arguments = &["--filter=cache", "cache-max-size=1M"];
    check(&Case { name: "cache reclaiming, 64K", arguments, share: 50, ..PLAIN });
}

#[test]
fn disks_that_are_scanned_again_and_again_read_as_they_were_written() {
    let arguments = &["--filter=scan", "--filter=cache", "scan-forever=true", "scan-size=64k", "cache-max-size=1M"];
    check(&Case { name: "scan, cache", arguments, ..PLAIN });
    let arguments = &["--filter=scan", "--filter=cow", "scan-forever=true", "cow-on-cache=true"];
    check(&Case { name: "scan, cow", arguments, after: After::Untouched, ..PLAIN });
}

#[test]
fn cow_over_cache_over_file_is_the_model() {
    let arguments = &["--filter=cow", "--filter=cache"];
    check(&Case { name: "cow, cache", arguments, after: After::Untouched, ..PLAIN });
}

#[test]
fn cache_over_cow_over_offset_is_the_model() {
    let arguments = &["--filter=cache", "--filter=cow", "--filter=offset"];
    check(&Case { name: "cache, cow, offset", arguments, after: After::Untouched, offset: true, ..PLAIN });
}

#[test]
fn readahead_over_cache_over_a_disk_that_fails_is_the_model() {
    let arguments =
        &["--filter=readahead", "--filter=cache", "--filter=error", "error=EIO", "error-rate=2%", "cache-on-read=true"];
    check(&Case { name: "readahead, cache, error", arguments, may_fail: true, ..PLAIN });
}

#[test]
fn readahead_over_cache_over_a_disk_that_fails_and_is_slow_is_the_model() {
    if is_nbdkit() {
        return;
    }
    let arguments = &[
        "--filter=readahead",
        "--filter=cache",
        "--filter=error",
        "--filter=delay",
        "error=EIO",
        "error-rate=2%",
        "rdelay=1ms",
        "wdelay=1ms",
        "cache-max-size=1M",
    ];
    check(&Case { name: "readahead, cache, error, delay", arguments, may_fail: true, share: 20, ..PLAIN });
}

#[test]
fn every_filter_at_once_is_the_model() {
    let arguments = &["--filter=nofilter", "--filter=readahead", "--filter=cow", "--filter=cache", "--filter=nofilter"];
    check(&Case { name: "nofilter, readahead, cow, cache", arguments, after: After::Untouched, ..PLAIN });
}

/// What a filter does with the file below.
#[derive(Clone, Copy, PartialEq)]
enum Effect {
    /// The file is what clients see.
    Same,
    /// The file has the same bytes in another order.
    Moved,
    /// The file is not written.
    Overlay,
    /// Clients see a part of the file.
    Part,
    /// The file is encrypted.
    Encrypted,
}

/// The filters of which stacks are drawn, and their parameters. Those that take no writes are left
/// out.
const DRAWN: &[(&[&str], &[&str], Effect)] = &[
    (&["blocksize", "swab"], &[], Effect::Moved),
    (&["blocksize"], &["minblock=2", "maxdata=16k"], Effect::Same),
    (&["blocksize-policy"], &["blocksize-preferred=32k"], Effect::Same),
    (&["cache"], &["cache-max-size=1M"], Effect::Same),
    (&["cacheextents"], &[], Effect::Same),
    (&["count"], &[], Effect::Same),
    (&["cow"], &["cow-block-size=4096"], Effect::Overlay),
    (&["delay"], &["wdelay=100us"], Effect::Same),
    (&["error"], &["error-rate=0%"], Effect::Same),
    (&["evil"], &["evil-probability=0"], Effect::Same),
    (&["exitwhen"], &["exit-when-file-created=/nonexistent/file"], Effect::Same),
    (&["exportname"], &["exportdesc=fixed:a disk"], Effect::Same),
    (&["fua"], &["fuamode=emulate"], Effect::Same),
    (&["ip"], &["allow=all"], Effect::Same),
    (&["limit"], &["limit=100"], Effect::Same),
    (&["log"], &["logfile=/dev/null"], Effect::Same),
    (&["luks"], &["passphrase=+{dir}/pass"], Effect::Encrypted),
    (&["map"], &["map=0-999999:1000000", "map=1000000-1999999:0"], Effect::Moved),
    (&["multi-conn"], &["multi-conn-mode=emulate"], Effect::Same),
    (&["nocache"], &["cachemode=nop"], Effect::Same),
    (&["noextents"], &[], Effect::Same),
    (&["nofilter"], &[], Effect::Same),
    (&["noparallel"], &["serialize=all-requests"], Effect::Same),
    (&["nozero"], &["zeromode=emulate"], Effect::Same),
    (&["offset"], &[], Effect::Part),
    (&["openonce"], &[], Effect::Same),
    (&["pause"], &["pause-control={dir}/control"], Effect::Same),
    (&["protect"], &["protect=~-"], Effect::Same),
    (&["rate"], &["rate=100G"], Effect::Same),
    (&["readahead"], &[], Effect::Same),
    (&["readonly"], &["readonly-file=/nonexistent"], Effect::Same),
    (&["retry"], &["retry-delay=1ms"], Effect::Same),
    (&["retry-request"], &["retry-request-delay=1ms"], Effect::Same),
    (&["rotational"], &[], Effect::Same),
    (&["scan"], &["scan-size=64k"], Effect::Same),
    (&["spinning"], &["min-seek-time=0", "half-seek-time=0", "max-seek-time=0"], Effect::Same),
    (&["stats"], &["statsfile=/dev/null"], Effect::Same),
    (&["time-limit"], &["time-limit=3600"], Effect::Same),
    (&["truncate"], &["round-down=2"], Effect::Same),
];

#[test]
fn stacks_of_three_filters_that_a_seed_draws_are_the_model() {
    if is_nbdkit() {
        return;
    }
    // One seed for all, so that it repeats a stack and its requests.
    let seed = seed();
    let mut rng = Rng::new(seed);
    for _ in 0..6 {
        // An offset leaves a margin in a file, bytes are moved in a disk of zeroes in memory, and
        // an encrypted disk is a file with a header: only one of them fits.
        let drawn = std::iter::from_fn(|| {
            let mut left: Vec<_> = DRAWN.iter().collect();
            Some([(); 3].map(|()| left.swap_remove(rng.below(left.len() as u64) as usize)))
        });
        let has = |drawn: &[&(_, _, Effect)], effect| drawn.iter().any(|(.., other)| *other == effect);
        let kinds = [Effect::Moved, Effect::Part, Effect::Encrypted];
        let mut drawn = drawn.skip_while(|drawn| kinds.iter().filter(|kind| has(drawn, **kind)).count() > 1);
        let drawn = drawn.next().expect("the draws do not end");
        let names: Vec<&str> = drawn.iter().flat_map(|(names, ..)| names.iter().copied()).collect();
        let mut arguments: Vec<String> = names.iter().map(|name| format!("--filter={name}")).collect();
        for (names, parameters, _) in &drawn {
            arguments.extend(parameters.iter().map(|word| format!("--filter-param={}:{word}", names[0])));
        }
        let below = match kinds.into_iter().find(|kind| has(&drawn, *kind)) {
            Some(Effect::Moved) => Below::Memory,
            Some(Effect::Encrypted) => Below::Encrypted,
            _ => Below::File,
        };
        let after = if has(&drawn, Effect::Overlay) { After::Untouched } else { After::Written };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let offset = has(&drawn, Effect::Part);
        let name = names.join(", ");
        check_with(
            seed,
            &Case { name: &name, arguments: &arguments, below, after, offset, share: 10, may_fail: false },
        );
    }
}
