//! What `make install` installs besides the programs: manual pages, completions, units of systemd
//! and the file of pkg-config.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_tests::server::{program, root};
use rbdkit_tests::tree::{files, read};
use rbdkit_tests::{TempDir, tool};
use rustix::process::{Pid, Signal, kill_process};

/// Another program of the same build.
fn beside(name: &str) -> PathBuf {
    program().with_file_name(name)
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The pages, freshly made.
fn pages() -> TempDir {
    let dir = TempDir::new();
    let mut manual = Command::new(beside("rbdkit-manual"));
    manual.arg(root()).arg(program()).arg(beside("rbdkit-filter")).arg(dir.path());
    stdout(&mut manual);
    dir
}

/// The value of a line `key=value`.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let prefix = format!("{key}=");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no line {prefix} in {text}"))
}

/// A page as somebody reads it.
fn shown(page: &Path) -> String {
    let groff = Command::new("groff").args(["-man", "-Tascii", "-Kutf8", "-P-cbou", "-rLL=200n"]).arg(page).output();
    String::from_utf8_lossy(&groff.expect("groff").stdout).into_owned()
}

#[test]
fn every_plugin_and_filter_has_a_manual_page_without_errors() {
    let dir = pages();
    let config = stdout(Command::new(program()).arg("--dump-config"));
    let mut expected: BTreeSet<String> =
        ["rbdkit.1", "rbdkit-filter.1", "rbdkit-contract.7", "rbdkit-security.7", "rbdkit-writing-filters.7"]
            .map(String::from)
            .into();
    expected.extend(value(&config, "plugins").split(' ').map(|name| format!("rbdkit-{name}-plugin.1")));
    expected.extend(value(&config, "filters").split(' ').map(|name| format!("rbdkit-{name}-filter.1")));
    let made = files(dir.path(), "");
    let names = made.iter().map(|page| page.file_name().unwrap_or_default().to_string_lossy().into_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), expected);
    for page in &made {
        // A long word in a narrow column is no fault.
        let check = Command::new("groff").args(["-man", "-Tutf8", "-Kutf8", "-ww", "-Wbreak", "-z"]).arg(page).output();
        let said = String::from_utf8_lossy(&check.expect("groff").stderr).into_owned();
        assert_eq!(said, "", "{}", page.display());
        assert!(shown(page).lines().count() > 15, "{} is nearly empty", page.display());
    }
}

#[test]
fn the_pages_have_every_option_and_every_parameter_that_the_programs_know() {
    let dir = pages();
    let page = shown(&dir.join("rbdkit.1"));
    for option in stdout(Command::new(program()).arg("--long-options")).lines() {
        assert!(page.contains(option), "rbdkit(1) lacks {option}");
    }
    let tool_page = shown(&dir.join("rbdkit-filter.1"));
    for command in
        ["new", "build", "doctor", "dev", "inspect", "check", "call", "replay", "push", "pull", "keygen", "bench"]
    {
        assert!(tool_page.contains(&format!("RBDKIT-FILTER {}", command.to_uppercase())), "{command}");
        let help = stdout(Command::new(beside("rbdkit-filter")).args([command, "--help"]));
        let words = help.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
        for option in words.filter(|option| *option != "--help") {
            assert!(tool_page.contains(option), "rbdkit-filter(1) lacks {option} of {command}");
        }
    }
    let config = stdout(Command::new(program()).arg("--dump-config"));
    for name in value(&config, "plugins").split(' ') {
        let told = stdout(Command::new(program()).args([name, "--dump-plugin"]));
        let page = shown(&dir.join(&format!("rbdkit-{name}-plugin.1")));
        for key in value(&told, "params").split(' ') {
            assert!(page.contains(key), "rbdkit-{name}-plugin(1) lacks {key}");
        }
    }
    // The contract's page has each of its functions.
    let contract = shown(&dir.join("rbdkit-contract.7"));
    for line in read(&root().join("wit/filter.wit")).lines().filter(|line| line.contains(": func(")) {
        let name = line.trim().split(':').next().unwrap_or_default();
        assert!(contract.contains(name), "rbdkit-contract(7) lacks {name}");
    }
}

