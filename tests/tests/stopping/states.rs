//! The states in which a server is stopped: one row for each.

use std::any::Any;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_slow_server::{Content, Rules, SlowServer};
use rbdkit_tests::raw::{Stream, cmd, go, opt};
use rbdkit_tests::{Launch, Outcome, Server, TempDir, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::Guest;

/// A state of a server.
pub struct State {
    /// For messages.
    pub name: &'static str,
    /// Starts a server and brings it into the state.
    pub enter: fn() -> Entered,
    /// The exit status after one signal.
    pub status: i32,
    /// The line of the log after which the server is where the second signal is to find it. None:
    /// the second signal follows at once.
    pub after_signal: Option<&'static str>,
    /// One signal ends it in some milliseconds.
    pub is_over_at_once: bool,
}

/// A server in its state, and what keeps it there.
pub struct Entered {
    pub server: Server,
    kept: Vec<Box<dyn Any>>,
}

const fn state(name: &'static str, enter: fn() -> Entered) -> State {
    State { name, enter, status: 0, after_signal: None, is_over_at_once: false }
}

/// A state that one signal ends in some milliseconds.
const fn brief(name: &'static str, enter: fn() -> Entered) -> State {
    State { is_over_at_once: true, ..state(name, enter) }
}

/// All states.
pub const STATES: &[State] = &[
    brief("idle", || entered(Launch::new(["memory", "1M"]), |server| vec![Box::new(server.client())])),
    brief("a filter sleeps", || {
        entered(verbose(&["--filter=delay", "memory", "1M", "rdelay=1000"]), |server| reading(server, "delay: pread"))
    }),
    brief("retry waits for its next attempt", || {
        let launch = verbose(&["--filter=retry", "eval", "get_size=echo 1M", "pread=exit 1", "retry-delay=1000"]);
        entered(launch, |server| reading(server, "completed: "))
    }),
    brief("a filter waits for a lock", || {
        filter(&locker(), &[], |server| {
            let mut clients = reading(server, "locker: pread offset=0 length=512");
            clients.extend(reading(server, "locker: pread offset=0 length=512"));
            clients
        })
    }),
    state("a filter spins in a read", || {
        filter(&Guest::reads("spin", "", "(loop $l (br $l))"), &UNLIMITED, |server| reading(server, "spin: pread"))
    }),
    state("a filter spins in finalize", || {
        filter(&spins_in_finalize(), &UNLIMITED, |server| vec![Box::new(server.client())])
    }),
    State {
        after_signal: Some("connection 1: closed"),
        ..state("a filter spins in cleanup", || {
            let guest = Guest::new("spin", &["lifecycle"], SPINS_IN_CLEANUP);
            filter(&guest, &UNLIMITED, |server| vec![Box::new(server.client())])
        })
    },
    state("a script sleeps in pread", || {
        asked(&["get_size=echo 1M", "pread=touch DIR/asked; sleep 1000"], |server| Box::new(submitted(server)))
    }),
    state("a script sleeps in open", || {
        asked(&["get_size=echo 1M", "open=touch DIR/asked; sleep 1000"], |server| Box::new(opening(server)))
    }),
    state("a script sleeps in list_exports", || {
        asked(&["get_size=echo 1M", "list_exports=touch DIR/asked; sleep 1000"], |server| {
            let mut stream = greeted(server);
            stream.option(opt::LIST, &[]).expect("LIST");
            Box::new(stream)
        })
    }),
    state("a script sleeps in preconnect", || {
        asked(&["get_size=echo 1M", "preconnect=touch DIR/asked; sleep 1000"], |server| {
            Box::new(Stream::connect(server.socket()))
        })
    }),
    state("a script sleeps in close", || {
        asked(&["get_size=echo 1M", "close=touch DIR/asked; sleep 1000"], |server| {
            let mut stream = server.client().into_stream();
            stream.request(0, cmd::DISC, 0, 0, 0).expect("DISC");
            Box::new(stream)
        })
    }),
    State {
        after_signal: Some("connection 1: closed"),
        ..state("a script sleeps in unload", || {
            let launch = verbose(&["eval", "get_size=echo 1M", "unload=sleep 1000"]);
            entered(launch, |server| vec![Box::new(server.client())])
        })
    },
    state("a script has closed its output and sleeps", || {
        let sleeps = "pread=head -c $3 /dev/zero; touch DIR/asked; exec sleep 1000 >&- 2>&-";
        asked(&["get_size=echo 1M", sleeps], |server| Box::new(submitted(server)))
    }),
    state("an NBD server accepts and says nothing", || {
        let dir = TempDir::new();
        let listener = UnixListener::bind(dir.join("up")).expect("a listener");
        let launch = verbose(&["nbd"]).path("socket", &dir.join("up"));
        let mut entered = entered(launch, |server| vec![Box::new(opening(server))]);
        entered.kept.push(Box::new(listener.accept().expect("the plugin")));
        entered.keep(dir).keep(listener)
    }),
    state("an NBD server does not answer a read", || {
        let upstream = verbose(&["--filter=delay", "memory", "1M", "rdelay=1000"]).start();
        let launch = verbose(&["nbd"]).path("socket", upstream.socket());
        let entered = entered(launch, |server| reading(server, "nbd: pread"));
        upstream.wait_for_log("delay: pread");
        entered.keep(upstream)
    }),
    state("a web server accepts and says nothing", || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let url = format!("http://{}/disk", listener.local_addr().expect("an address"));
        let mut entered = entered(verbose(&["curl", &url]), |server| vec![Box::new(opening(server))]);
        entered.kept.push(Box::new(listener.accept().expect("the plugin")));
        entered.keep(listener)
    }),
    state("a web server does not answer a read", || {
        let web = SlowServer::start(Content::Pattern { seed: 1, size: 1 << 20 }, Rules::default(), None);
        let web = web.expect("a web server");
        let entered = entered(verbose(&["curl", &web.url()]), |server| {
            let mut client = server.client();
            web.change(|rules| rules.delay = Duration::from_secs(1000));
            client.submit(cmd::READ, 0, 0, 512, &[]).expect("a read");
            vec![Box::new(client)]
        });
        entered.server.wait_for_log("curl: pread");
        entered.keep(web)
    }),
    state("a script that makes cookies sleeps", || {
        let dir = TempDir::new();
        let script = format!("cookie-script=touch {}/asked; sleep 1000", dir.path().display());
        let launch = verbose(&["curl", "http://127.0.0.1:1/disk", &script]);
        let entered = entered(launch, |server| vec![Box::new(opening(server))]);
        wait::until("the script is asked", || dir.join("asked").exists());
        entered.keep(dir)
    }),
    state("ssh does not connect", || {
        let dir = TempDir::new();
        let launch = with_ssh(&dir, "echo $$ >DIR/pid; exec sleep 1000");
        let entered = entered(launch, |server| vec![Box::new(opening(server))]);
        pid_in(&dir);
        entered.keep(dir)
    }),
    state("an SFTP server does not answer a read", || {
        let dir = TempDir::new();
        let launch = with_ssh(&dir, "echo $$ >DIR/pid; exec /usr/lib/openssh/sftp-server");
        let mut kept = None;
        let entered = entered(launch, |server| {
            let mut client = server.client();
            let stopped = Stopped::process(pid_in(&dir));
            client.submit(cmd::READ, 0, 0, 512, &[]).expect("a read");
            server.wait_for_log("ssh: pread");
            kept = Some(stopped);
            vec![Box::new(client)]
        });
        entered.keep(kept).keep(dir)
    }),
    state("a client does not read its replies", || {
        entered(verbose(&["pattern", "64M"]), |server| {
            let mut client = server.client();
            for _ in 0..4 {
                client.submit(cmd::READ, 0, 0, 32 << 20, &[]).expect("a read");
            }
            server.wait_for_log("pattern: pread");
            vec![Box::new(client)]
        })
    }),
    brief("a client is in the handshake", || {
        entered(Launch::new(["memory", "1M"]), |server| vec![Box::new(greeted(server))])
    }),
    brief("a client is in the middle of an option", || {
        entered(Launch::new(["memory", "1M"]), |server| {
            let mut stream = greeted(server);
            stream.option_header(opt::GO, 1000).expect("half an option");
            vec![Box::new(stream)]
        })
    }),
    brief("a client is in the middle of a payload", || {
        entered(Launch::new(["memory", "64M"]), |server| {
            let mut stream = server.client().into_stream();
            stream.request(0, cmd::WRITE, 1, 0, 1 << 20).expect("a header");
            stream.send(&[1; 1000]).expect("the beginning of its payload");
            vec![Box::new(stream)]
        })
    }),
    State {
        status: 143,
        ..state("the command of --run ignores the signal", || {
            let dir = TempDir::new();
            // The command ends with the test's directory. It must not keep the server's output
            // open.
            let command = format!(
                "exec >/dev/null 2>&1; trap '' TERM; touch {0}/asked; while test -d {0}; do sleep 0.1; done",
                dir.path().display()
            );
            let entered = entered(verbose(&["memory", "1M", "--run", &command]), |_| Vec::new());
            wait::until("the command runs", || dir.join("asked").exists());
            entered.keep(dir)
        })
    },
];

