//! The filters that decide who may connect, and to what: ip, limit, tls-fallback and exportname.
//! With many clients at once, and while the server stops.

use rbdkit_tests::raw::{Stream, opt};
use rbdkit_tests::server::{descendants, is_nbdkit, program};
use rbdkit_tests::{Finished, Launch, Server, TempDir, free_port, nbdsh, tool};

/// Functions for many clients at once. `connect(n)` begins n handshakes before it waits for any,
/// and returns the clients that the server has let in; `leave` disconnects them.
const CROWD: &str = "\
import os, signal
def connect(count, open=True):
    crowd = []
    for n in range(count):
        h = nbd.NBD()
        h.set_opt_mode(not open)
        try:
            h.aio_connect_uri(uri)
        except nbd.Error:
            pass
        crowd.append(h)
    for h in crowd:
        try:
            while h.aio_is_connecting():
                h.poll(-1)
        except nbd.Error:
            pass
    return [h for h in crowd if h.aio_is_ready() or h.aio_is_negotiating()]
def leave(crowd):
    for h in crowd:
        h.shutdown()
def all_are_closed(crowd):
    for h in crowd:
        try:
            while not (h.aio_is_closed() or h.aio_is_dead()):
                h.poll(-1)
        except nbd.Error:
            pass
";

/// Runs the server with these words, and a command that sees its URI.
fn run(words: &[&str], command: &str) -> Finished {
    tool(program().to_str().expect("UTF-8"), [words, &["--run", command]].concat())
}

#[test]
fn limit_admits_exactly_as_many_clients_of_a_crowd_and_new_ones_when_some_leave() {
    let server = Server::start(["--filter=limit", "memory", "1M", "limit=40"]);
    let script = format!(
        "{CROWD}
inside = connect(240)
assert len(inside) == 40, len(inside)
for h in inside:
    h.pread(512, 0)
assert connect(1) == []
# It is refused before the handshake, and cannot even list the exports.
assert connect(1, open=False) == []
leave(inside[:15])
# The server takes a client off when it has closed the connection.
back = []
while len(back) < 15:
    back += connect(1)
assert connect(3) == []
inside = inside[15:] + back
os.kill({}, signal.SIGTERM)
all_are_closed(inside)",
        server.pid()
    );
    nbdsh(&server.uri(), &script).ok();
    let outcome = server.wait();
    assert!(outcome.status.success(), "{outcome:?}");
    if !is_nbdkit() {
        assert!(outcome.stderr.contains("limit: limit=40: a client was refused"), "{}", outcome.stderr);
    }
}

#[test]
fn limit_counts_no_client_that_died_or_that_could_not_open_the_disk() {
    let dir = TempDir::new();
    let server = Launch::new(["--filter=limit", "file"]).path("dir", dir.path()).start();
    dir.sparse_file("disk", 1 << 20);
    let uri = server.uri().replace(":///?", ":///disk?");
    for _ in 0..3 {
        let script = format!(
            "{CROWD}
missing = uri.replace('disk', 'missing')
for n in range(20):
    h = nbd.NBD()
    assert fails(lambda: h.connect_uri(missing)) != 'success'
me = []
while not me:
    me = connect(1)
me[0].pread(512, 0)
# The handle ends with the process, without a word to the server.
os._exit(0)"
        );
        nbdsh(&uri, &script).ok();
    }
}

#[test]
fn limit_is_1_by_default_and_0_is_no_limit() {
    let server = Server::start(["--filter=limit", "memory", "1M"]);
    nbdsh(&server.uri(), &format!("{CROWD}\nassert len(connect(9)) == 1")).ok();
    let server = Server::start(["--filter=limit", "memory", "1M", "limit=0"]);
    nbdsh(&server.uri(), &format!("{CROWD}\nassert len(connect(99)) == 99")).ok();
}

