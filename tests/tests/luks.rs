//! The filter luks: images of cryptsetup and of qemu, other libraries for the same ciphers, damage.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_tests::server::root;
use rbdkit_tests::{Launch, Rng, Server, TempDir, nbdsh, seed, tool, wait};
use sha2::{Digest, Sha256};

/// What cryptsetup needs so that a derivation takes little time.
const PBKDF2: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
const ARGON2: [&str; 6] = ["--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2"];

/// Bytes of data on the disks here. Not a multiple of what clients read at once.
const SIZE: usize = (3 << 20) + 4096;

const PASSPHRASE: &str = "geheim +-";

fn cryptsetup<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    tool("/sbin/cryptsetup", words).ok()
}

/// The path as text.
fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A disk that `cryptsetup luksFormat` has made, and the file with its passphrase.
fn format(dir: &TempDir, options: &[&str], kdf: &[&str]) -> (PathBuf, PathBuf) {
    let pass = dir.file("pass", PASSPHRASE.as_bytes());
    // The headers of LUKS2 take 16 MiB, and those of LUKS1 up to 4 MiB.
    let before = if options.contains(&"luks1") { 4 << 20 } else { 16 << 20 };
    let disk = dir.sparse_file("disk.img", before + SIZE as u64);
    let format = ["luksFormat", "-q", "--key-file", text(&pass)];
    cryptsetup(format.iter().chain(options).chain(kdf).copied().chain([text(&disk)]));
    (disk, pass)
}

fn serve(disk: &Path, pass: &Path) -> Server {
    Launch::new(["--filter=luks", "file"]).path("file", disk).arg(format!("passphrase=+{}", text(pass))).start()
}

/// Copies between a file and a server.
fn copy(from: &str, to: &str) {
    tool("nbdcopy", [from, to]).ok();
}

/// Prints a disk's data, decrypted with the volume key by Python's cryptography. Arguments: the
/// disk, the key in hexadecimal, the mode, the offset of the data, the size of a sector.
const DECRYPT: &str = "
import hashlib, sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
disk, key, mode = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3]
offset, sector = int(sys.argv[4]), int(sys.argv[5])
def once(cipher_mode, k, data):
    worker = Cipher(algorithms.AES(k), cipher_mode).decryptor()
    return worker.update(data) + worker.finalize()
