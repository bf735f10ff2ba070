//! The filter in the SDK's simulated host. Its ciphers are not real: what real images hold is
//! tested with the program.

use rbdkit_filter_sdk::testing::{Client, Disk, Host, Served, crypto as simulated};

use super::*;

/// Where the data begins on the disks here.
const DATA: usize = 128 << 10;
/// Bytes of data.
const SIZE: usize = 64 << 10;

const VOLUME_KEY: [u8; 32] = [0x5a; 32];
const SALT: [u8; 32] = [7; 32];

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The content of a disk.
fn content() -> Vec<u8> {
    (0..SIZE).map(|n| (n * 7 + n / 512) as u8).collect()
}

fn encrypted(sector: usize) -> Vec<u8> {
    let mut data = content();
    simulated::apply(&VOLUME_KEY, &mut data, sector, 0, sector as u32 / 512);
    data
}

/// A disk of LUKS1 with a key slot for each passphrase.
fn luks1(passphrases: &[&str]) -> Vec<u8> {
    let mut disk = vec![0; DATA + SIZE];
    put(&mut disk, 0, b"LUKS\xba\xbe\0\x01aes");
    put(&mut disk, 40, b"xts-plain64");
    put(&mut disk, 72, b"sha256");
    put(&mut disk, 104, &(DATA as u32 / 512).to_be_bytes());
    put(&mut disk, 108, &32_u32.to_be_bytes());
    put(&mut disk, 112, &simulated::pbkdf2(&VOLUME_KEY, "sha256", &SALT, 1000, 20));
    put(&mut disk, 132, &SALT);
    put(&mut disk, 164, &1000_u32.to_be_bytes());
    for slot in 0..8 {
        let at = 208 + slot * 48;
        let Some(passphrase) = passphrases.get(slot) else {
            put(&mut disk, at, &0xdead_u32.to_be_bytes());
            continue;
        };
        let sector = 8 + slot as u32;
        put(&mut disk, at, &0x00ac_71f3_u32.to_be_bytes());
        put(&mut disk, at + 4, &2000_u32.to_be_bytes());
        put(&mut disk, at + 8, &SALT);
        put(&mut disk, at + 40, &sector.to_be_bytes());
        put(&mut disk, at + 44, &4_u32.to_be_bytes());
        let key = simulated::pbkdf2(passphrase.as_bytes(), "sha256", &SALT, 2000, 32);
        put(&mut disk, sector as usize * 512, &simulated::unwrapped(&key, &VOLUME_KEY, "sha256", 32));
    }
    put(&mut disk, DATA, &encrypted(512));
    disk
}

/// What the metadata of a disk of LUKS2 say. `kdf` replaces how the key of slot 1 is derived.
fn metadata(sector: usize, kdf: &str) -> String {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let salt = base64(&SALT);
    let digest = base64(&simulated::pbkdf2(&VOLUME_KEY, "sha256", &SALT, 1000, 32));
    let slot = |offset: u32, kdf: &str, priority: u32| {
        format!(
            r#"{{"type":"luks2","key_size":32,"priority":{priority},"kdf":{kdf},
            "af":{{"type":"luks1","stripes":4,"hash":"sha256"}},
            "area":{{"type":"raw","offset":"{offset}","size":"4096","encryption":"aes-xts-plain64","key_size":32}}}}"#
        )
    };
    let kdf = kdf.replace("SALT", &salt);
    let argon2 = format!(r#"{{"type":"argon2id","time":4,"memory":32768,"cpus":2,"salt":"{salt}"}}"#);
    let (plain, preferred) = (slot(65536, &kdf, 1), slot(69632, &argon2, 2));
    format!(
        r#"{{"keyslots":{{"1":{plain},"7":{preferred}}},"tokens":{{}},
        "segments":{{"0":{{"type":"crypt","offset":"{DATA}","size":"dynamic","iv_tweak":"0",
            "encryption":"aes-xts-plain64","sector_size":{sector}}}}},
        "digests":{{"0":{{"type":"pbkdf2","keyslots":["1","7"],"segments":["0"],"hash":"sha256","iterations":1000,
            "salt":"{salt}","digest":"{digest}"}}}},
        "config":{{"json_size":"12288","keyslots_size":"65536"}}}}"#
    )
}

const PBKDF2: &str = r#"{"type":"pbkdf2","hash":"sha256","iterations":2000,"salt":"SALT"}"#;

/// A copy of a header of LUKS2.
fn header(magic: &[u8], offset: usize, sequence: u64, metadata: &str) -> Vec<u8> {
    let mut header = vec![0; 16 << 10];
    put(&mut header, 0, magic);
    put(&mut header, 6, &[0, 2]);
    put(&mut header, 8, &(16_u64 << 10).to_be_bytes());
    put(&mut header, 16, &sequence.to_be_bytes());
    put(&mut header, 72, b"sha256");
    put(&mut header, 256, &(offset as u64).to_be_bytes());
    put(&mut header, 4096, metadata.as_bytes());
    let checksum = simulated::sha256(&header);
    put(&mut header, 448, &checksum);
    header
}