impl Entered {
    /// Waits for the server's end. Returns how long it took, and how the server ended.
    pub fn end(self, began: Instant) -> (Duration, Outcome) {
        self.server.wait_for_end();
        let took = began.elapsed();
        drop(self.kept);
        (took, self.server.wait())
    }

    fn keep(mut self, what: impl Any) -> Entered {
        self.kept.push(Box::new(what));
        self
    }
}

fn entered(launch: Launch, enter: impl FnOnce(&Server) -> Vec<Box<dyn Any>>) -> Entered {
    let server = launch.start();
    let kept = enter(&server);
    Entered { server, kept }
}

/// A server that logs what it does.
fn verbose(arguments: &[&str]) -> Launch {
    Launch::new([&["-v"], arguments].concat())
}

/// Limits that end no guest.
const UNLIMITED: [&str; 6] = ["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h", "--filter-limit", "setup=1h"];

/// A filter over a memory disk.
fn filter(guest: &Guest, options: &[&str], enter: impl FnOnce(&Server) -> Vec<Box<dyn Any>>) -> Entered {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    entered(Launch::new(["-v", "--wasm-filter"]).arg(file).args(options).args(["memory", "1M"]), enter)
}

/// A client that reads the first sector, once the server has logged `line`.
fn reading(server: &Server, line: &str) -> Vec<Box<dyn Any>> {
    let client = submitted(server);
    server.wait_for_log(line);
    vec![Box::new(client)]
}

