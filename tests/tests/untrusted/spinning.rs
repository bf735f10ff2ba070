//! Components that compute without end. They are ended in time, and other clients do not wait for
//! them.

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

/// For how long a thread was ready to run and waited for a processor, since it was started. `None`
/// if it has ended.
fn kept_waiting(task: &Path) -> Option<Duration> {
    let line = std::fs::read_to_string(task.join("schedstat")).ok()?;
    // The fields: time on a processor, time waiting for one, time slices.
    Some(Duration::from_nanos(line.split_whitespace().nth(1)?.parse().ok()?))
}

/// The same for all threads of a server and the calling thread.
fn all_kept_waiting(server: &Server) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
    let tasks = tasks.flatten().map(|task| task.path());
    tasks.chain(["/proc/thread-self".into()]).filter_map(|task| kept_waiting(&task)).sum()
}

/// Sends a read that is ended at `deadline`, while a thread of the test sleeps for as long. The
/// results are how late the end was and how late the machine alone could have made it: the delay of
/// the sleeping thread and the time that the threads of server and test waited for a processor.
/// That time is taken from the beginning, because a guest that computes yields its thread now and
/// then, and waiting for another thread does not count as its time.
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

/// The 99th percentile of this many runs.
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

/// A thread that answers each byte. No server takes part, so its delay is the machine's own.
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
    // Each connection has an instance of its own, and the guest spins in all but one of them.
    let server = serve(&spinner().model(2), &["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"]);
    let (mut bystander, mut echo) = (server.client(), Echo::new());
    let mut measure = || {
        let read = p99(500, || assert!(bystander.read(4096, 4096).is_ok()));
        (read, p99(500, || echo.ping()))
    };
    measure();
    let (mut quiet, mut spinning) = (Vec::new(), Vec::new());
    // Quiet and busy measurements take turns, so that whatever else the machine does is in both.
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
        // The guests end with their clients.
        drop(spinners);
    }
    spinning.sort();
    let noise = quiet.iter().max().expect("measurements");
    println!("p99 of a read while 16 others spin: {spinning:?}; without them, and of an echo: {quiet:?}");
    // One thread is always free for guests that do not compute. The rest is the scheduler's delay.
    assert!(spinning[2] <= *noise + Duration::from_millis(5), "{spinning:?} {quiet:?}");
    assert!(server.stop().status.success());
}

#[test]
fn one_client_that_spins_in_all_instances_it_can_get_leaves_some_for_others() {
    let server = serve(&spinner(), &["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"]);
    let mut greedy = server.client();
    for _ in 0..200 {
        greedy.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    }
    // These clients come when the greedy one has all that it gets.
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
    // None of the greedy client's calls ends within an hour, so nobody can have waited for one.
    drop(greedy);
    assert!(server.stop().status.success());
}