/// Whether a client over a Unix socket gets in with these words.
fn gets_in(words: &[&str]) -> bool {
    let words = [&["-U", "-", "--filter=ip", "memory", "1M"], words].concat();
    let finished = run(&words, "nbdinfo --size \"$uri\"");
    match finished.stdout.as_str() {
        "1048576\n" => true,
        "" => false,
        other => panic!("{words:?}: {other}{}", finished.stderr),
    }
}

#[test]
fn ip_lets_clients_of_a_unix_socket_in_by_user_group_and_process() {
    let me = format!("allow=uid:{}", rustix::process::getuid().as_raw());
    let mine = format!("allow=GID:{}", rustix::process::getgid().as_raw());
    for (words, expected) in [
        (&[][..], true),
        (&["deny=all"], false),
        (&["deny="], true),
        (&["allow=anyunix", "deny=all"], true),
        (&["allow=ALLUNIX", "deny=any"], true),
        (&["allow=anyipv4,anyipv6,anyvsock", "deny=all"], false),
        (&["deny=anyipv4,10.0.0.0/8,fe80::/10,vsock-cid:2,vsock-port:3"], true),
        (&["deny=all", &me], true),
        (&["deny=all", &mine], true),
        (&["deny=all", "allow=uid:54321", "allow=pid:1,gid:54321"], false),
        (&["deny=all", "allow=uid:54321", &me], true),
        (&["deny=pid:1"], true),
    ] {
        assert_eq!(gets_in(words), expected, "{words:?}");
    }
}

#[test]
fn ip_lets_clients_in_by_address() {
    for (words, expected) in [
        (&["allow=127.0.0.1,::1", "deny=all"][..], true),
        (&["allow=127.0.0.2", "deny=all"], false),
        (&["deny=127.0.0.0/8"], false),
        (&["deny=128.0.0.0/1"], true),
        (&["allow=anyipv4", "deny=all"], true),
        (&["allow=anyipv6,anyunix", "deny=all"], false),
        (&["deny=anyipv6,::ffff:0:0/90"], true),
    ] {
        let port = free_port().to_string();
        let words = [&["-i", "127.0.0.1", "-p", &port, "--filter=ip", "memory", "1M"], words].concat();
        let finished = run(&words, "nbdinfo --size \"$uri\"");
        assert_eq!(finished.stdout == "1048576\n", expected, "{words:?}: {}", finished.stderr);
    }
}

#[test]
fn ip_refuses_a_crowd_before_the_handshake_and_the_server_stops_at_once() {
    let server = Server::start(["--filter=ip", "memory", "1M", "deny=anyunix"]);
    let script = format!(
        "{CROWD}
assert connect(300) == []
assert connect(100, open=False) == []
os.kill({}, signal.SIGTERM)",
        server.pid()
    );
    nbdsh(&server.uri(), &script).ok();
    let outcome = server.wait();
    assert!(outcome.status.success(), "{outcome:?}");
    if !is_nbdkit() {
        let expected = format!("user {}", rustix::process::getuid().as_raw());
        let lines = outcome.stderr.lines().filter(|line| line.contains("ip: a client was refused"));
        assert!(lines.into_iter().any(|line| line.contains(&expected)), "{}", outcome.stderr);
    }
}

#[test]
fn ip_does_not_start_with_a_rule_that_it_cannot_keep() {
    for (rule, expected) in [
        ("allow=1.2.3.4,,::1", "an entry of the list is empty"),
        ("deny=1.2.3.4/33", "the prefix length '33' is not from 1 to 32"),
        ("deny=somebody", "'somebody' is not an IP address"),
        ("allow=uid:me", "uid: takes a number from 0 to 4294967295"),
        ("deny=security:", "security: takes a security context"),
    ] {
        let said = run(&["-U", "-", "--filter=ip", "memory", "1M", rule], "true").fails();
        if !is_nbdkit() {
            assert!(said.contains(expected) && said.contains(rule), "{said}");
        }
    }
}

