//! How foreign plugins are found, configured and described.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use rbdkit_tests::server::program;
use rbdkit_tests::{Launch, TempDir, nbdsh, tool};

use super::compiled::{Testing, compile, plugin_file};

fn run(arguments: &[&str]) -> rbdkit_tests::Finished {
    tool(&program().display().to_string(), arguments)
}

#[test]
fn a_plugin_is_found_by_its_name_and_built_in_ones_come_first() {
    let testing = Testing::new(&[]);
    symlink(&testing.library, testing.dir.join("nbdkit-private-plugin.so")).expect("a link");
    symlink(&testing.library, testing.dir.join("nbdkit-memory-plugin.so")).expect("a link");
    let directory = testing.dir.path().display().to_string();
    let dump = |name: &str| run(&["--plugindir", &directory, name, "--dump-plugin"]).ok();
    assert!(dump("private").contains("name=testing\n"));
    assert!(!dump("memory").contains("name=testing\n"), "the built-in one");
    let file = testing.dir.join("nbdkit-memory-plugin.so").display().to_string();
    assert!(run(&[&file, "--dump-plugin"]).ok().contains("name=testing\n"), "a path is always the file");
    // In nbdkit's own directory.
    assert!(run(&["tcl", "--dump-plugin"]).ok().starts_with("path=/usr/lib/"));
    let missing = run(&["nosuchplugin", "--dump-plugin"]).fails();
    assert!(missing.starts_with("rbdkit: error: cannot open plugin 'nosuchplugin': "), "{missing}");
}