/// What bash completes for a command line whose last word is being typed. Words are split as
/// readline splits them, at `=` as well.
fn completed(line: &[&str]) -> BTreeSet<String> {
    let script = r#"
        source "$1"; shift
        compopt() { :; }
        COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        case $1 in *-filter) _rbdkit_filter ;; *) _rbdkit ;; esac
        printf '%s\n' "${COMPREPLY[@]}""#;
    let name = if line[0] == "rbdkit" { "rbdkit" } else { "rbdkit-filter" };
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"])
        .arg(root().join("packaging/completion/rbdkit.bash"))
        .arg(beside(name))
        .args(&line[1..]);
    stdout(&mut bash).lines().filter(|word| !word.is_empty()).map(String::from).collect()
}

#[test]
fn bash_completes_options_filters_plugins_and_parameters() {
    let set = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(completed(&["rbdkit", "--wasm"]), set(&["--wasm-filter"]));
    assert_eq!(completed(&["rbdkit", "--filter", "=", "cach"]), set(&["cache", "cacheextents"]));
    assert_eq!(completed(&["rbdkit", "--filter", "reada"]), set(&["readahead"]));
    assert_eq!(completed(&["rbdkit", "--filter", "=", "cow", "-U", "sock", "memo"]), set(&["memory"]));
    assert_eq!(completed(&["rbdkit", "-f", "memory", "alloc"]), set(&["allocator="]));
    assert_eq!(completed(&["rbdkit", "--filter", "=", "delay", "memory", "delay-re"]), set(&["delay-read="]));
    assert_eq!(completed(&["rbdkit", "--tls", "=", "re"]), set(&["require"]));
    assert_eq!(completed(&["rbdkit-filter", "insp"]), set(&["inspect"]));
    assert_eq!(completed(&["rbdkit-filter", "check", "--trans"]), set(&["--transforms"]));
}

#[test]
fn fish_completes_options_filters_plugins_and_parameters() {
    let script = root().join("packaging/completion/rbdkit.fish");
    let complete = |line: &str| {
        let mut fish = Command::new("fish");
        let path = format!("{}:{}", program().parent().expect("a directory").display(), std::env::var("PATH").unwrap());
        fish.args(["--no-config", "-c", &format!("source {}; complete -C '{line}'", script.display())])
            .env("PATH", path);
        let home = TempDir::new();
        let text = stdout(fish.env("HOME", home.path()));
        text.lines().filter_map(|line| line.split('\t').next()).map(String::from).collect::<Vec<_>>()
    };
    assert!(complete("rbdkit --wasm").contains(&"--wasm-filter".to_string()));
    assert_eq!(complete("rbdkit --filter=cach"), ["--filter=cache", "--filter=cacheextents"]);
    assert_eq!(complete("rbdkit memo"), ["memory"]);
    assert_eq!(complete("rbdkit memory alloc"), ["allocator="]);
    assert_eq!(complete("rbdkit --filter=delay memory delay-re"), ["delay-read="]);
    assert_eq!(complete("rbdkit-filter insp"), ["inspect"]);
    assert!(complete("rbdkit-filter check --trans").contains(&"--transforms".to_string()));
}