#[test]
fn tls_fallback_shows_a_message_to_clients_without_tls_and_opens_nothing_for_them() {
    let dir = TempDir::new();
    let opened = dir.join("opened");
    let open = format!("open=touch {}", opened.display());
    let server =
        Launch::new(["--filter=tls-fallback", "eval", "get_size=echo 1M", "pread=exit 1", "tlsreadme=Use TLS."])
            .arg(open)
            .start();
    let script = "\
h.set_export_name('anything')
h.connect_uri(uri)
assert h.get_size() == 512 and h.is_read_only()
assert h.pread(512, 0) == b'Use TLS.' + b'\\0' * 504
assert h.pread(3, 4) == b'TLS'
h.set_strict_mode(0)
assert fails(lambda: h.pwrite(b'x', 0)) == 'EPERM'
assert not (h.can_zero() or h.can_trim() or h.can_flush() or h.can_fua() or h.can_cache() or h.can_multi_conn())";
    nbdsh(&server.uri(), script).ok();
    let listed = tool("nbdinfo", ["--list", "--json", &server.uri()]).ok();
    assert!(listed.contains("\"export-size\": 512") && listed.matches("export-name").count() == 1, "{listed}");
    assert!(!opened.exists(), "something below was opened");
}

/// A directory with disks of 1, 2 and 3 MiB.
fn disks() -> TempDir {
    let dir = TempDir::new();
    for n in 1..=3 {
        dir.sparse_file(&format!("disk{n}"), n << 20);
    }
    dir
}

/// What a client sees of exports: the list with descriptions, and the size of what it asks for.
fn seen(dir: &TempDir, words: &[&str], ask: &str) -> (Vec<String>, String) {
    let server = Launch::new(["--filter=exportname", "file"]).path("dir", dir.path()).args(words).start();
    let script = format!(
        "h.set_opt_mode(True)
h.connect_uri(uri)
list = []
try:
    h.opt_list(lambda name, text: list.append(name + (':' + text if text else '')))
    print(' '.join(sorted(list)))
except nbd.Error as error:
    print('error')
h.set_export_name({ask:?})
try:
    h.opt_go()
    print(h.get_size() >> 20)
except nbd.Error as error:
    print(errno.errorcode[error.errnum])"
    );
    let said = nbdsh(&server.uri(), &script).ok();
    let (list, size) = said.trim_end_matches('\n').split_once('\n').expect("two lines");
    (list.split_whitespace().map(str::to_string).collect(), size.to_string())
}

#[test]
fn exportname_changes_the_list_the_default_and_what_may_be_opened() {
    let dir = disks();
    let all = ["disk1", "disk2", "disk3"];
    let explicit = &["exportname-list=explicit", "exportname=disk3", "exportname=disk1"];
    let strict = [&explicit[..], &["exportname-strict=true"]].concat();
    let strict_default = [&strict[..], &["default-export=disk3"]].concat();
    for (words, ask, list, size) in [
        (&[][..], "disk2", &all[..], "2"),
        (&[], "", &all, "ENOENT"),
        (&["default-export=disk2"], "", &all, "2"),
        (&["default-export=disk2"], "disk1", &all, "1"),
        (&["exportname-list=error"], "disk1", &["error"], "1"),
        (&["exportname-list=empty"], "disk1", &[], "1"),
        (&["exportname-list=defaultonly", "default-export=disk2"], "", &["disk2"], "2"),
        (explicit, "disk2", &["disk1", "disk3"], "2"),
        (&strict, "disk3", &["disk1", "disk3"], "3"),
        (&strict, "disk2", &["disk1", "disk3"], "ENOENT"),
        (&strict, "", &["disk1", "disk3"], "ENOENT"),
        (&strict_default, "", &["disk1", "disk3"], "3"),
    ] {
        let expected = (list.iter().map(|name| name.to_string()).collect(), size.to_string());
        assert_eq!(seen(&dir, words, ask), expected, "{words:?} asked for '{ask}'");
    }
}

