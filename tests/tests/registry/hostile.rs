//! A registry that lies. Each lie is one line for the user, and loses nothing: the file that was
//! there before stays, and nothing wrong is kept in the cache.

use std::process::{Command, Stdio};
use std::time::Instant;

use rbdkit_slow_server::Identity;
use rbdkit_tests::server::{children, program};
use rbdkit_tests::wait::{self, Lines};

use crate::Place;
use crate::fake::{COMPONENT, Fake, MANIFEST, Reply, digest, manifest, reply, with_manifest};

/// Pulls from the registry, which has to fail. Returns why, without the reference and the host.
fn lie(fake: &Fake) -> String {
    lie_in(&Place::new(), fake, &fake.reference(), "120")
}

fn lie_in(place: &Place, fake: &Fake, reference: &str, timeout: &str) -> String {
    place.file("old.wasm", b"old");
    let line = place.refused(&["pull", "--timeout", timeout, "-o", "old.wasm", reference]);
    assert_eq!(std::fs::read(place.path("old.wasm")).unwrap(), b"old", "{line}");
    let left = std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let temporary: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(temporary.is_empty(), "{temporary:?}");
    if let Ok(entries) = std::fs::read_dir(place.path("cache/rbdkit")) {
        let kept: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert!(kept.is_empty(), "{line}: {kept:?}");
    }
    let line = line.replace(&fake.host(), "HOST").replace(&fake.reference(), "oci://HOST/x:1");
    let why = line.strip_prefix("cannot pull oci://HOST/x:1").unwrap_or_else(|| panic!("{line}"));
    let why = why.split_once(": ").unwrap_or_else(|| panic!("{line}")).1;
    why.strip_prefix("HOST ").unwrap_or(why).to_owned()
}

/// A lie about the manifest.
fn manifest_is(answer: impl Fn() -> Reply + Send + Sync + 'static) -> String {
    lie(&Fake::lying(move |of_manifest| of_manifest.then(&answer)))
}

/// A lie about the component.
fn component_is(answer: impl Fn() -> Reply + Send + Sync + 'static) -> String {
    lie(&Fake::lying(move |of_manifest| (!of_manifest).then(&answer)))
}

fn redirect(to: &str) -> Reply {
    reply("307 Temporary Redirect", &format!("Location: {to}\r\n"), b"")
}

fn announcing(length: u64, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn the_registry_of_these_tests_is_believed_if_it_does_not_lie() {
    let (place, fake) = (Place::new(), Fake::lying(|_| None));
    place.ok(&["pull", &fake.reference()]);
    assert_eq!(std::fs::read(place.path("x.wasm")).unwrap(), COMPONENT);
}

#[test]
fn an_answer_that_ends_before_its_length_is_no_answer() {
    let line = component_is(|| Reply::Whole(announcing(11, b"a comp")));
    assert_eq!(line, "ends the connection after 6 bytes, before the answer is whole");
}

#[test]
fn an_answer_that_is_shorter_than_the_manifest_says_is_refused() {
    let line = component_is(|| Reply::Whole(announcing(6, b"a component")));
    assert_eq!(line, "sends 6 bytes where the manifest says 11");
}

#[test]
fn a_component_that_is_longer_than_the_manifest_says_is_refused() {
    let line = component_is(|| reply("200 OK", "", b"a component and more"));
    assert_eq!(line, "sends more than 11 bytes");
}

#[test]
fn a_component_without_end_is_not_read_to_the_end() {
    let line = component_is(|| Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()));
    assert_eq!(line, "sends more than 65536 bytes");
}

#[test]
fn a_component_with_another_digest_is_refused() {
    let line = component_is(|| reply("200 OK", "", b"a comPonent"));
    let (found, right) = (digest(b"a comPonent"), digest(COMPONENT));
    assert_eq!(line, format!("sends {found} where the manifest says {right}"));
}