#[test]
fn zsh_reads_its_completion() {
    // A function of zsh's completion runs only within the line editor. So this checks the parts.
    let script = root().join("packaging/completion/_rbdkit");
    stdout(Command::new("zsh").args(["-f", "-n"]).arg(&script));
    let parts = r#"
        compadd() { print -rl -- ${${(P)@[-1]}} }
        compset() { [[ $1 == -P && $PREFIX == ${~2} ]] && PREFIX=${PREFIX#${~2}} }
        _files() { print FILES }
        words=("${@:2}"); CURRENT=$#words; PREFIX=$words[-1]; service=${2:t}
        source $1"#;
    let complete = |line: &[&str]| {
        let mut zsh = Command::new("zsh");
        zsh.args(["-f", "-c", parts, "zsh"]).arg(&script).arg(beside(line[0])).args(&line[1..]);
        stdout(&mut zsh).lines().map(String::from).collect::<Vec<_>>()
    };
    assert!(complete(&["rbdkit", "--filter=cach"]).contains(&"cacheextents".to_string()));
    assert!(complete(&["rbdkit", "memo"]).contains(&"memory".to_string()));
    assert!(complete(&["rbdkit", "--filter=delay", "memory", "x"]).contains(&"delay-read".to_string()));
    assert!(complete(&["rbdkit", "memory", "allocator=x"]).contains(&"FILES".to_string()));
    assert!(complete(&["rbdkit-filter", "insp"]).contains(&"inspect".to_string()));
}

/// Installs into a directory what is there already: the programs are not built again.
fn installed(pages: &Path) -> TempDir {
    let dir = TempDir::new();
    let mut make = Command::new("make");
    make.current_dir(root()).args(["--no-print-directory", "-o", "manual", "install-files", "PREFIX=/usr"]);
    make.arg(format!("MANUAL={}", pages.display())).arg(format!("DESTDIR={}", dir.path().display()));
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    stdout(&mut make);
    dir
}

#[test]
fn install_puts_everything_in_its_place_and_pkg_config_finds_it() {
    let (pages, page_count) = (pages(), 20);
    let dir = installed(pages.path());
    let usr = dir.join("usr");
    for path in [
        "bin/rbdkit",
        "bin/rbdkit-filter",
        "lib/rbdkit/filters/cow.wasm",
        "lib/systemd/system/rbdkit@.service",
        "lib/systemd/system/rbdkit@.socket",
        "share/rbdkit/wit/filter.wit",
        "share/rbdkit/guest-filters/sdk/Cargo.toml",
        "share/doc/rbdkit/SECURITY.md",
        "share/man/man1/rbdkit-cow-filter.1",
        "share/man/man7/rbdkit-contract.7",
        "share/bash-completion/completions/rbdkit-filter",
        "share/zsh/vendor-completions/_rbdkit",
        "share/fish/vendor_completions.d/rbdkit.fish",
    ] {
        assert!(usr.join(path).exists(), "{path} is not installed");
    }
    assert!(files(&usr.join("share/man/man1"), ".1").len() > page_count);
    let pkg_config = |arguments: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", usr.join("share/pkgconfig")).args(arguments).arg("rbdkit");
        stdout(&mut command).trim().to_string()
    };
    assert_eq!(pkg_config(&["--variable=filterdir"]), "/usr/lib/rbdkit/filters");
    assert_eq!(pkg_config(&["--variable=witdir"]), "/usr/share/rbdkit/wit");
    let version = stdout(Command::new(program()).arg("--version"));
    assert_eq!(Some(pkg_config(&["--modversion"]).as_str()), version.split_whitespace().nth(1));
}

#[test]
fn the_units_of_systemd_are_valid_and_what_they_start_serves() {
    let pages = pages();
    let dir = installed(pages.path());
    let units = dir.join("usr/lib/systemd/system");
    // The unit names the place of the installed program.
    let unit = read(&units.join("rbdkit@.service")).replace("/usr/bin/rbdkit", &program().display().to_string());
    let (service, socket) = (dir.join("rbdkit@disk.service"), dir.join("rbdkit@disk.socket"));
    std::fs::write(&service, &unit).expect("the unit");
    std::fs::copy(units.join("rbdkit@.socket"), &socket).expect("the socket's unit");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&service).arg(&socket).output();
    let said = String::from_utf8_lossy(&verify.expect("systemd-analyze").stderr).into_owned();
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("rbdkit@")).collect();
    assert!(about_ours.is_empty(), "{about_ours:#?}");

    // No systemd runs here. So this starts the unit's command with a socket as systemd does.
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
    let arguments = "--filter=cow memory 1M";
    let command = command.replace("$RBDKIT_ARGUMENTS", arguments);
    let listening = dir.join("nbd.sock");
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg("-l").arg(&listening).args(command.split(' ')).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut server = activate.process_group(0).spawn().expect("systemd-socket-activate");
    let mut lines = BufReader::new(server.stderr.take().expect("standard error")).lines();
    lines.next().expect("a line about the socket").expect("UTF-8");
    let uri = format!("nbd+unix:///?socket={}", listening.display());
    let size = tool("nbdinfo", ["--size", &uri]);
    kill_process(Pid::from_child(&server), Signal::TERM).expect("the server is there");
    server.wait().expect("its end");
    assert_eq!(size.stdout.trim(), "1048576");
}
