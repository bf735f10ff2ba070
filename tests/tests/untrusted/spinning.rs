//! Components that compute without end: ended in time, and nobody else waits for them.

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

#[test]
fn a_guest_that_spins_is_ended_within_20_ms_of_its_deadline() {
    let server = serve(&spinner(), &["--filter-limit", "cpu=300ms"]);
    let mut client = server.client();
    let late = (0..5).map(|_| {
        let began = Instant::now();
        assert_eq!(client.read(0, 512), Err(error::EIO));
        began.elapsed().saturating_sub(Duration::from_millis(300))
    });
    let mut late: Vec<Duration> = late.collect();
    late.sort();
    println!("ended so late: {late:?}");
    // The others say how busy the machine is.
    assert!(late[0] <= Duration::from_millis(20), "{late:?}");
}

/// The 99th of a hundred of so many reads.
fn p99(client: &mut Client, reads: u32) -> Duration {
    let mut times: Vec<Duration> = (0..reads)
        .map(|_| {
            let began = Instant::now();
            assert!(client.read(4096, 4096).is_ok());
            began.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() * 99 / 100]
}

#[test]
fn while_every_other_instance_spins_a_client_is_served_as_before() {
    // An instance for each connection: in all but one of them the guest spins.
    let server = serve(&spinner().model(2), &["--filter-limit", "cpu=20s", "--filter-limit", "wall=20s"]);
    let mut bystander = server.client();
    p99(&mut bystander, 200);
    let before = p99(&mut bystander, 1000);
    let mut spinners: Vec<Client> = (0..16).map(|_| server.client()).collect();
    for spinner in &mut spinners {
        spinner.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    }
    p99(&mut bystander, 200);
    let meanwhile = p99(&mut bystander, 1000);
    println!("p99 of a read: {before:?} before, {meanwhile:?} while 16 others spin");
    // One thread is always free for who does not compute; the rest is the scheduler's.
    assert!(meanwhile <= before + Duration::from_millis(20), "{before:?} {meanwhile:?}");
    drop(spinners);
    assert!(server.stop().status.success());
}