with open(disk, 'rb') as file:
    file.seek(offset)
    number = 0
    while data := file.read(sector):
        iv = number.to_bytes(16, 'little')
        if mode == 'xts-plain64':
            out = once(modes.XTS(iv), key, data)
        else:
            if mode == 'cbc-essiv:sha256':
                essiv = Cipher(algorithms.AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor()
                iv = essiv.update(iv)
            out = once(modes.CBC(iv), key, data)
        sys.stdout.buffer.write(out)
        number += sector // 512
";

/// The data of a disk, decrypted without rbdkit.
fn decrypted(dir: &TempDir, disk: &Path, pass: &Path, mode: &str, offset: usize, sector: usize) -> Vec<u8> {
    let dump = ["luksDump", "-q", "--dump-volume-key", "--key-file", text(pass), text(disk)];
    let dump = cryptsetup(dump);
    let key: String = dump
        .lines()
        .skip_while(|line| !line.starts_with("MK dump:"))
        .flat_map(|line| line.trim_start_matches("MK dump:").split_whitespace())
        .collect();
    assert!(key.len() >= 32, "{dump}");
    let script = dir.file("decrypt.py", DECRYPT.as_bytes());
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(disk).arg(key).args([mode, &offset.to_string(), &sector.to_string()]);
    let output = wait::output(command.stdin(Stdio::null()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Where the data begins, from `luksDump`.
fn data_offset(disk: &Path) -> usize {
    let dump = cryptsetup(["luksDump", text(disk)]);
    let line = |start: &str| dump.lines().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    match line("Payload offset:") {
        Some(sectors) => 512 * sectors.parse::<usize>().expect("sectors"),
        None => {
            let offset = line("offset:").and_then(|rest| rest.strip_suffix(" [bytes]"));
            offset.unwrap_or_else(|| panic!("{dump}")).parse().expect("bytes")
        }
    }
}

/// Random bytes are written through the filter, and decrypted by something else. Then parts are
/// overwritten, and compared through both.
fn round_trip(options: &[&str], kdf: &[&str], mode: &str, sector: usize) {
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, options, kdf);
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let offset = data_offset(&disk);
    let size = (std::fs::metadata(&disk).expect("the disk").len() as usize - offset) / sector * sector;
    let mut data = rng.bytes(size);
    let source = dir.file("source", &data);
    let server = serve(&disk, &pass);
    copy(text(&source), &server.uri());
    assert!(decrypted(&dir, &disk, &pass, mode, offset, sector) == data, "{options:?}: the data on the disk");
    let mut script = "h.connect_uri(uri)\n".to_owned();
    for round in 0..40 {
        let length = 1 + rng.below(if round % 4 == 0 { 70_000 } else { 9000 }) as usize;
        let at = rng.below((size - length) as u64) as usize;
        let byte = round as u8 + 1;
        script.push_str(&format!("h.pwrite(bytes([{byte}]) * {length}, {at})\n"));
        data[at..at + length].fill(byte);
        let (at, length) = (rng.below(size as u64 - 5000) as usize, 1 + rng.below(5000) as usize);
        let sum: u64 =
            data[at..at + length].iter().enumerate().map(|(n, byte)| (n as u64 + 1) * u64::from(*byte)).sum();
        script.push_str(&format!(
            "assert sum((n + 1) * b for n, b in enumerate(h.pread({length}, {at}))) == {sum}, ({at}, {length})\n"
        ));
    }
    script.push_str("h.flush()\nassert not h.can_trim() and not h.can_fast_zero()\n");
    script.push_str("h.zero(5000, 777)\nassert h.pread(5002, 776)[1:-1] == bytes(5000)\n");
    data[777..5777].fill(0);
    nbdsh(&server.uri(), &script).ok();
    let out = dir.join("out");
    copy(&server.uri(), text(&out));
    assert!(std::fs::read(&out).expect("the copy") == data, "{options:?}: the data through the filter");
    assert!(decrypted(&dir, &disk, &pass, mode, offset, sector) == data, "{options:?}: the data on the disk");
    if options.contains(&"luks1") {
        let (raw, secret) = (dir.join("raw"), format!("secret,id=pass,file={}", text(&pass)));
        let image = format!("driver=luks,key-secret=pass,file.filename={}", text(&disk));
        tool("qemu-img", ["convert", "--object", &secret, "--image-opts", &image, "-O", "raw", text(&raw)]).ok();
        assert!(std::fs::read(&raw).expect("the copy") == data, "{options:?}: the data through qemu");
    }
}

#[test]
fn disks_of_luks1_are_read_and_written_as_qemu_does() {
    let with = |cipher, bits, hash| ["--type", "luks1", "--cipher", cipher, "--key-size", bits, "--hash", hash];
    round_trip(&with("aes-xts-plain64", "512", "sha256"), &PBKDF2[2..], "xts-plain64", 512);
    round_trip(&with("aes-cbc-essiv:sha256", "256", "sha1"), &PBKDF2[2..], "cbc-essiv:sha256", 512);
    round_trip(&with("aes-cbc-plain64", "128", "sha512"), &PBKDF2[2..], "cbc-plain64", 512);
}

#[test]
fn disks_of_luks2_are_read_and_written() {
    let with = |cipher, sector| ["--type", "luks2", "--cipher", cipher, "--sector-size", sector];
    let argon2i = [&["--pbkdf", "argon2i"][..], &ARGON2].concat();
    let argon2id = [&["--pbkdf", "argon2id"][..], &ARGON2].concat();
    round_trip(&with("aes-xts-plain64", "512"), &PBKDF2, "xts-plain64", 512);
    round_trip(&with("aes-xts-plain64", "4096"), &argon2id, "xts-plain64", 4096);
    let essiv = [&with("aes-cbc-essiv:sha256", "512")[..], &["--key-size", "256"]].concat();
    round_trip(&essiv, &argon2i, "cbc-essiv:sha256", 512);
}

#[test]
fn a_disk_that_qemu_made_is_read() {
    let dir = TempDir::new();
    let data = Rng::new(7).bytes(SIZE);
    let (raw, disk, pass) = (dir.file("raw", &data), dir.join("disk.luks"), dir.file("pass", b"x"));
    let secret = format!("secret,id=pass,file={}", text(&pass));
    let options = "key-secret=pass,iter-time=10";
    tool("qemu-img", ["convert", "--object", &secret, "-O", "luks", "-o", options, text(&raw), text(&disk)]).ok();
    let server = serve(&disk, &pass);
    let out = dir.join("out");
    copy(&server.uri(), text(&out));
    assert!(std::fs::read(&out).expect("the copy") == data);
}

/// Adds a passphrase in a file to a disk.
fn add_key(disk: &Path, pass: &Path, new: &Path, kdf: &[&str]) {
    let words = ["luksAddKey", "-q", "--key-file", text(pass)];
    cryptsetup(words.iter().chain(kdf).copied().chain([text(disk), text(new)]));
}

#[test]
fn each_of_several_passphrases_opens_the_disk_and_a_wrong_one_is_one_line() {
    for kind in ["luks1", "luks2"] {
        let dir = TempDir::new();
        let kdf = if kind == "luks1" { &PBKDF2[2..] } else { &PBKDF2 };
        let (disk, pass) = format(&dir, &["--type", kind], kdf);
        let (second, third) = (dir.file("second", b"two"), dir.file("third", b"three"));
        let kdf: Vec<&str> = match kind {
            "luks1" => kdf.to_vec(),
            _ => [&["--pbkdf", "argon2id"][..], &ARGON2].concat(),
        };
        add_key(&disk, &pass, &second, &kdf);
        add_key(&disk, &pass, &third, &kdf);
        nbdsh(&serve(&disk, &second).uri(), "h.connect_uri(uri)\nh.pwrite(b'hello', 1000)").ok();
        for pass in [&pass, &third] {
            nbdsh(&serve(&disk, pass).uri(), "h.connect_uri(uri)\nassert h.pread(5, 1000) == b'hello'").ok();
        }
        let server = Launch::new(["--filter=luks", "file"]).path("file", &disk).arg("passphrase=wrong").start();
        let line = "error: luks: the passphrase opens none of the 3 key slots";
        tool("nbdinfo", [server.uri()]).fails();
        server.wait_for_log(line);
        tool("nbdinfo", [server.uri()]).fails();
        let log = server.stop().stderr;
        assert!(!log.contains("wrong"), "{log}");
    }
}

#[test]
fn the_key_slot_that_is_preferred_is_tried_first() {
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks2"], &PBKDF2);
    let second = dir.file("second", b"two");
    add_key(&disk, &pass, &second, &PBKDF2);
    cryptsetup(["config", "--key-slot", "1", "--priority", "prefer", text(&disk)]);
    for (pass, tried) in [(&pass, true), (&second, false)] {
        let launch = Launch::new(["-v", "--filter=luks", "file"]).path("file", &disk);
        let server = launch.arg(format!("passphrase=+{}", text(pass))).start();
        tool("nbdinfo", [server.uri()]).ok();
        let log = server.stop().stderr;
        assert_eq!(log.contains("the passphrase does not open key slot 1"), tried, "{log}");
        assert!(!log.contains("does not open key slot 0"), "{log}");
    }
}

/// Changes the metadata of both copies of a header of LUKS2, and makes the checksums right.
fn edit(disk: &Path, from: &str, to: &str) {
    let mut bytes = std::fs::read(disk).expect("the disk");
    for copy in 0..2 {
        let header = &mut bytes[copy * 16384..(copy + 1) * 16384];
        let end = header[4096..].iter().position(|byte| *byte == 0).expect("the end of the metadata");
        let metadata = String::from_utf8(header[4096..4096 + end].to_vec()).expect("text");
        assert!(metadata.contains(from), "{metadata}");
        let metadata = metadata.replace(from, to);
        header[4096..].fill(0);
        header[4096..4096 + metadata.len()].copy_from_slice(metadata.as_bytes());
        header[448..512].fill(0);
        let checksum = Sha256::digest(&*header);
        header[448..480].copy_from_slice(&checksum);
    }
    std::fs::write(disk, bytes).expect("the disk");
}

#[test]
fn a_header_that_asks_for_too_much_is_refused_in_a_line() {
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks2"], &[&["--pbkdf", "argon2id"][..], &ARGON2].concat());
    edit(&disk, "\"memory\":32768", "\"memory\":4194304");
    let server = serve(&disk, &pass);
    tool("nbdinfo", [server.uri()]).fails();
    server.wait_for_log(
        "error: luks: key slot 0 asks for 4096 MiB of memory for Argon2: that is more than the limit key-memory \
         (--filter-limit luks:key-memory=SIZE), or than is free",
    );
    edit(&disk, "\"memory\":4194304", "\"memory\":32768");
    tool("nbdinfo", [server.uri()]).ok();
    // The limit is the operator's.
    let launch = Launch::new(["--filter=luks", "--filter-limit=luks:key-memory=16M", "file"]).path("file", &disk);
    let limited = launch.arg(format!("passphrase=+{}", text(&pass))).start();
    tool("nbdinfo", [limited.uri()]).fails();
    limited.wait_for_log("key slot 0 asks for 32 MiB of memory for Argon2");
    edit(&disk, "\"time\":4", "\"time\":4294967295");
    tool("nbdinfo", [server.uri()]).fails();
    server.wait_for_log("key slot 0 asks for 4294967295 passes over 32768 KiB in 2 lanes of Argon2");
    // 2^32 - 1 rounds of PBKDF2.
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks1"], &PBKDF2[2..]);
    let mut bytes = std::fs::read(&disk).expect("the disk");
    bytes[212..216].fill(255);
    std::fs::write(&disk, bytes).expect("the disk");
    let server = serve(&disk, &pass);
    tool("nbdinfo", [server.uri()]).fails();
    server.wait_for_log(
        "error: luks: key slot 0 asks for 4294967295 iterations of PBKDF2: that is more than is allowed, or none",
    );
    tool("nbdinfo", [Launch::new(["--filter=luks", "memory", "1M", "passphrase=x"]).start().uri()]).fails();
}

#[test]
fn damaged_headers_fail_connections_and_never_the_guest() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    for kind in ["luks1", "luks2"] {
        let dir = TempDir::new();
        let kdf = if kind == "luks1" { &PBKDF2[2..] } else { &PBKDF2 };
        let (disk, pass) = format(&dir, &["--type", kind], kdf);
        let good = std::fs::read(&disk).expect("the disk");
        let launch = Launch::new(["--filter=luks", "--filter-limit=luks:setup=200ms", "file"]).path("file", &disk);
        let server = launch.arg(format!("passphrase=+{}", text(&pass))).start();
        let header = if kind == "luks1" { 592 } else { 32768 };
        for round in 0..24 {
            let mut bytes = good[..header].to_vec();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(if round % 3 == 0 { header as u64 } else { 600.min(header as u64) }) as usize;
                bytes[at] = if rng.chance(30) { 255 } else { rng.next_u64() as u8 };
            }
            if kind == "luks2" && round % 2 == 0 {
                // The checksum fits the damage, which is within the metadata as well.
                for _ in 0..1 + rng.below(3) {
                    bytes[4096 + rng.below(900) as usize] = b"0123456789\"{}[],:x"[rng.below(18) as usize];
                }
                bytes[448..512].fill(0);
                let checksum = Sha256::digest(&bytes[..16384]);
                bytes[448..480].copy_from_slice(&checksum);
                bytes[16384..].fill(0);
            }
            let file = std::fs::File::options().write(true).open(&disk).expect("the disk");
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("the disk");
            // It opens or it does not.
            let _ = tool("nbdinfo", ["--size", &server.uri()]);
        }
        let file = std::fs::File::options().write(true).open(&disk).expect("the disk");
        std::os::unix::fs::FileExt::write_all_at(&file, &good[..header], 0).expect("the disk");
        tool("nbdinfo", [server.uri()]).ok();
        let log = server.stop().stderr;
        for word in ["panicked", "trap", "unreachable", "it computed", "EIO: luks: open"] {
            assert!(!log.contains(word), "{word}:\n{log}");
        }
    }
}

/// Whether a key is being derived in a server.
fn derives(server: &Server) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    threads
        .into_iter()
        .any(|thread| std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "key\n"))
}

