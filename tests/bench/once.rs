//! What is measured once a run, outside of the rounds: memory at rest and the time to start.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rbdkit_tests::attackers::{self, Attacker, Target, under_attack};
use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Launch, Server, TempDir, free_port};

use crate::results::Spread;
use crate::servers::Programs;

/// How many idle connections the memory is divided by.
const CONNECTIONS: u64 = 100;
/// How many requests are in flight at once, and so instances of each filter: a filter's usual
/// limit.
const INSTANCES: u64 = 64;
/// How long each of these requests waits in the lowest filter. By then all of them are under way.
const DELAY: Duration = Duration::from_millis(500);
/// How many reads under attack the percentile is taken of.
const ATTACKED_READS: u64 = 2000;
/// How many starts the median is taken of.
const STARTS: usize = 11;

const THREE: [&str; 3] = ["--filter=readahead", "--filter=cow", "--filter=cache"];

/// The figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Idle,
    Connection,
    Instance,
    Start,
    Attacked,
}

impl Figure {
    pub const ALL: [Figure; 5] = [Figure::Idle, Figure::Connection, Figure::Instance, Figure::Start, Figure::Attacked];

    pub fn what(self) -> &'static str {
        match self {
            Figure::Idle => "resident when idle, three filters",
            Figure::Connection => "resident for each idle connection, three filters",
            Figure::Instance => "resident for each idle instance",
            Figure::Start => "start to listening, three filters, compiled code cached",
            Figure::Attacked => "p99 of a 4 KiB read while others attack, cow",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Figure::Idle => "MiB",
            Figure::Connection | Figure::Instance => "KiB",
            Figure::Start | Figure::Attacked => "ms",
        }
    }
}

/// One figure of rbdkit and of nbdkit. `None` where it could not be measured or has no meaning.
#[derive(Clone, Debug)]
pub struct Once {
    pub figure: Figure,
    pub rbdkit: Option<f64>,
    pub nbdkit: Option<f64>,
}

/// Measures all figures.
pub fn measure(programs: &Programs) -> Vec<Once> {
    let cache = TempDir::new();
    let one = |figure: Figure| {
        let of = |program: &std::path::Path| {
            let launch = |arguments: &[&str]| {
                Launch::new(arguments).program(program.to_owned()).env("XDG_CACHE_HOME", cache.path())
            };
            match figure {
                Figure::Idle => idle(&launch),
                Figure::Connection => connection(&launch),
                Figure::Instance => instance(&launch),
                Figure::Start => start(&launch),
                Figure::Attacked => attacked(&launch),
            }
        };
        // nbdkit takes 5 GiB for the attackers.
        let nbdkit = if matches!(figure, Figure::Instance | Figure::Attacked) { None } else { of(&programs.nbdkit) };
        Once { figure, rbdkit: of(&programs.rbdkit), nbdkit }
    };
    Figure::ALL.map(one).to_vec()
}

type Start<'a> = &'a dyn Fn(&[&str]) -> Launch;

fn three(launch: Start<'_>) -> Option<Server> {
    launch(&THREE).args(["memory", "64M"]).try_start().inspect_err(|outcome| eprintln!("bench: {outcome:?}")).ok()
}

fn idle(launch: Start<'_>) -> Option<f64> {
    let resident = (0..3).filter_map(|_| three(launch)).map(|server| server.resident() as f64);
    Spread::of(resident).map(|spread| spread.median / f64::from(1 << 20))
}

/// A client that has read once and is idle.
fn visitor(server: &Server) -> Client {
    let mut client = server.client();
    client.read(0, 4096).expect("a read of the disk");
    client
}

fn connection(launch: Start<'_>) -> Option<f64> {
    let server = three(launch)?;
    // The first client brings memory along that further ones do not need.
    let _first = visitor(&server);
    let before = server.resident();
    let _clients: Vec<Client> = (0..CONNECTIONS).map(|_| visitor(&server)).collect();
    Some(server.resident().saturating_sub(before) as f64 / CONNECTIONS as f64 / 1024.0)
}

/// Lets all requests wait in the lowest of the filters, so that each filter needs as many instances
/// as there are requests. Readahead is left out, because requests would wait for its prefetches.
fn instance(launch: Start<'_>) -> Option<f64> {
    let filters = ["--filter=cow", "--filter=cache", "--filter=delay"];
    let delay = format!("rdelay={}ms", DELAY.as_millis());
    let launch = launch(&filters).args(["memory", "64M", &delay]);
    let server = launch.try_start().inspect_err(|outcome| eprintln!("bench: {outcome:?}")).ok()?;
    let mut client = visitor(&server);
    let before = server.resident();
    let started = Instant::now();
    for nth in 0..INSTANCES {
        // Each request has its own block, so that no filter makes one wait for another.
        client.submit(cmd::READ, 0, nth << 20, 512, &[]).expect("a request");
    }
    for _ in 0..INSTANCES {
        client.receive().expect("a reply");
    }
    if started.elapsed() >= 2 * DELAY {
        eprintln!("bench: the requests were not under way together: nothing is known of instances");
        return None;
    }
    let instances = INSTANCES * filters.len() as u64;
    Some(server.resident().saturating_sub(before) as f64 / instances as f64 / 1024.0)
}

fn start(launch: Start<'_>) -> Option<f64> {
    three(launch)?;
    let times = (0..STARTS).filter_map(|_| three(launch)).map(|server| server.start_time().as_secs_f64() * 1e3);
    Spread::of(times).map(|spread| spread.median)
}

/// An honest client's reads while all attackers are at work (`tests/tests/fair_shares.rs`).
fn attacked(launch: Start<'_>) -> Option<f64> {
    let port = free_port();
    let address = ["--filter=cow", "-i", "127.0.0.1", "-p", &port.to_string(), "--limit", "connections=300"];
    // The socket's path is not used: it becomes the export name of `--run`.
    let launch = launch(&address).socket_options(&["-f", "-e"], "-P").args(["memory", "128M"]);
    let _server = launch.try_start().inspect_err(|outcome| eprintln!("bench: {outcome:?}")).ok()?;
    let target = Target { port, export: String::new(), fault_at: 0, compute_at: 0 };
    let mut client = target.client(Ipv4Addr::LOCALHOST).ok()?;
    let all: &[Attacker] = &attackers::ALL;
    let mut times: Vec<Duration> = under_attack(&target, &all.iter().collect::<Vec<_>>(), || {
        let read = |number: u64| {
            let began = Instant::now();
            attackers::read(&mut client, number % (32 << 10) * 4096, 4096).ok().map(|_| began.elapsed())
        };
        (0..ATTACKED_READS).map_while(read).collect()
    });
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).filter(|_| times.len() as u64 == ATTACKED_READS)?;
    Some(p99.as_secs_f64() * 1e3)
}