#[test]
fn a_component_that_is_not_there_is_named() {
    let line = component_is(|| reply("404 Not Found", "", b""));
    assert_eq!(line, format!("does not have the blob {} that the manifest names", digest(COMPONENT)));
}

#[test]
fn a_component_of_more_than_64_mib_is_not_asked_for() {
    let fake = Fake::lying(|of_manifest| of_manifest.then(|| with_manifest(&manifest().replace(":11}", ":67108865}"))));
    assert_eq!(lie(&fake), "the component has 67108865 bytes, and 67108864 are allowed");
    assert!(fake.heads().iter().all(|head| !head.contains("/blobs/")));
}

#[test]
fn a_manifest_of_a_gibibyte_is_not_read() {
    let line = manifest_is(|| Reply::Endless(announcing(1 << 30, b"")));
    assert_eq!(line, "sends more than 1048576 bytes");
}

#[test]
fn an_index_is_not_followed() {
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json\r\n";
    let line = manifest_is(move || reply("200 OK", kind, br#"{"schemaVersion":2,"manifests":[]}"#));
    let index = "'application/vnd.oci.image.index.v1+json'";
    assert_eq!(line, format!("answers with {index} where the manifest of a component should be"));
    let line = manifest_is(|| with_manifest(&manifest().replace("image.manifest.v1", "image.index.v1")));
    assert_eq!(line, "it is an index of several images, not a component");
}

#[test]
fn something_else_than_a_component_is_named() {
    let line = manifest_is(|| reply("200 OK", "Content-Type: text/html\r\n", b"<html>"));
    assert_eq!(line, "answers with 'text/html' where the manifest of a component should be");
    let line = manifest_is(|| with_manifest("<html>"));
    assert_eq!(line, "the manifest is damaged: expected value at line 1 column 1");
    let line = manifest_is(|| with_manifest(&manifest().replace("vnd.wasm.config.v0", "vnd.oci.image.config.v1")));
    let kind = "'application/vnd.oci.image.config.v1+json'";
    assert_eq!(line, format!("it is not a component: its configuration is of the type {kind}"));
    let line = manifest_is(|| with_manifest(&manifest().replace("application/wasm", "application/x\\u001b[2J")));
    assert_eq!(line, "it is not a component: its layer is of the type 'application/x\\u{1b}[2J'");
}

#[test]
fn a_digest_in_the_head_that_is_not_the_contents_is_refused() {
    let other = digest(b"another");
    let headers = format!("Content-Type: {MANIFEST}\r\nDocker-Content-Digest: {other}\r\n");
    let line = manifest_is(move || reply("200 OK", &headers, manifest().as_bytes()));
    let found = digest(manifest().as_bytes());
    assert_eq!(line, format!("HOST says that the manifest is {other}, and sends {found}").replacen("HOST ", "", 1));
}

#[test]
fn another_manifest_than_the_pinned_one_is_refused() {
    let fake = Fake::lying(|_| None);
    let pinned = digest(b"pinned");
    let line = lie_in(&Place::new(), &fake, &format!("{}@{pinned}", fake.reference()), "120");
    assert_eq!(line, format!("sends {} where {pinned} was asked for", digest(manifest().as_bytes())));
}

#[test]
fn compressed_answers_are_not_unpacked() {
    let line = component_is(|| reply("200 OK", "Content-Encoding: gzip\r\n", b"a component"));
    assert_eq!(line, "sends it compressed (gzip), which nobody asked for");
}

#[test]
fn redirects_end() {
    let fake = Fake::start(redirect);
    assert_eq!(lie(&fake), "redirects more than 5 times");
    // What needed the credentials would not have been sent again and again either.
    assert_eq!(fake.heads().len(), 6);
}

#[test]
fn redirects_lead_neither_to_files_nor_to_other_machines_without_tls() {
    for (to, why) in [
        ("file:///etc/passwd", "redirects to 'file:///etc/passwd', which is neither https nor http"),
        ("gopher://127.0.0.1/", "redirects to 'gopher://127.0.0.1/', which is neither https nor http"),
        ("http://example.com/x", "redirects to plain http on another machine, example.com"),
        ("http://me@127.0.0.1/", "redirects to 'http://me@127.0.0.1/', which is not an address"),
        ("relative", "redirects to 'relative', which is not an address"),
    ] {
        assert_eq!(component_is(move || redirect(to)), why);
    }
    assert_eq!(component_is(|| reply("302 Found", "", b"")), "redirects to nowhere");
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_server() {
    let storage = Fake::start(|_| reply("200 OK", "", COMPONENT));
    let to = format!("http://{}/stored", storage.host());
    let asks = "WWW-Authenticate: Basic realm=\"x\"\r\n";
    let fake = Fake::start(move |path| match path {
        path if path.contains("/blobs/") => redirect(&to),
        _ => reply("401 Unauthorized", asks, b""),
    });
    let place = Place::new();
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "bWU6Z2VoZWlt"}}}}}}"#, fake.host());
    place.file("docker/config.json", config.as_bytes());
    // Who refuses good credentials is not asked again and again.
    let line = lie_in(&place, &fake, &fake.reference(), "120");
    assert_eq!(line, "answers 401; the credentials in docker's config.json do not suffice");
    let heads = fake.heads();
    assert!(heads.len() == 2 && heads[1].contains("\r\nAuthorization: Basic bWU6Z2VoZWlt\r\n"), "{heads:?}");

    let to = format!("http://{}/stored", storage.host());
    let once = std::sync::atomic::AtomicBool::new(false);
    let fake = Fake::start(move |path| match path {
        path if path.contains("/blobs/") => redirect(&to),
        _ if once.swap(true, std::sync::atomic::Ordering::Relaxed) => with_manifest(&manifest()),
        _ => reply("401 Unauthorized", asks, b""),
    });
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "bWU6Z2VoZWlt"}}}}}}"#, fake.host());
    place.file("docker/config.json", config.as_bytes());
    place.ok(&["pull", &fake.reference()]);
    assert!(fake.heads().iter().any(|head| head.contains("/blobs/") && head.contains("Authorization")));
    let heads = storage.heads();
    assert!(heads.len() == 1 && !heads[0].contains("Authorization"), "{heads:?}");
}

