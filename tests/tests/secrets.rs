//! No secret in any output: each plugin gets a canary wherever a secret can stand, and everything
//! that comes out of it is searched for the canary.
//!
//! What a user types on the command line stands in the server's own /proc/PID/cmdline. So each
//! secret is also given in the forms that keep it off the command line, and then it must not stand
//! there either.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_tests::server::{descendants, program, root};
use rbdkit_tests::{Launch, Server, TempDir, free_port, tool, wait};

#[allow(dead_code, reason = "one guest of those that the tests of hostile filters need")]
#[path = "untrusted/guest.rs"]
mod guest;

const CANARY: &str = "C4naryC4naryC4nary";

/// The canary in base64, as in an Authorization header, for each place at which it can begin.
const ENCODED: [&str; 3] = ["QzRuYXJ5QzRuYXJ5QzRuYXJ5", "M0bmFyeUM0bmFyeUM0bmFye", "NG5hcnlDNG5hcnlDNG5hcn"];

/// Where a secret can stand: a plugin, its parameter, and words for a command line.
struct Place {
    plugin: &'static str,
    parameter: &'static str,
    /// The words, with CANARY in one of them. `{file}` is a file with the canary, and `{port}` a
    /// port of this machine that refuses connections.
    words: &'static [&'static str],
}

const fn place(plugin: &'static str, parameter: &'static str, words: &'static [&'static str]) -> Place {
    Place { plugin, parameter, words }
}

/// The places that let the server start.
const PLACES: [Place; 17] = [
    place("ssh", "password", &["host=far", "/disk", "password=CANARY"]),
    place("ssh", "password", &["host=far", "/disk", "password=+{file}"]),
    place("nbd", "uri", &["nbd://user:CANARY@127.0.0.1:{port}/disk"]),
    place("nbd", "uri", &["nbd://CANARY@127.0.0.1:{port}/disk"]),
    place("curl", "url", &["http://user:CANARY@127.0.0.1:{port}/disk"]),
    place("curl", "password", &["http://127.0.0.1:{port}/", "user=me", "password=CANARY"]),
    place("curl", "password", &["http://127.0.0.1:{port}/", "user=me", "password=+{file}"]),
    place(
        "curl",
        "proxy-password",
        &["http://h/", "proxy=http://127.0.0.1:{port}", "proxy-user=me", "proxy-password=+{file}"],
    ),
    place("curl", "cookie", &["http://127.0.0.1:{port}/", "cookie=id=CANARY"]),
    place("curl", "header", &["http://127.0.0.1:{port}/", "header=Authorization: Bearer CANARY"]),
    place("curl", "user", &["http://127.0.0.1:{port}/", "user=CANARY", "password=x"]),
    place("curl", "proxy", &["http://h/", "proxy=http://user:CANARY@127.0.0.1:{port}"]),
    place("curl", "proxy-user", &["http://h/", "proxy=http://127.0.0.1:{port}", "proxy-user=CANARY"]),
    place("curl", "header-script", &["http://127.0.0.1:{port}/", "header-script=echo Authorization: CANARY"]),
    place("curl", "header-script", &["http://127.0.0.1:{port}/", "header-script=echo not CANARY; exit 1"]),
    place("curl", "cookie-script", &["http://127.0.0.1:{port}/", "cookie-script=echo id=CANARY"]),
    place("eval", "KEY", &["config=exit 0", "get_size=exit 1", "token=CANARY"]),
];

/// Command lines that are refused.
const REFUSED: [Place; 16] = [
    place("ssh", "password", &["host=far", "/disk", "password=+CANARY"]),
    place("ssh", "password", &["host=far", "/disk", "password=CANARY\nCANARY"]),
    place("ssh", "password", &["host=far", "/disk", "pasword=CANARY"]),
    place("ssh", "host", &["host=user:CANARY@far", "/disk"]),
    place("ssh", "host", &["host=ssh://user:CANARY@far", "/disk"]),
    place("nbd", "uri", &["nbd://user:CANARY@127.0.0.1:0/disk"]),
    place("nbd", "uri", &["nbd://user:CANARY"]),
    place("nbd", "uri", &["nbd://user:CANARY/@h:x/disk"]),
    place("nbd", "uri", &["nbds://user:CANARY@h/disk?tls-certificates=/no/such/directory"]),
    place("nbd", "uri", &["ftp://user:CANARY@h/disk"]),
    place("nbd", "uri", &["user:CANARY@h"]),
    place("nbd", "uri", &["nbd+unix://user:CANARY@h/disk?socket=/s"]),
    place("nbd", "port", &["nbd://user:CANARY@h/disk", "port=1"]),
    place("null", "word", &["http://user:CANARY@h/"]),
    place("sh", "word", &["{script}", "http://user:CANARY@h/"]),
    place("eval", "KEY", &["get_size=echo 1", "password=CANARY"]),
];