#[test]
fn a_derivation_ends_with_its_client_and_with_the_server() {
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks1"], &PBKDF2[2..]);
    let mut bytes = std::fs::read(&disk).expect("the disk");
    bytes[212..216].copy_from_slice(&100_000_000_u32.to_be_bytes());
    std::fs::write(&disk, bytes).expect("the disk");
    let server = serve(&disk, &pass);
    let mut client = Command::new("nbdinfo").arg(server.uri()).stderr(Stdio::null()).spawn().expect("nbdinfo");
    wait::until("the key is being derived", || derives(&server));
    client.kill().and_then(|()| client.wait()).expect("the client");
    wait::until("nobody derives a key", || !derives(&server));
    let mut client = Command::new("nbdinfo").arg(server.uri()).stderr(Stdio::null()).spawn().expect("nbdinfo");
    wait::until("the key is being derived", || derives(&server));
    let ended = std::time::Instant::now();
    assert!(server.stop().status.success());
    // A hundred million rounds take at least ten times as long.
    assert!(ended.elapsed() < std::time::Duration::from_secs(10), "{:?}", ended.elapsed());
    assert!(!client.wait().expect("the client").success());
}

#[test]
fn the_data_does_not_enter_the_guest() {
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks2", "--sector-size", "4096"], &PBKDF2);
    let launch = Launch::new(["-v", "--filter=luks", "file"]).path("file", &disk);
    let server = launch.arg(format!("passphrase=+{}", text(&pass))).start();
    let source = dir.file("source", &Rng::new(1).bytes(SIZE - 4096));
    copy(text(&source), &server.uri());
    // Not aligned: whole sectors are read and written back.
    nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pwrite(b'x' * 200000, 777)\nh.pread(300000, 99)").ok();
    let log = server.stop().stderr;
    let line = log.lines().find(|line| line.contains("luks: at the end: ")).unwrap_or_else(|| panic!("{log}"));
    let crossed = line.split(", ").find_map(|part| part.strip_suffix(" bytes crossed")).expect("a number");
    let crossed: u64 = crossed.parse().expect("a number");
    // Each of the few connections reads the header, which has 16 KiB.
    assert!((16 << 10..200 << 10).contains(&crossed), "{crossed}");
}