/// A disk of LUKS2. Slot 1 has the passphrase `plain`, and slot 7, which comes first, `preferred`.
fn luks2(sector: usize, metadata: &str) -> Vec<u8> {
    let mut disk = vec![0; DATA + SIZE];
    put(&mut disk, 0, &header(b"LUKS\xba\xbe", 0, 3, metadata));
    put(&mut disk, 16 << 10, &header(b"SKUL\xba\xbe", 16 << 10, 3, metadata));
    let plain = simulated::pbkdf2(b"plain", "sha256", &SALT, 2000, 32);
    put(&mut disk, 65536, &simulated::unwrapped(&plain, &VOLUME_KEY, "sha256", 32));
    let preferred = simulated::argon2(b"preferred", "argon2id", &SALT, [4, 32768, 2], 32);
    put(&mut disk, 69632, &simulated::unwrapped(&preferred, &VOLUME_KEY, "sha256", 32));
    put(&mut disk, DATA, &encrypted(sector));
    disk
}

fn serve(disk: Vec<u8>, passphrase: &str) -> Served<Luks> {
    Host::new(Disk::new(disk)).serve(&[&format!("passphrase={passphrase}")]).unwrap()
}

/// The one line of a disk that cannot be opened.
fn refused(disk: Vec<u8>) -> (Errno, String) {
    let host = serve(disk, "plain");
    let errno = host.connect().err().unwrap();
    let log = host.take_log();
    (errno, log.into_iter().filter(|line| !line.starts_with("debug")).collect::<Vec<_>>().join("\n"))
}

fn read(client: &Client<'_, Luks>, at: usize, length: usize) -> Vec<u8> {
    client.pread(at as u64, length as u32).unwrap()
}

#[test]
fn requests_of_any_alignment_read_and_write_the_data() {
    for (disk, sector) in [(luks1(&["plain"]), 512), (luks2(512, &metadata(512, PBKDF2)), 512)]
        .into_iter()
        .chain([1024, 4096].map(|sector| (luks2(sector, &metadata(sector, PBKDF2)), sector)))
    {
        let host = serve(disk, "plain");
        let client = host.connect().unwrap();
        let mut data = content();
        assert_eq!(client.size(), SIZE as u64);
        for (at, length) in [
            (0, SIZE),
            (0, 1),
            (511, 2),
            (sector, sector),
            (sector - 1, sector + 2),
            (3 * sector + 5, 4 * sector),
            (5 * sector, 2 * sector + 9),
            (7 * sector + 3, sector - 3),
            (SIZE - 1, 1),
        ] {
            assert!(read(&client, at, length) == data[at..at + length], "{sector}: {at}+{length}");
            let new: Vec<u8> = (0..length).map(|n| (n * 3 + at) as u8).collect();
            client.pwrite(at as u64, &new, CommandFlags::empty()).unwrap();
            data[at..at + length].copy_from_slice(&new);
            assert!(read(&client, 0, SIZE) == data, "{sector}: {at}+{length}");
        }
        let mut below = host.disk()[DATA..].to_vec();
        simulated::apply(&VOLUME_KEY, &mut below, sector, 0, sector as u32 / 512);
        assert!(below == data, "{sector}");
    }
}

#[test]
fn any_of_the_passphrases_opens_the_disk_and_another_one_does_not() {
    let disk = luks1(&["first", "second", "third"]);
    for passphrase in ["first", "third"] {
        let host = serve(disk.clone(), passphrase);
        assert!(read(&host.connect().unwrap(), 100, 9) == content()[100..109]);
    }
    let host = serve(disk, "fourth");
    for _ in 0..2 {
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        assert_eq!(host.take_log().last().unwrap(), "error: the passphrase opens none of the 3 key slots");
    }
    let host = serve(luks2(512, &metadata(512, PBKDF2)), "preferred");
    assert!(read(&host.connect().unwrap(), 0, 9) == content()[..9]);
}

#[test]
fn the_key_is_made_once_for_all_connections() {
    let host = serve(luks1(&["plain"]), "plain");
    let first = host.connect().unwrap();
    assert!(host.take_calls().iter().any(|call| call == "pread 4096 512"));
    let second = host.connect().unwrap();
    assert!(!host.take_calls().iter().any(|call| call == "pread 4096 512"));
    assert!(read(&first, 0, 10) == content()[..10] && read(&second, 0, 10) == content()[..10]);
}