#[test]
fn exportname_describes_exports() {
    let dir = disks();
    let fixed = ["exportdesc=fixed:mine", "exportname-list=defaultonly", "default-export=disk1"];
    assert_eq!(seen(&dir, &fixed, "").0, ["disk1:mine"]);
    let kept = ["exportdesc=fixed:mine"];
    assert_eq!(seen(&dir, &kept, "").0, ["disk1:mine", "disk2:mine", "disk3:mine"]);
    let server = Launch::new(["--filter=exportname", "file"]).path("dir", dir.path()).args(kept).start();
    let script = "h.set_full_info(True)\nh.connect_uri(uri.replace(':///?', ':///disk1?'))\n\
                  assert h.get_export_description() == 'mine'";
    nbdsh(&server.uri(), script).ok();
    let plain = ["-U", "-", "--filter=exportname", "eval", "get_size=echo 1M", "pread=exit 1"];
    let described = ["export_description=echo below", "list_exports=echo NAMES+DESCRIPTIONS; echo a; echo text"];
    for (choice, expected) in [("keep", ["below", "a:text"]), ("none", ["None", "a:None"])] {
        let script = "nbdsh -c 'import os' -c 'h.set_full_info(True)' -c 'h.connect_uri(os.environ[\"uri\"])' \
                      -c 'try: print(h.get_export_description())\nexcept nbd.Error: print(None)' \
                      -c 'l = nbd.NBD(); l.set_opt_mode(True); l.connect_uri(os.environ[\"uri\"])' \
                      -c 'l.opt_list(lambda name, text: print(name + \":\" + (text or \"None\")))'";
        let choice = format!("exportdesc={choice}");
        let words = [&plain[..], &described, &[&choice]].concat();
        let said = run(&words, &format!("export uri; {script}")).ok();
        assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{choice}");
    }
}

#[test]
fn exportname_takes_descriptions_from_a_command() {
    let dir = disks();
    let listed = |command: &str| seen(&dir, &[&format!("exportdesc=script:{command}")], "disk1").0;
    let names = ["disk1", "disk2", "disk3"];
    assert_eq!(listed("echo for-$name"), names.map(|name| format!("{name}:for-{name}")));
    // What was printed counts whatever the status is. Without output there is no description.
    assert_eq!(listed("printf x; exit 3"), names.map(|name| format!("{name}:x")));
    assert_eq!(
        (listed("true"), listed("exit 1")),
        (names.map(String::from).to_vec(), names.map(String::from).to_vec())
    );
    let words = ["--filter=exportname", "memory", "1M", r#"exportdesc=script:echo "[$name]"; echo two; echo"#];
    let server = Server::start(words);
    // A client chooses the name, which is no part of the command.
    let mark = dir.join("mark");
    for name in ["", "a b", "$(touch MARK)", "`touch MARK`", "'; touch MARK; '", "\"; touch MARK; \""] {
        let name = name.replace("MARK", &mark.display().to_string());
        let script = format!(
            "h.set_full_info(True)\nh.set_export_name({name:?})\nh.connect_unix(uri.split('socket=')[1])\n\
             assert h.get_export_description() == '[' + {name:?} + ']\\ntwo\\n', h.get_export_description()"
        );
        nbdsh(&server.uri(), &script).ok();
        assert!(!mark.exists(), "{name}");
    }
}

#[test]
fn a_description_whose_command_never_ends_ends_with_its_client_and_with_the_server() {
    if is_nbdkit() {
        return; // There the command outlives both.
    }
    let words = ["--filter=exportname", "memory", "1M", "exportname-list=explicit", "exportname=a"];
    let server = Launch::new(words).arg("exportdesc=script:exec sleep 600").start();
    let sleeps = |server: &Server| {
        descendants(server.pid())
            .iter()
            .any(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.starts_with(b"sleep")))
    };
    let list = || {
        let mut stream = Stream::connect(server.socket());
        stream.greet(3).expect("a greeting");
        stream.option(opt::LIST, &[]).expect("an option");
        server.wait_until("the command", sleeps);
        stream
    };
    drop(list());
    server.wait_until("the end of the command", |server| !sleeps(server));
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    let _listing = list();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{outcome:?}");
}
