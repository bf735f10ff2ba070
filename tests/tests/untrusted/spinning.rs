//! Components that compute without end: ended in time, and nobody else waits for them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::{cmd, error};
use rbdkit_tests::{Client, Launch, Server, TempDir};

use crate::guest::Guest;

fn serve(guest: &Guest, options: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "16M"]).start()
}

fn spinner() -> Guest {
    Guest::reads("spin", "", "(loop $l (br $l))")
}

/// How long a thread has waited for a processor while it could have run, in all. None: it has ended.
fn kept_waiting(task: &Path) -> Option<Duration> {
    let line = std::fs::read_to_string(task.join("schedstat")).ok()?;
    // Time on a processor, time waiting for one, turns.
    Some(Duration::from_nanos(line.split_whitespace().nth(1)?.parse().ok()?))
}

/// The same for all threads of a server, and the thread that calls this.
fn all_kept_waiting(server: &Server) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
    let tasks = tasks.flatten().map(|task| task.path());
    tasks.chain(["/proc/thread-self".into()]).filter_map(|task| kept_waiting(&task)).sum()
}

/// A read that is ended, beside a thread of the test that sleeps for as long: how late the end was, and how late the machine made it. That is what
/// the sleeping thread was late by, and what this thread and the server's waited for a processor: from the beginning, as a guest that computes
/// yields its thread now and then, and until it has one again it is not on its account.
fn lateness(server: &Server, client: &mut Client, deadline: Duration) -> (Duration, Duration) {
    let before = all_kept_waiting(server);
    let began = Instant::now();
    std::thread::scope(|threads| {
        let sleeper = threads.spawn(|| {
            #[expect(clippy::disallowed_methods, reason = "what is measured is how late it wakes")]
            std::thread::sleep(deadline);
            began.elapsed().saturating_sub(deadline)
        });
        assert_eq!(client.read(0, 512), Err(error::EIO));
        let late = began.elapsed().saturating_sub(deadline);
        let overslept = sleeper.join().expect("the sleeper");
        (late, overslept + all_kept_waiting(server).saturating_sub(before))
    })
}

#[test]
fn a_guest_that_spins_is_ended_within_20_ms_of_its_deadline() {
    let deadline = Duration::from_millis(300);
    let server = serve(&spinner(), &["--filter-limit", "cpu=300ms"]);
    let mut client = server.client();
    for _ in 0..10 {
        let (late, machine) = lateness(&server, &mut client, deadline);
        println!("ended {late:?} late, of which the machine may have made {machine:?}");
        assert!(late <= Duration::from_millis(20) + machine, "{late:?} {machine:?}");
    }
}

/// The 99th of a hundred of so many runs.
fn p99(runs: usize, mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() * 99 / 100]
}

/// A thread that answers each byte, which has nothing to do with any server: how long that takes is the machine's affair.
struct Echo(UnixStream);

impl Echo {
    fn new() -> Echo {
        let (here, mut there) = UnixStream::pair().expect("sockets");
        std::thread::spawn(move || {
            let mut byte = [0];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        Echo(here)
    }

    fn ping(&mut self) {
        self.0.write_all(&[1]).expect("a byte");
        self.0.read_exact(&mut [0]).expect("its echo");
    }
}

#[test]
fn while_every_other_instance_spins_a_client_is_served_as_before() {
    // An instance for each connection: in all but one of them the guest spins.
    let server = serve(&spinner().model(2), &["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"]);
    let (mut bystander, mut echo) = (server.client(), Echo::new());
    let mut measure = || {
        let read = p99(500, || assert!(bystander.read(4096, 4096).is_ok()));
        (read, p99(500, || echo.ping()))
    };
    measure();
    let (mut quiet, mut spinning) = (Vec::new(), Vec::new());
    // In turn, so that what else the machine does is in both.
    for _ in 0..5 {
        let (read, ping) = measure();
        quiet.extend([read, ping]);
        let mut spinners: Vec<Client> = (0..16).map(|_| server.client()).collect();
        for spinner in &mut spinners {
            spinner.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
        }
        let (read, ping) = measure();
        spinning.push(read);
        quiet.push(ping);
        // They end with their clients.
        drop(spinners);
    }
    spinning.sort();
    let noise = quiet.iter().max().expect("measurements");
    println!("p99 of a read while 16 others spin: {spinning:?}; without them, and of an echo: {quiet:?}");
    // One thread is always free for who does not compute; the rest is the scheduler's.
    assert!(spinning[2] <= *noise + Duration::from_millis(5), "{spinning:?} {quiet:?}");
    assert!(server.stop().status.success());
}

#[test]
fn one_client_that_spins_in_all_it_can_get_leaves_instances_for_the_others() {
    let server = serve(&spinner(), &["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"]);
    let mut greedy = server.client();
    for _ in 0..200 {
        greedy.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    }
    // They come when it has all it gets.
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let mut other = server.client();
        for _ in 0..100 {
            let began = Instant::now();
            assert!(other.read(4096, 512).is_ok());
            slowest = slowest.max(began.elapsed());
        }
    }
    println!("the slowest read of others: {slowest:?}");
    // None of the greedy one's ends within an hour, so nobody has waited for that.
    drop(greedy);
    assert!(server.stop().status.success());
}