fn submitted(server: &Server) -> rbdkit_tests::Client {
    let mut client = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a read");
    client
}

fn greeted(server: &Server) -> Stream {
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream
}

/// A client that asks for the export and gets no answer.
fn opening(server: &Server) -> Stream {
    let mut stream = greeted(server);
    stream.option(opt::GO, &go("", &[])).expect("GO");
    stream
}

/// An eval plugin with these methods, once one of them has made the file DIR/asked.
fn asked(methods: &[&str], enter: impl FnOnce(&Server) -> Box<dyn Any>) -> Entered {
    let dir = TempDir::new();
    let methods = methods.iter().map(|method| method.replace("DIR", &dir.path().display().to_string()));
    let entered = entered(verbose(&["eval"]).args(methods), |server| vec![enter(server)]);
    wait::until("the script is asked", || dir.join("asked").exists());
    entered.keep(dir)
}

/// A server whose `ssh` is a script.
fn with_ssh(dir: &TempDir, script: &str) -> Launch {
    let script = format!("#!/bin/sh\n{}\n", script.replace("DIR", &dir.path().display().to_string()));
    let disk = dir.sparse_file("disk", 1 << 20);
    verbose(&["ssh", "host=nowhere"]).path("path", &disk).with_program(dir, "ssh", &script)
}

fn pid_in(dir: &TempDir) -> Pid {
    let text = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<i32>().ok();
    wait::until("ssh runs", || text(&dir.join("pid")).is_some());
    text(&dir.join("pid")).and_then(Pid::from_raw).expect("a process id")
}

/// A process that does not run on until this value is dropped.
struct Stopped(Pid);

impl Stopped {
    fn process(pid: Pid) -> Stopped {
        kill_process(pid, Signal::STOP).expect("SIGSTOP");
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Reads lock the whole disk and sleep.
fn locker() -> Guest {
    const IMPORTS: &str = r#"
    (import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))
    (import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))"#;
    const CODE: &str = "
        (call $lock (i32.const 2) (i64.const 0) (i64.const 0x7fffffff) (i32.const 1) (i32.const 2100))
        (if (i32.load8_u (i32.const 2100)) (then (return (i32.const 2100))))
        (call $sleep (i64.const -1) (i32.const 2100))
        (if (i32.load8_u (i32.const 2100)) (then (return (i32.const 2100))))";
    Guest::reads("locker", IMPORTS, CODE)
}

const SPINS_IN_CLEANUP: &str = r#"
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup") (loop $l (br $l)))
"#;

/// Opens next, and spins when the connection ends.
fn spins_in_finalize() -> Guest {
    Guest::new("spin", &["connection"], &connection("", "(loop $l (br $l)) (i32.const 1200)"))
}

/// The functions of `connection`: `before_open` runs first, then next is opened.
pub fn connection(before_open: &str, finalize: &str) -> String {
    format!(
        r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        {before_open}
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i64.store (i32.const 2072) (i64.const 0))
        (i32.store8 (i32.const 2072) (i32.load8_u (i32.const 2049)))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) {finalize})
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#
    )
}