/// What the places refer to.
struct Scene {
    dir: TempDir,
    port: u16,
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new();
        dir.file("secret", format!("{CANARY}\n").as_bytes());
        let scene = Scene { dir, port: free_port() };
        scene.dir.program("script", "#!/bin/sh\ncase $1 in get_size) echo 1M;; *) exit 2;; esac\n");
        // Instead of ssh: takes the password, says so, and hangs until its connection is closed.
        let told = scene.told();
        let text = format!(
            "#!/bin/sh\n\"$SSH_ASKPASS\" password: >{0}.new\nmv {0}.new {0}\nexec cat >/dev/null\n",
            told.display()
        );
        scene.dir.program("ssh", &text);
        scene
    }

    /// Where the program that stands in for ssh writes the password that it got.
    fn told(&self) -> PathBuf {
        self.dir.join("told")
    }

    fn words(&self, place: &Place) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let word = |word: &&str| {
            let word = word.replace("CANARY", CANARY).replace("{file}", &path("secret"));
            word.replace("{script}", &path("script")).replace("{port}", &self.port.to_string())
        };
        std::iter::once(place.plugin.to_owned()).chain(place.words.iter().map(word)).collect()
    }

    fn path_variable(&self) -> String {
        format!("{}:/usr/bin:/bin", self.dir.path().display())
    }

    /// Runs the program to its end.
    fn output(&self, options: &[&str], words: &[String]) -> String {
        let mut command = Command::new(program());
        command.args(options).args(words).env("PATH", self.path_variable()).stdin(Stdio::null());
        let output = wait::output(&mut command);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

/// Fails if the canary stands in the text.
fn search(what: &str, words: &[String], text: &str) {
    let found = std::iter::once(CANARY).chain(ENCODED).find(|form| text.contains(form));
    assert_eq!(found, None, "{what} of {words:?}:\n{text}");
}

/// A text file of /proc; empty if the process has gone.
fn proc_text(pid: u32, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned()
}

#[test]
fn refused_command_lines_do_not_show_secrets() {
    let scene = Scene::new();
    for place in &REFUSED {
        let words = scene.words(place);
        for options in [&["-U", "-"][..], &["-v", "-U", "-"], &["--dump-plugin"]] {
            let text = scene.output(options, &words);
            assert!(text.contains("error: ") || options == ["--dump-plugin"], "{words:?}: {text}");
            search("the error", &words, &text);
        }
    }
}

#[test]
fn help_descriptions_and_errors_after_the_secret_do_not_show_it() {
    let scene = Scene::new();
    for place in &PLACES {
        let words = scene.words(place);
        let more = |word: &str| [&words[..], &[word.to_owned()]].concat();
        for (options, words) in [
            (&["--help"][..], words.clone()),
            (&["--dump-plugin"], words.clone()),
            (&["-v", "--dump-plugin"], words.clone()),
            (&["-v", "-U", "/no/such/directory/socket"], more("no-such-parameter=1")),
            (&["-v", "-U", "/no/such/directory/socket"], words.clone()),
            (&["-v", "-U", "-", "--run", "true"], words.clone()),
        ] {
            search("the output", &words, &scene.output(options, &words));
        }
    }
}

#[test]
fn running_servers_their_helpers_and_their_crashes_do_not_show_secrets() {
    let faulty = guest::Guest::reads("faulty", "", "(unreachable)");
    for place in &PLACES {
        let scene = Scene::new();
        let filter = scene.dir.file("faulty.wasm", &faulty.component(0));
        let words = scene.words(place);
        // A filter that faults stands in front of the plugin.
        let launch = Launch::new(["-v", "--filter"]).arg(filter).args(&words);
        let mut server = launch.env("PATH", scene.path_variable()).start();
        let uri = server.uri();
        let client = std::thread::spawn(move || tool("nbdinfo", [&uri]).fails());
        match place.plugin {
            "ssh" => {
                wait::until("ssh has the password", || scene.told().exists());
                assert_eq!(std::fs::read_to_string(scene.told()).expect("the password"), format!("{CANARY}\n"));
                assert!(descendants(server.pid()).len() >= 2, "the helper and ssh");
            }
            _ => server.wait_for_log("error: "),
        }
        let own = proc_text(server.pid(), "cmdline");
        for pid in descendants(server.pid()) {
            // A child that has not started its program yet shows what the user wrote.
            let line = Some(proc_text(pid, "cmdline")).filter(|line| *line != own).unwrap_or_default();
            search("the command line of a child", &words, &line);
            search("the environment of a child", &words, &proc_text(pid, "environ"));
        }
        search("the environment", &words, &proc_text(server.pid(), "environ"));
        if !words.concat().contains(CANARY) {
            search("the command line", &words, &proc_text(server.pid(), "cmdline"));
        }
        tool("kill", ["-ABRT", &server.pid().to_string()]).ok();
        wait::until("the server has ended", || !server.is_alive());
        search("what the client was told", &words, &client.join().expect("the client"));
        search("the log", &words, &server.stderr());
        drop::<Server>(server);
    }
}

/// The parameters that the source of a plugin declares as secret.
fn declared(plugin: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(plugin.join("src/lib.rs")).unwrap_or_default();
    let declarations = text.split("ParamSpec::").skip(1).filter(|declaration| declaration.contains(".secret()"));
    declarations.filter_map(|declaration| Some(declaration.split('"').nth(1)?.to_owned())).collect()
}

#[test]
fn every_secret_parameter_is_tried_with_a_canary() {
    for plugin in std::fs::read_dir(root().join("plugins")).expect("the plugins").flatten() {
        let name = plugin.file_name().to_string_lossy().into_owned();
        for secret in declared(&plugin.path()) {
            let tried = PLACES.iter().any(|place| place.plugin == name && place.parameter == secret);
            assert!(tried, "{name} {secret}= is in no row of PLACES");
        }
    }
    assert!(declared(&root().join("plugins/ssh")).contains("password"), "the declarations are found");
}
