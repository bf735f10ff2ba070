//! The options of TLS, what is wrong with them, and what `--run` and `--print-uri` say.

use rbdkit_tests::server::program;
use rbdkit_tests::{Launch, TempDir, tool};

use crate::pki::{Keys, Pki};

/// How a start fails.
fn refused(arguments: &[&str]) -> String {
    match Launch::new(arguments).args(["null", "1M"]).try_start() {
        Ok(_) => panic!("{arguments:?} starts"),
        Err(outcome) => outcome.stderr,
    }
}

#[test]
fn mistakes_are_one_line_that_says_where() {
    let (pki, empty) = (Pki::new(), TempDir::new());
    let home = empty.path().to_str().unwrap();
    let odd = empty.file("odd.psk", b"# a comment\nalice:00112233445566778899aabbccddeeff\nbob;0011\n");
    let odd = format!("--tls-psk={}", odd.display());
    std::fs::write(pki.file("server-key.pem"), std::fs::read(pki.file("client-key.pem")).unwrap()).unwrap();
    for (arguments, message) in [
        (&["--tls=perhaps"][..], "--tls=perhaps: is not one of off, on, require"),
        (&["--tls=on", &format!("--tls-certificates={home}")], "server-cert.pem: No such file or directory"),
        (&["--tls-certificates=/nonexistent"], "TLS: /nonexistent: No such file or directory"),
        (&[&pki.option()], "server-cert.pem and server-key.pem: "),
        (&[&odd], "odd.psk: line 3: is not USER:KEY"),
        (&["--tls-psk=/nonexistent"], "--tls-psk: /nonexistent: No such file or directory"),
        (&["--tls-priority=NORMAL:+VERS-TLS1.0"], "--tls-priority: '+VERS-TLS1.0' has no counterpart here"),
        (&["--tls-priority=@SYSTEM"], "--tls-priority: '@SYSTEM' names a file"),
        (&["--tls-priority=NORMAL:-VERS-ALL"], "--tls-priority: leaves no version of TLS"),
    ] {
        let said = refused(arguments);
        assert!(said.contains(message) && said.lines().count() == 1, "{arguments:?}: {said}");
    }
    let keys = Keys::new();
    let no_cipher = ["--tls-priority=SECURE256:-CHACHA20-POLY1305:-VERS-TLS1.2", &keys.option()];
    assert!(refused(&no_cipher).contains("leaves no cipher for pre-shared keys"));
}

#[test]
fn run_and_print_uri_have_what_a_client_needs() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    let run = |arguments: &[&str], command: &str| {
        let all = [arguments, &["-U", "-", "memory", "2M", "--run", command]].concat();
        tool(program().to_str().unwrap(), all).ok()
    };
    let command = r#"echo "$tls"; nbdinfo --size "$uri""#;
    assert_eq!(run(&["--tls=require", &pki.option()], command), "2\n2097152\n");
    // The only user of the file is named.
    assert_eq!(run(&["--tls=require", &keys.option()], command), "2\n2097152\n");
    // With TLS that is not required the URI is that of a plain client.
    assert_eq!(run(&[&keys.option()], command), "1\n2097152\n");
    assert_eq!(run(&[], r#"echo "${tls-unset}""#), "unset\n");
    let printed = run(&["--tls=require", &keys.option(), "--print-uri"], "true");
    let first = printed.lines().next().unwrap();
    assert!(first.starts_with("nbds+unix://alice@/?socket="), "{printed}");
    assert!(first.ends_with(&format!("&tls-psk-file={}", keys.path().display())), "{printed}");
}

#[test]
fn the_secrets_are_written_only_where_sslkeylogfile_says() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    for (option, uri, label) in
        [(pki.option(), None, "SERVER_TRAFFIC_SECRET_0 "), (keys.option(), Some(()), "SERVER_TRAFFIC_SECRET_0 ")]
    {
        let directory = TempDir::new();
        let log = directory.join("secrets");
        let launch = Launch::new(["--tls=require", &option, "memory", "1M"]);
        // The server is confined when it writes.
        let server = launch.env("SSLKEYLOGFILE", &log).start();
        let uri = match uri {
            None => pki.uri(server.socket()),
            Some(()) => keys.uri("alice", server.socket()),
        };
        tool("nbdinfo", ["--size", &uri]).ok();
        let secrets = std::fs::read_to_string(&log).unwrap();
        assert!(secrets.contains(label), "{secrets}");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
