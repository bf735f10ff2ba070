//! Google Cloud Storage and Azure Blob Storage.

use std::path::PathBuf;
use std::process::Command;

use rbdkit_tests::toolchains::from_npm;
use rbdkit_tests::{Launch, Server, TempDir, wait};

use crate::google::Google;
use crate::servers::Store;

/// The server of Azure Blob Storage.
const AZURITE: &str = "azurite@3.35.0";

/// The account that Azurite has, with a key that everybody knows.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Writes, reads, zeroes and trims a disk of four blocks of 64 KiB, and finds the older of two
/// writers. `present` tells which of its blocks have objects.
fn is_a_disk(start: &dyn Fn() -> Server, present: &dyn Fn() -> Vec<u64>) {
    let server = start();
    let mut client = server.client();
    client.write(1000, &[1; 100_000]).expect("a write");
    client.write(192 << 10, &[2; 64 << 10]).expect("a write");
    client.flush().expect("a flush");
    assert_eq!(present(), [0, 1, 3]);
    let extents = client.extents(0, 256 << 10, 0).expect("extents");
    assert_eq!(extents.len(), 3, "{extents:?}");
    let mut expected = vec![0; 256 << 10];
    expected[1000..101_000].fill(1);
    expected[192 << 10..].fill(2);
    assert!(client.read(0, 256 << 10).expect("a read") == expected);
    client.zero(192 << 10, 64 << 10, 0).expect("a zero");
    client.trim(64 << 10, 128 << 10).expect("a trim");
    assert_eq!(present(), [0]);
    let newer = start();
    newer.client().write(0, &[3; 10]).expect("a write");
    assert_eq!(client.write(2000, &[4; 10]), Err(5));
    server.wait_for_log("a newer writer has taken it: generation 2 of host ");
    expected[..10].fill(3);
    expected[64 << 10..].fill(0);
    assert!(newer.client().read(0, 256 << 10).expect("a read") == expected);
}

fn blocks(names: &[String]) -> Vec<u64> {
    let blocks = names.iter().filter_map(|name| name.strip_prefix("dir/disk/"));
    blocks.filter(|digits| digits.len() == 16).map(|digits| u64::from_str_radix(digits, 16).expect("a block")).collect()
}

#[test]
fn google_cloud_storage_holds_a_disk_under_its_generations() {
    let google = Google::start();
    let dir = TempDir::new();
    let text = format!(
        r#"{{"gcs_base_url": "http://127.0.0.1:{}", "disable_oauth": true,
            "client_email": "", "private_key": "", "private_key_id": ""}}"#,
        google.port
    );
    let credentials = dir.file("key.json", text.as_bytes());
    let endpoint = format!("endpoint-url=http://127.0.0.1:{}", google.port);
    let start = || {
        let launch = Launch::new(["object", "bucket=b", "key=dir/disk", "size=256k", "object-size=64k"]).arg(&endpoint);
        launch.path("json-credentials", &credentials).start()
    };
    is_a_disk(&start, &|| blocks(&google.names()));
    assert!(google.names().contains(&"dir/disk/generation".to_owned()));
}

/// The signature of a request, by openssl.
fn signature(text: &str) -> String {
    let dir = TempDir::new();
    let (text, out) = (dir.file("text", text.as_bytes()), dir.join("out"));
    let script = r#"key=$(printf %s "$0" | base64 -d | od -An -v -tx1 | tr -d ' \n')
        openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary "$1" | base64 -w0 >"$2""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, KEY]).args([&text, &out]);
    assert!(wait::output(&mut command).status.success());
    std::fs::read_to_string(out).expect("a signature")
}

/// Sends a request to Azurite as its account does.
fn azure(store: &Store, method: &str, path: &str, query: &[(&str, &str)]) -> (u16, String) {
    let date = "x-ms-date:Sat, 28 Nov 2026 07:00:00 GMT";
    let resource: String = query.iter().map(|(name, value)| format!("\n{name}:{value}")).collect();
    let text =
        format!("{method}{}{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}{path}{resource}", "\n".repeat(12));
    let authorization = format!("Authorization: SharedKey {ACCOUNT}:{}", signature(&text));
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let address = format!("/{ACCOUNT}{path}?{}", pairs.join("&"));
    let (status, body) = store.request(method, &address, &[date, "x-ms-version: 2021-08-06", &authorization], b"");
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn azure_blob_storage_holds_a_disk_under_its_tags() {
    let azurite: PathBuf = from_npm(AZURITE).join("azurite-blob");
    let store = Store::start(|port, dir| {
        let mut command = Command::new(azurite);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--silent", "--disableTelemetry"]);
        command.args(["--skipApiVersionCheck", "--location"]).arg(dir.path());
        command
    });
    let (status, said) = azure(&store, "PUT", "/disks", &[("restype", "container")]);
    assert_eq!(status, 201, "{said}");
    let endpoint = format!("endpoint-url=http://127.0.0.1:{}/{ACCOUNT}", store.port);
    let start = || {
        let launch = Launch::new(["object", "az://disks/dir/disk", "size=256k", "object-size=64k"]).arg(&endpoint);
        let launch = launch.env("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT).env("AZURE_STORAGE_ACCOUNT_KEY", KEY);
        launch.start()
    };
    let present = || {
        let (status, list) = azure(&store, "GET", "/disks", &[("comp", "list"), ("restype", "container")]);
        assert_eq!(status, 200, "{list}");
        let names = list.split("<Name>").skip(1).filter_map(|rest| rest.split('<').next()).map(str::to_owned);
        blocks(&names.collect::<Vec<_>>())
    };
    is_a_disk(&start, &present);
}
