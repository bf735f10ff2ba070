//! Help, versions and dumps.

use std::process::Command;

use crate::support::{PROGRAM, TempDir, outcome, run, words};

fn printed(line: &str) -> String {
    let outcome = run(&TempDir::new(), &words(line));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{line}");
    outcome.stdout
}

#[test]
fn help_lists_options_plugins_and_filters() {
    let help = printed("--help");
    for expected in ["-U, --unix=SOCKET", "--wasm-filter=FILE[@sha256:HEX]", "\n  memory ", "\nFilters: "] {
        assert!(help.contains(expected), "{expected}");
    }
    assert_eq!(help, printed("-h"));
    assert!(help.lines().all(|line| line.len() <= 120), "lines fit a wide terminal");
}

#[test]
fn help_of_a_plugin_lists_its_parameters() {
    for line in ["memory --help", "--help memory"] {
        let help = printed(line);
        assert!(help.contains("\nplugin: memory ("), "{help}");
        assert!(help.contains("\n[size=]SIZE"), "{help}");
    }
}

#[test]
fn every_option_of_nbdkit_is_known() {
    let ours = printed("--long-options");
    let ours: Vec<&str> = ours.lines().collect();
    // Newer than Debian's nbdkit.
    for name in ["keepalive", "name", "no-mc", "no-meta-contexts", "no-structured-replies", "print-uri", "timeout"] {
        assert!(ours.contains(&&*format!("--{name}")), "{name}");
    }
    let Ok(output) = Command::new("nbdkit").arg("--long-options").output() else {
        eprintln!("skipped: nbdkit is not installed");
        return;
    };
    for option in String::from_utf8(output.stdout).unwrap().lines() {
        assert!(ours.contains(&option), "{option}");
    }
    let short = printed("--short-options");
    for option in
        String::from_utf8(Command::new("nbdkit").arg("--short-options").output().unwrap().stdout).unwrap().lines()
    {
        assert!(short.lines().any(|ours| ours == option), "{option}");
    }
}

