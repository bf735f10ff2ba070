//! A machine, or a jail, without `/proc`.

use std::path::Path;
use std::process::Command;

use rbdkit_tests::server::program;
use rbdkit_tests::{TempDir, wait};

/// Runs a server with a filter in a mount namespace without `/proc`. None: this user may not.
fn started(cache: &Path) -> Option<(bool, String)> {
    let script = r#"mount -t tmpfs none /proc || exit 99
        exec "$0" -v -U - --filter=cow memory 1M --run 'nbdinfo --size "$uri"'"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script]).arg(program()).env("XDG_CACHE_HOME", cache);
    let output = wait::output(&mut command);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let refused = output.status.code() == Some(99) || text.contains("unshare failed");
    (!refused).then(|| (output.status.success(), text))
}

#[test]
fn filters_start_without_proc_compiled_or_from_the_cache() {
    let cache = TempDir::new();
    let Some((success, text)) = started(cache.path()) else {
        println!("skipped: this user may not make a mount namespace");
        return;
    };
    assert!(success && text.contains("1048576"), "{text}");
    // With /proc the compiled code is kept.
    let mut with_proc = Command::new(program());
    with_proc.args(["-U", "-", "--filter=cow", "memory", "1M", "--run", "true"]).env("XDG_CACHE_HOME", cache.path());
    assert!(wait::output(&mut with_proc).status.success());
    let code = || {
        let names = std::fs::read_dir(cache.join("rbdkit")).expect("the cache").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".code")).count()
    };
    assert_eq!(code(), 1);
    let (success, text) = started(cache.path()).expect("it started before");
    assert!(success && text.contains("1048576"), "{text}");
    assert_eq!(code(), 1);
}
