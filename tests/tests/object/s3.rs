//! S3, by moto's server.

use rbdkit_tests::{Launch, Rng, TempDir, nbdsh, seed, tool, wait};

use crate::proxy::{Fate, Proxy};
use crate::servers::Store;

/// The parameters of a disk of 64 KiB blocks.
const MANY: [&str; 3] = ["s3://bucket/dir/disk", "size=1M", "object-size=64k"];

#[test]
fn one_object_is_read_byte_by_byte_and_a_replaced_one_is_an_error() {
    let store = Store::s3();
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let content = Rng::new(seed).bytes((3 << 20) + 777);
    store.put("dir/disk.img", &content);
    let server = store.rbdkit(&["s3://bucket/dir/disk.img", "-v"]).start();
    server.wait_for_log("confined: ");
    let dir = TempDir::new();
    let copy = dir.join("copy");
    tool("nbdcopy", [server.uri(), copy.to_string_lossy().into_owned()]).ok();
    assert!(std::fs::read(&copy).unwrap() == content);
    let client = server.client();
    assert_eq!(client.size, content.len() as u64);
    store.put("dir/disk.img", &content[1..]);
    nbdsh(&server.uri(), "h.connect_uri(uri)\nassert h.get_size() == 3 * 2**20 + 776").ok();
    let outcome = server.stop();
    assert!(outcome.status.success());
    assert!(!outcome.stderr.contains("hush-hush"), "{}", outcome.stderr);
}

#[test]
fn many_objects_are_written_zeroed_and_trimmed_and_holes_are_told() {
    let store = Store::s3();
    let server = store.rbdkit(&MANY).start();
    let mut client = server.client();
    assert_eq!((client.size, client.read(0, 1 << 20).expect("a read")), (1 << 20, vec![0; 1 << 20]));
    assert_eq!(store.get("dir/disk/generation"), None, "reading takes no generation");
    client.write(64 << 10, &[1; 128 << 10]).expect("a write");
    client.write((1 << 20) - 5, &[2; 5]).expect("a write of a part");
    client.flush().expect("a flush");
    let said = String::from_utf8(store.get("dir/disk/generation").expect("a generation")).expect("text");
    assert!(said.starts_with("rbdkit object disk\ngeneration 1\nobject-size 65536\nwriter host "), "{said}");
    assert_eq!(store.get("dir/disk/0000000000000001"), Some(vec![1; 64 << 10]));
    assert_eq!(store.get("dir/disk/000000000000000f").map(|object| object.len()), Some(64 << 10));
    let map = tool("nbdinfo", ["--map", &server.uri()]).ok();
    let map: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        map,
        [["0", "65536", "3"], ["65536", "131072", "0"], ["196608", "786432", "3"], ["983040", "65536", "0"]]
    );
    client.zero(64 << 10, 64 << 10, 0).expect("a zero");
    client.trim(100 << 10, 128 << 10).expect("a trim");
    let present: Vec<u64> = (0..16).filter(|block| store.get(&format!("dir/disk/{block:016x}")).is_some()).collect();
    assert_eq!(present, [15]);
    assert_eq!(client.read((1 << 20) - 10, 10).expect("a read"), [0, 0, 0, 0, 0, 2, 2, 2, 2, 2]);
}

#[test]
fn of_two_servers_the_older_one_says_who_the_newer_is() {
    let store = Store::s3();
    let (old, new) = (store.rbdkit(&MANY).start(), store.rbdkit(&MANY).start());
    let (mut old_client, mut new_client) = (old.client(), new.client());
    old_client.write(0, &[1; 128 << 10]).expect("a write");
    new_client.write(5, &[2; 10]).expect("a write");
    assert_eq!(old_client.write(0, &[3; 64 << 10]), Err(5));
    old.wait_for_log("object: s3://bucket/dir/disk: a newer writer has taken it: generation 2 of host ");
    old.wait_for_log(&format!(" process {}, at ", new.pid()));
    assert_eq!(old_client.flush(), Err(5));
    new_client.flush().expect("a flush");
    let mut expected = [1; 20];
    expected[5..15].fill(2);
    assert_eq!(new_client.read(0, 20).expect("a read"), expected);
}