#[test]
fn every_key_of_nbdkits_configuration_is_there() {
    let Ok(output) = Command::new("nbdkit").arg("--dump-config").output() else {
        eprintln!("skipped: nbdkit is not installed");
        return;
    };
    let ours = printed("--dump-config");
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let key = &line[..=line.find('=').unwrap()];
        assert!(ours.lines().any(|ours| ours.starts_with(key)), "{key}");
    }
    let value = |key: &str| ours.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let binary = std::path::Path::new(PROGRAM);
    assert_eq!(std::fs::canonicalize(value("binary")).unwrap(), std::fs::canonicalize(binary).unwrap());
    for key in ["bindir", "sbindir", "filterdir"] {
        assert!(std::path::Path::new(value(key)).join("rbdkit").exists(), "{key}={}", value(key));
    }
    for key in ["libdir", "mandir", "plugindir", "sysconfdir", "root_tls_certificates_dir"] {
        assert!(value(key).starts_with('/'), "{key}={}", value(key));
    }
    for expected in [
        "version_major=1",
        "version_minor=46",
        "run_default_socket=unix",
        "vsock=yes",
        "exit_with_parent=yes",
        "max_api_version=2",
        "name=rbdkit",
        "selinux=yes",
        "soext=so",
        "timeout_option=yes",
        "tls=yes",
    ] {
        assert!(ours.lines().any(|ours| ours == expected), "{expected}");
    }
    assert!(ours.contains(&format!("rbdkit_version={}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_plugin_is_dumped_with_nbdkits_keys() {
    for line in ["memory --dump-plugin", "--dump-plugin memory 1M"] {
        let dump = printed(line);
        for expected in [
            "name=memory",
            "magic_config_key=size",
            "max_thread_model=parallel",
            "thread_model=parallel",
            "api_version=2",
            "struct_size=384",
        ] {
            assert!(dump.lines().any(|ours| ours == expected), "{expected} in {dump}");
        }
    }
    let wrong = run(&TempDir::new(), &["--dump-plugin", "memory", "x=y"]);
    assert_eq!((wrong.status, wrong.stdout.as_str()), (1, ""));
}

#[test]
fn every_key_of_nbdkits_dump_of_a_plugin_is_there() {
    let keys = |dump: &str| -> Vec<String> {
        dump.lines().filter_map(|line| Some(line.split_once('=')?.0.to_string())).collect()
    };
    // About nbdkit's implementation: the size of a C structure, functions of an old interface that
    // have newer equivalents, and the version of a library that is not used here.
    let others = |key: &str| key == "struct_size" || key.starts_with("has__") || key == "libnbd_version";
    for plugin in ["curl", "data", "eval", "file", "memory", "nbd", "null", "pattern", "sh", "ssh"] {
        let dump = printed(&format!("{plugin} --dump-plugin"));
        let ours = keys(&dump);
        let mut sorted = ours.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ours.len(), "a key twice in {dump}");
        for function in ["open", "get_size", "pread", "config"] {
            assert!(dump.contains(&format!("has_{function}=1\n")), "{plugin}: {function}");
        }
        let Ok(output) = Command::new("nbdkit").args([plugin, "--dump-plugin"]).output() else { continue };
        for key in keys(&String::from_utf8(output.stdout).unwrap()) {
            assert!(others(&key) || ours.contains(&key), "{plugin}: {key}");
        }
    }
    for (plugin, line) in [
        ("curl", "curl_protocol_http=yes"),
        ("curl", "curl_protocol_https=yes"),
        ("file", "file_extents=yes"),
        ("null", "errno_is_preserved=1"),
    ] {
        assert!(printed(&format!("--dump-plugin {plugin}")).lines().any(|ours| ours == line), "{plugin}: {line}");
    }
}

#[test]
fn a_dump_names_the_filters_and_their_thread_model_counts() {
    let filter = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/filters/delay.wasm");
    let dump = printed(&format!("--filter=cow --filter={filter} --dump-plugin null"));
    let binary =
        printed("--dump-config").lines().find_map(|line| Some(line.strip_prefix("binary=")?.to_string())).unwrap();
    let paths = [format!("cow_path={binary}"), format!("delay_path={filter}")];
    for line in ["cow_name=cow", "delay_name=delay"].into_iter().chain(paths.iter().map(String::as_str)) {
        assert!(dump.lines().any(|ours| ours == line), "{line} in {dump}");
    }
    assert!(dump.contains("\nthread_model=parallel\n"), "{dump}");
    let refused = run(&TempDir::new(), &["--dump-plugin", "-s", "null"]);
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
}

#[test]
fn version_says_whether_a_plugin_can_be_loaded() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(printed("--version"), format!("rbdkit {version}\n"));
    assert_eq!(printed("-V memory"), format!("rbdkit {version}\nmemory {version}\n"));
    assert_eq!(printed("--exit-with-parent --version"), format!("rbdkit {version}\n"));
    let directory = TempDir::new();
    assert_eq!(run(&directory, &["no-such-plugin", "--version"]).status, 1);
    assert_eq!(run(&directory, &["null", "--filter=no-such-filter", "--version"]).status, 1);
}

#[test]
fn as_nbdkit_it_says_which_nbdkit_it_stands_for() {
    let directory = TempDir::new();
    let link = directory.join("nbdkit");
    std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
    let printed = |args: &[&str]| outcome(Command::new(&link).args(args)).stdout;
    let version = format!("nbdkit 1.46.0 (rbdkit {})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed(&["--version"]), version);
    assert_eq!(printed(&["memory", "--version"]), format!("{version}memory 1.46.0\n"));
    assert!(printed(&["memory", "--dump-plugin"]).contains("\nversion=1.46.0\n"));
    assert!(printed(&["--dump-config"]).contains("\nname=nbdkit\n"));
}

#[test]
fn a_filter_says_what_it_is_under_any_limit_on_memory() {
    for asked in ["--help", "--version", "--dump-plugin"] {
        assert_ne!(printed(&format!("--filter=cow --filter-limit memory-all=1k null {asked}")), "", "{asked}");
    }
}

/// Every option that a page of the documentation mentions exists.
#[test]
fn documented_options_exist() {
    let ours = printed("--long-options");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let plugins =
        std::fs::read_dir(format!("{root}/plugins")).unwrap().map(|entry| entry.unwrap().path().join("README.md"));
    for page in plugins.chain(["README.md", "SECURITY.md"].map(|name| format!("{root}/{name}").into())) {
        let Ok(text) = std::fs::read_to_string(&page) else { continue };
        // Only command lines of the program itself, because other programs have other options.
        for line in text.lines().filter(|line| line.trim_start().starts_with("rbdkit ")) {
            let line = line.split(['#', '\'', ';']).next().unwrap_or_default();
            for word in line.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
                let name = word.split('=').next().unwrap_or_default();
                assert!(ours.lines().any(|known| known == name), "{}: {name}", page.display());
            }
        }
    }
}