#[test]
fn the_passphrase_is_shown_nowhere() {
    const CANARY: &str = "C4naryC4nary";
    let dir = TempDir::new();
    let (disk, pass) = format(&dir, &["--type", "luks1"], &PBKDF2[2..]);
    let (canary, record) = (dir.file("canary", CANARY.as_bytes()), dir.join("record"));
    add_key(&disk, &pass, &canary, &PBKDF2[2..]);
    let component = root().join("target/filters/luks.wasm");
    let tool_program = root().join("target/release/rbdkit-filter");
    for passphrase in [format!("passphrase={CANARY}"), format!("passphrase=+{}", text(&canary))] {
        let record_to = format!("--record={}", text(&record));
        let launch = Launch::new(["-v", "--filter=luks", &record_to, "file"]).path("file", &disk).arg(&passphrase);
        let server = launch.start();
        nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pread(512, 0)").ok();
        let log = server.stop().stderr;
        assert!(!log.contains(CANARY), "{log}");
        let recorded = std::fs::read(&record).expect("the record");
        assert!(!recorded.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()));
        std::fs::remove_file(&record).expect("the record");
        let file = format!("file={}", text(&disk));
        for words in [&["-v", "--filter=luks", "--dump-plugin", "file"][..], &["--filter=luks", "--help", "file"]] {
            let mut command = Command::new(rbdkit_tests::server::program());
            let output = wait::output(command.args(words).arg(&file).arg(&passphrase).stdin(Stdio::null()));
            assert!(!format!("{output:?}").contains(CANARY), "{words:?}: {output:?}");
        }
        let call = ["call", text(&component), "pread", "0", "512", "--disk", text(&disk)];
        for (words, done) in [(&call[..], "crypto.decrypt"), (&["check", text(&component)], "no LUKS header")] {
            let mut command = Command::new(&tool_program);
            let output = wait::output(command.args(words).arg(&passphrase).stdin(Stdio::null()));
            let said = format!("{output:?}");
            assert!(said.contains(done) && !said.contains(CANARY), "{words:?}: {said}");
        }
    }
    let missing = Launch::new(["--filter=luks", "null", &format!("passphrase=+/{CANARY}")]).try_start();
    let said = missing.err().expect("no server").stderr;
    let line = "rbdkit: error: passphrase: the file after '+' cannot be read: No such file or directory";
    assert!(said.contains(line) && !said.contains(CANARY), "{said}");
    let missing = Launch::new(["--filter=luks", "null"]).try_start().err().expect("no server").stderr;
    assert!(missing.contains("passphrase"), "{missing}");
}