#[test]
fn tokens_are_not_got_from_anywhere() {
    let asking = |realm: &str| {
        let asks = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n");
        manifest_is(move || reply("401 Unauthorized", &asks, b""))
    };
    assert_eq!(asking("file:///etc/passwd"), "names a place for tokens which is neither https nor http");
    assert_eq!(asking("http://example.com/token"), "wants tokens from example.com by plain http");
    let asks = "WWW-Authenticate: Bearer realm=\"/token\"\r\n";
    for body in ["", "{}", "{\"token\":\"a\\r\\nb\"}"] {
        let fake = Fake::start(move |path| match path.starts_with("/token?scope=repository%3Ax%3Apull") {
            true => reply("200 OK", "", body.as_bytes()),
            false => reply("401 Unauthorized", asks, b""),
        });
        assert_eq!(lie(&fake), "answers without a token");
    }
}

#[test]
fn header_lines_without_end_are_not_read_to_the_end() {
    let many = "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(2000);
    let line = manifest_is(move || reply("200 OK", &many, b""));
    assert_eq!(line, "sends more than 64 KiB of header lines");
}

#[test]
fn a_registrys_words_are_shown_escaped_and_short() {
    let long = "y".repeat(10_000);
    let page = format!(r#"{{"errors":[{{"code":"\u001b[31mEVIL\nline","message":"{long}"}}]}}"#);
    let line = manifest_is(move || reply("500 No", "", page.as_bytes()));
    assert!(line.starts_with("answers 500: yyyy") && line.ends_with("... (\\u{1b}[31mEVIL\\nline)"), "{line}");
    assert_eq!(manifest_is(|| reply("503 No", "", b"not JSON")), "answers 503");
}

#[test]
fn what_is_no_http_is_named() {
    let line = manifest_is(|| Reply::Whole(b"SSH-2.0-x\r\n".to_vec()));
    assert!(line.starts_with("cannot be reached: "), "{line}");
}

#[test]
fn a_registry_that_drips_does_not_hold_us_beyond_the_deadline() {
    let fake = Fake::lying(|of_manifest| of_manifest.then(|| Reply::Drip(announcing(1 << 20, b"{"))));
    let began = Instant::now();
    let line = lie_in(&Place::new(), &fake, &fake.reference(), "1");
    assert_eq!(line, "takes too long");
    // It would drip for hours.
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

/// Whatever a registry does to libcurl or the TLS library, it does it there.
#[test]
fn the_process_that_talks_to_a_registry_can_do_little() {
    let place = Place::new();
    let fake = Fake::lying(|of_manifest| of_manifest.then(|| Reply::Drip(announcing(1 << 20, b"{"))));
    let mut tool = Command::new(program().with_file_name("rbdkit-filter"))
        .args(["pull", &fake.reference()])
        .current_dir(place.path(""))
        .env("XDG_CACHE_HOME", place.path("cache"))
        .env("DOCKER_CONFIG", place.path("docker"))
        .env("SECRET", "geheim")
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool starts");
    wait::until("the registry was asked", || !fake.heads().is_empty());
    let children = children(tool.id());
    let [child] = children[..] else { panic!("{children:?}") };
    let of_child = |what: &str| std::fs::read_to_string(format!("/proc/{child}/{what}")).expect("readable");
    let (status, limits, environment) = (of_child("status"), of_child("limits"), of_child("environ"));
    for part in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
        assert!(status.contains(part), "{part:?}: {status}");
    }
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().next().expect("a value").to_owned()
    };
    let limits = ["Max cpu time", "Max file size", "Max address space", "Max open files"].map(limit);
    assert_eq!(limits, ["60", "0", "1073741824", "64"]);
    assert!(!environment.contains("geheim") && !environment.contains("HOME"), "{environment:?}");
    tool.kill().expect("it runs");
    let _ = wait::finish(wait::TIMEOUT, "the tool ends", tool);
    // It does not outlive the tool, although the registry goes on.
    wait::until("the child ends", || !std::path::Path::new(&format!("/proc/{child}")).exists());
}