#[test]
fn a_disk_of_16_tib_opens_at_once_in_little_memory() {
    let store = Store::s3();
    let server = store.rbdkit(&["s3://bucket/huge", "size=16T", "object-size=4M"]).start();
    let begun = std::time::Instant::now();
    let mut client = server.client();
    let opened = begun.elapsed();
    assert_eq!(client.size, 16 << 40);
    client.write((16 << 40) - (4 << 20), &vec![9; 4 << 20]).expect("a write");
    let extents = client.extents(0, u32::MAX - 511, 0).expect("extents");
    println!("opened in {opened:?}, resident: {} MiB, {} extents", server.resident() >> 20, extents.len());
    // The machine may be busy with other tests; alone it takes some milliseconds.
    assert!(opened.as_secs() < 5, "{opened:?}");
    assert!(server.resident() < 64 << 20, "{}", server.resident());
}

#[test]
fn over_tls_the_store_has_to_have_a_certificate_of_the_authority() {
    let (store, authority) = Store::s3_with_tls();
    let endpoint = format!("endpoint-url=https://localhost:{}", store.port);
    let launch = || {
        let launch =
            Launch::new(["object", "s3://bucket/disk", "size=1M", "object-size=64k", "retry-time=1"]).arg(&endpoint);
        launch.env("AWS_ACCESS_KEY_ID", "k").env("AWS_SECRET_ACCESS_KEY", "s")
    };
    let mut curl = std::process::Command::new("curl");
    let bucket = format!("https://localhost:{}/bucket", store.port);
    curl.args(["--silent", "--fail", "-X", "PUT", "--cacert"]).arg(&authority).arg(bucket);
    assert!(wait::output(&mut curl).status.success());
    let server = launch().path("cainfo", &authority).arg("-v").start();
    let mut client = server.client();
    client.write(3, &[5; 200_000]).expect("a write");
    assert_eq!(client.read(3, 200_000).expect("a read"), vec![5; 200_000]);
    let server = launch().start();
    let error = nbdsh(&server.uri(), "h.connect_uri(uri)").fails();
    assert!(error.contains("nbd"), "{error}");
    server.wait_for_log("object: ");
    let said = server.stderr();
    assert!(said.contains("certificate") && said.contains("(tried "), "{said}");
}

#[test]
fn credentials_come_from_the_environment_and_from_profiles_and_are_not_shown() {
    let store = Store::s3();
    store.put("disk", &[7; 512]);
    let dir = TempDir::new();
    let text = "[default]\naws_access_key_id = one\n[two]\naws_access_key_id = two\n\
                aws_secret_access_key = hush-hush\naws_session_token = hush-token\n";
    let file = dir.file("credentials", text.as_bytes());
    let proxy = Proxy::start(store.port, |request| {
        let authorization = request.header("authorization").unwrap_or_default();
        let token = request.header("x-amz-security-token");
        match authorization.starts_with("AWS4-HMAC-SHA256 Credential=two/") && token == Some("hush-token") {
            true => Fate::Answered,
            false => Fate::Refused,
        }
    });
    let endpoint = format!("endpoint-url=http://127.0.0.1:{}", proxy.port);
    let launch = Launch::new(["object", "s3://bucket/disk", "retry-time=1", "-v"]).arg(&endpoint);
    let server = launch.env("AWS_PROFILE", "two").env("AWS_SHARED_CREDENTIALS_FILE", &file).start();
    assert_eq!(server.client().read(0, 512).expect("a read"), [7; 512]);
    let said = server.stop().stderr;
    assert!(!said.contains("hush"), "{said}");
    // By parameters, which come first.
    let launch = Launch::new(["S3", "bucket=bucket", "key=disk", "access-key=two", "secret-key=hush-hush", "-v"]);
    let launch = launch.args(["session_token=hush-token", "retry-time=1"]).arg(endpoint);
    let server = launch.env("AWS_ACCESS_KEY_ID", "other").env("AWS_SECRET_ACCESS_KEY", "other").start();
    assert_eq!(server.client().read(0, 512).expect("a read"), [7; 512]);
    let said = server.stop().stderr;
    assert!(!said.contains("hush"), "{said}");
}

#[test]
fn a_bucket_or_an_object_that_is_not_there_is_said_in_a_line() {
    let store = Store::s3();
    for (url, line) in [
        ("s3://bucket/none", "object: opening s3://bucket/none: there is no such object, or no such bucket"),
        ("s3://nobody/none", "object: opening s3://nobody/none: there is no such object, or no such bucket"),
    ] {
        let server = store.rbdkit(&[url]).start();
        let error = nbdsh(&server.uri(), "h.connect_uri(uri)").fails();
        assert!(error.contains("nbd"), "{error}");
        server.wait_for_log(line);
    }
}
