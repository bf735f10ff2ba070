//! What lets us in: passwords, headers, cookies, and the scripts that print them.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

fn file(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn user_password_cookie_header_and_agent_are_sent() {
    let server = plain();
    let dir = tempfile::tempdir().unwrap();
    let password = file(&dir, "password", "geheim\nsecond line\n");
    let password = format!("+{}", password.display());
    let plugin = plugin_for(
        &server,
        &[
            ("user", "ich"),
            ("password", &password),
            ("cookie", "a=1; b=2"),
            ("header", "X-One: 1"),
            ("header", "X-Empty;"),
            ("header", "Accept:"),
            ("user-agent", "tests/1"),
        ],
    );
    run(reads_right(&plugin));
    for head in server.heads() {
        for line in
            ["Authorization: Basic aWNoOmdlaGVpbQ==", "Cookie: a=1; b=2", "X-One: 1", "X-Empty:", "User-Agent: tests/1"]
        {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is not in\n{head}");
        }
        assert!(!head.contains("Accept:"), "{head}");
    }
    let bare = plain();
    run(reads_right(&plugin_for(&bare, &[])));
    assert!(!bare.heads()[0].contains("User-Agent"), "{:?}", bare.heads());
}

#[test]
fn a_password_comes_from_a_descriptor() {
    use std::os::fd::AsRawFd;
    let server = plain();
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::open(file(&dir, "password", "geheim")).unwrap();
    let plugin = plugin_for(&server, &[("user", "ich"), ("password", &format!("-{}", file.as_raw_fd()))]);
    run(reads_right(&plugin));
    assert!(server.heads()[0].contains("aWNoOmdlaGVpbQ=="));
}

#[test]
fn scripts_run_once_then_when_they_are_old_and_when_the_server_refuses() {
    let server = server(Rules { require: Some("Cookie: token=0".into()), ..Rules::default() });
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let script = format!(r#"echo "$url" >>{}; echo "token=$iteration""#, runs.display());
    let plugin =
        plugin_for(&server, &[("cookie-script", &script), ("header-script", "echo 'X-It: '$iteration; echo X-B: b")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        let head = server.heads().pop().unwrap();
        assert!(head.contains("X-It: 0\r\nX-B: b\r\n"), "{head}");
        // The cookie expires: many requests meet that at the same time, and one run of the script
        // is enough for all.
        server.change(|rules| rules.require = Some("Cookie: token=1".into()));
        let reads: Vec<_> = (0..8)
            .map(|n| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move { read(&*handle, n * 512, 512).await })
            })
            .collect();
        for task in reads {
            task.await.unwrap().unwrap();
        }
        // One that does not help is an error, not an endless loop.
        server.change(|rules| rules.require = Some("Cookie: token=never".into()));
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains("the server answers 401"), "{error}");
    });
    assert_eq!(fs::read_to_string(runs).unwrap(), format!("{}\n", url(&server)).repeat(3));
}

#[test]
fn a_script_is_run_again_when_its_output_is_old() {
    let server = plain();
    let plugin = plugin_for(&server, &[("header-script", "echo X-It: $iteration"), ("header-script-renew", "1")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        let third_run = async {
            while !server.heads().iter().any(|head| head.contains("X-It: 2\r\n")) {
                read(&*handle, 0, 512).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), third_run).await.expect("the script's third run within 30 s");
    });
}

#[test]
fn a_script_that_fails_fails_the_request_and_says_so() {
    let server = plain();
    let error = run(refused(&plugin_for(&server, &[("cookie-script", "exit 3")])));
    assert_eq!(error, "curl: GET of the first byte: cookie-script: the script failed (exit status: 3) (EIO)");
    assert_eq!(server.counts().requests, 0);
}

#[test]
fn cookies_of_the_server_are_kept_by_all_transfers_and_written_back() {
    let server = server(Rules { set_cookie: Some("session=42; Path=/; Max-Age=1000".into()), ..Rules::default() });
    let dir = tempfile::tempdir().unwrap();
    let jar = dir.path().join("jar");
    let plugin = plugin_for(&server, &[("cookiejar", jar.to_str().unwrap())]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.change(|rules| rules.delay = Duration::from_millis(50));
        let reads: Vec<_> = (0..8)
            .map(|n| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move { read(&*handle, n * 512, 512).await })
            })
            .collect();
        for task in reads {
            task.await.unwrap().unwrap();
        }
        handle.close().await;
    });
    assert!(server.heads()[1..].iter().all(|head| head.contains("Cookie: session=42\r\n")), "{:?}", server.heads());
    assert!(fs::read_to_string(&jar).unwrap().contains("session\t42"));
    // Another process begins with them.
    server.reset_counts();
    let before = server.heads().len();
    run(reads_right(&plugin_for(&server, &[("cookiefile", jar.to_str().unwrap())])));
    assert!(server.heads()[before].contains("Cookie: session=42\r\n"), "{}", server.heads()[before]);
}

#[test]
fn without_cookie_parameters_the_servers_cookies_are_ignored() {
    let server = server(Rules { set_cookie: Some("session=42".into()), ..Rules::default() });
    run(reads_right(&plugin_for(&server, &[])));
    assert!(server.heads().iter().all(|head| !head.contains("Cookie:")), "{:?}", server.heads());
}