#[test]
fn a_damaged_header_of_luks2_is_replaced_by_the_other_copy() {
    let good = metadata(512, PBKDF2);
    let mut disk = luks2(512, &good);
    disk[5000] ^= 1;
    let host = serve(disk, "plain");
    assert!(read(&host.connect().unwrap(), 0, 9) == content()[..9]);
    let lines = host.take_log();
    let warning = "warning: the header is damaged: its checksum is wrong; its secondary copy is whole and is used";
    assert!(lines.iter().any(|line| line == warning), "{lines:?}");
    // No primary copy at all, and the secondary one elsewhere than the primary would say.
    let mut disk = luks2(512, &good);
    disk[..32 << 10].fill(0);
    put(&mut disk, 32 << 10, &header(b"SKUL\xba\xbe", 32 << 10, 3, &good));
    assert!(read(&serve(disk, "plain").connect().unwrap(), 0, 9) == content()[..9]);
    // The secondary copy is newer: the primary one speaks of a slot that nothing opens.
    let mut disk = luks2(512, &good.replace("\"iterations\":2000", "\"iterations\":2001"));
    put(&mut disk, 16 << 10, &header(b"SKUL\xba\xbe", 16 << 10, 4, &good));
    assert!(serve(disk, "plain").connect().is_ok());
    let mut disk = luks2(512, &good);
    (disk[5000], disk[5000 + (16 << 10)]) = (0, 0);
    assert_eq!(refused(disk).1, "error: the header is damaged: its checksum is wrong");
}

#[test]
fn what_cannot_be_used_is_one_line() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut disk = luks1(&["plain"]);
        put(&mut disk, at, bytes);
        disk
    };
    let with_kdf = |kdf: &str| luks2(512, &metadata(512, kdf).replace("\"7\":", "\"8\":"));
    let without = |from: &str, to: &str| luks2(512, &metadata(512, PBKDF2).replace(from, to));
    for (disk, line) in [
        (vec![0; 4096], "the disk has no LUKS header"),
        (vec![0; 100], "the disk has no LUKS header: it has only 100 bytes"),
        (changed(7, &[3]), "version 3 is not known: this filter reads LUKS1 and LUKS2"),
        (
            changed(8, b"serpent"),
            "the cipher serpent-xts-plain64 is not supported: only AES in the modes XTS and CBC is",
        ),
        (changed(108, &[0, 0, 0, 48]), "the header is damaged: aes-xts-plain64 has no keys of 384 bits"),
        (
            changed(72, b"whirlpool"),
            "key slot 0 uses the hash whirlpool or the cipher aes-xts-plain64, which is not supported",
        ),
        (changed(104, &[0; 4]), "the header belongs to a disk elsewhere (it is a detached header)"),
        (changed(208, &[1]), "the header is damaged: key slot 0 is neither used nor unused"),
        (
            changed(212, &[255; 4]),
            "key slot 0 asks for 4294967295 iterations of PBKDF2: that is more than is allowed, or none",
        ),
        (changed(252, &[255; 4]), "the header is damaged: the key material of slot 0 is not within the header"),
        (changed(4096, &[1]), "the passphrase does not open key slot 0, which is the only one"),
        (
            with_kdf(r#"{"type":"argon2id","time":4,"memory":4194304,"cpus":4,"salt":"SALT"}"#),
            "key slot 1 asks for 4096 MiB of memory for Argon2: that is more than the limit key-memory (--filter-limit \
             luks:key-memory=SIZE), or than is free",
        ),
        (
            with_kdf(r#"{"type":"argon2i","time":4294967295,"memory":1024,"cpus":4,"salt":"SALT"}"#),
            "key slot 1 asks for 4294967295 passes over 1024 KiB in 4 lanes of Argon2: that is more than is allowed, \
             or not enough",
        ),
        (with_kdf(r#"{"type":"scrypt"}"#), "the key of slot 1 is derived in an unknown way"),
        (without("\"crypt\"", "\"linear\""), "its segment is not encrypted with dm-crypt"),
        (
            without("\"config\":{", "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt\"]},"),
            "it requires online-reencrypt, which this filter does not have",
        ),
        (without("\"sector_size\":512", "\"sector_size\":777"), "the header is damaged: its sectors have 777 bytes"),
        (
            without("\"dynamic\"", "\"1048576\""),
            "the header is damaged: it has 1048576 bytes of data, and the disk has \
                                                room for 65536",
        ),
    ] {
        assert_eq!(refused(disk).1, format!("error: {line}"));
    }
}

/// A small seeded generator.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn damaged_headers_never_panic() {
    let mut state = 0x10c5;
    let good = metadata(512, PBKDF2);
    for round in 0..400 {
        let mut disk = if round % 2 == 0 { luks1(&["plain"]) } else { luks2(512, &good) };
        let mut text = good.clone().into_bytes();
        for _ in 0..1 + random(&mut state) % 3 {
            let at = random(&mut state) as usize;
            let byte = random(&mut state) as u8;
            match round % 4 {
                0 | 2 => disk[at % 592] = byte,
                1 => disk[at % 600] = byte,
                _ => {
                    let at = at % text.len();
                    text[at] = if byte < 128 { b"0123456789\"{}[],:-e"[byte as usize % 19] } else { byte };
                }
            }
        }
        if round % 4 == 3 {
            let text = String::from_utf8_lossy(&text);
            put(&mut disk, 0, &header(b"LUKS\xba\xbe", 0, 5, &text));
        }
        let host = serve(disk, "plain");
        if let Ok(client) = host.connect() {
            let _ = client.pread(0, 100);
        } else {
            assert!(host.take_log().iter().all(|line| line.len() < 300 && !line.contains('\n')));
        }
    }
}