/// `openssl s_server -HTTP` answers with files that have the head of an answer in them.
#[test]
fn https_does_not_become_http() {
    let place = Place::new();
    Identity::create(&place.path(""), "localhost").expect("a certificate");
    std::fs::create_dir_all(place.path("www/v2/x/manifests")).unwrap();
    let head = "HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/x\r\n\r\n";
    place.file("www/v2/x/manifests/1", head.as_bytes());
    let mut server = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-cert", "../localhost.pem", "-key", "../localhost.key"])
        .current_dir(place.path("www"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl starts");
    let lines = Lines::of(server.stdout.take().expect("a pipe"));
    let host = loop {
        let line = lines.next("the server listens").expect("the server goes on");
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    let line = place.refused(&["pull", &format!("oci://{host}/x:1")]);
    assert!(line.ends_with("redirects from https to http, to 127.0.0.1:1"), "{line}");
    // A certificate that is not trusted is no reason to do without TLS.
    std::fs::remove_file(place.path("localhost.pem")).unwrap();
    let line = place.refused(&["pull", &format!("oci://{host}/x:1")]);
    assert!(line.contains("cannot be reached: ") && line.contains("certificate"), "{line}");
    let _ = server.kill();
    let _ = wait::finish(wait::TIMEOUT, "the server ends", server);
}