#[test]
fn a_file_that_is_no_plugin_is_refused_with_one_line() {
    let dir = TempDir::new();
    let text = dir.file("text.so", b"not a library").display().to_string();
    let library = dir.join("empty.so").display().to_string();
    let gcc = Command::new("gcc").args(["-shared", "-o", &library, "-x", "c", "/dev/null"]).status();
    assert!(gcc.expect("gcc").success());
    let filter = plugin_file("memory").display().to_string().replace("plugins/", "filters/");
    let filter = filter.replace("memory-plugin", "cow-filter");
    for (file, why) in [
        (text.as_str(), "file too short"),
        ("./nosuch.so", "No such file or directory"),
        (&library, "it has no function plugin_init"),
        (&filter, "it is a filter of nbdkit"),
    ] {
        let said = run(&[file]).fails();
        assert!(said.starts_with("rbdkit: error: ") && said.contains(why) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_filter_of_nbdkit_is_refused_and_ours_of_that_name_is_named() {
    let said = run(&["--filter=/usr/lib/nbdkit/filters/nbdkit-cow-filter.so", "null"]).fails();
    assert!(said.contains("run in a sandbox") && said.contains("--filter=cow is the built-in one"), "{said}");
    let said = run(&["--filter=./nbdkit-own-filter.so", "null"]).fails();
    assert!(said.contains("run in a sandbox") && !said.contains("built-in"), "{said}");
}

#[test]
fn help_shows_the_plugins_own_text_and_version_its_version() {
    let testing = Testing::new(&[]);
    let library = testing.library.display().to_string();
    let help = run(&[&library, "--help"]).ok();
    for part in ["plugin: testing (a plugin for tests)", "Writes down what is called.", "log=FILE    Where to write."] {
        assert!(help.contains(part), "{help}");
    }
    assert!(run(&[&library, "--version"]).ok().ends_with("testing 1.2.3\n"));
}

#[test]
fn words_without_a_key_go_where_nbdkit_sends_them() {
    let plain = Testing::new(&[]);
    let server = Launch::new([&plain.library]).arg("a word").path("log", &plain.log).start();
    drop(server);
    // The log is not open yet when the first word comes.
    assert!(plain.calls().contains(&"config_complete".to_string()));
    let said = plain.launch(&["word"]).try_start().err().expect("no server").stderr;
    assert!(said.contains("expecting key=value on the command line but got: word"), "{said}");
    let magic = Testing::new(&["-DMAGIC"]);
    drop(magic.launch(&["one", "two words"]).start());
    assert_eq!(magic.calls()[..2], ["config word=one", "config word=two words"]);
    let said = plain.launch(&["nosuch=1"]).try_start().err().expect("no server").stderr;
    assert_eq!(said, "rbdkit: error: unknown parameter 'nosuch'\n");
}

#[test]
fn files_and_passwords_are_read_where_the_program_was_started() {
    let testing = Testing::new(&[]);
    let here = TempDir::new();
    here.file("secret", b"open sesame\n");
    let mut command = Command::new(program());
    command.current_dir(here.path()).args(["-f", "-U", "-", "--run", "true"]).arg(&testing.library);
    let log = format!("log={}", testing.log.display());
    command.args([log.as_str(), "file=secret", "password=+secret", "lie=stdio"]);
    assert!(command.status().expect("rbdkit").success());
    let path = here.join("secret").canonicalize().expect("the file");
    let calls = testing.calls();
    for call in [format!("realpath {}", path.display()), "password open sesame".into(), "stdio_safe 1".into()] {
        assert!(calls.contains(&call), "{call}: {calls:?}");
    }
}

#[test]
fn what_a_plugin_prints_does_not_reach_the_client_of_standard_output() {
    let testing = Testing::new(&[]);
    let command = format!(
        "nbdsh -c 'h.connect_command([{:?}, \"-s\", {:?}, \"log={}\", \"tell=pread\"])' \
         -c 'print(h.pread(512, 65536)[:2])'",
        program().display().to_string(),
        testing.library.display().to_string(),
        testing.log.display(),
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    let output = shell.output().expect("sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("an error of pread"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "bytearray(b'\\x00\\x00')\n");
}

#[test]
fn a_shell_that_reads_the_output_does_not_wait_for_a_server_in_the_background() {
    let testing = Testing::new(&[]);
    let (socket, pid_file) = (testing.dir.join("sock"), testing.dir.join("pid"));
    let mut command = Command::new(program());
    command.arg("-U").arg(&socket).arg("-P").arg(&pid_file).arg(&testing.library).stdin(Stdio::null());
    command.arg(format!("log={}", testing.log.display()));
    // Reads until all writers have closed their ends.
    let output = rbdkit_tests::wait::output(&mut command);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    assert_eq!(tool("nbdinfo", ["--size", &uri]).ok(), "1048576\n");
    let pid = std::fs::read_to_string(&pid_file).expect("the pid file");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number")).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    rbdkit_tests::wait::until("the plugin is unloaded", || testing.count("unload") == 1);
}

#[test]
fn a_plugin_may_start_its_program_again_to_get_libraries_as_vddk_does() {
    let dir = TempDir::new();
    let plugin = compile(&dir, "reexec", &[]);
    let source = dir.file("far.c", b"long long size_of_disk(void) { return 3 << 20; }");
    let libraries = dir.join("libraries");
    std::fs::create_dir(&libraries).expect("a directory");
    let library = libraries.join("libtesting-far-away.so.7");
    let gcc = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(gcc.expect("gcc").success());
    let server = Launch::new([&plugin]).path("libdir", &libraries).start();
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
assert h.get_size() == 3 << 20 and h.pread(512, 0) == b'V' * 512
h.shutdown()
";
    nbdsh(&server.uri(), script).ok();
    // The process that is started anew does it too.
    let process = rbdkit_tests::server::children(server.pid())[0];
    let process = rustix::process::Pid::from_raw(process as i32).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("a signal");
    server.wait_for_log("was killed by signal 9");
    nbdsh(&server.uri(), script).ok();
    assert!(server.stop().status.success());
}

#[test]
fn the_server_is_confined_and_a_process_that_is_started_anew_gets_the_same_parameters() {
    let testing = Testing::new(&[]);
    let server = testing.launch(&["crash=pread", &testing.once(), "file=/etc/hostname", "-v"]).start();
    server.wait_for_log("confined: no new privileges");
    let script = "
def read():
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pread(512, 65536)
print(fails(read), fails(read))
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO success\n");
    assert_eq!(testing.count("config file=/etc/hostname"), 2);
    assert!(server.stop().status.success());
}
