//! What a component may do wrong while it serves. All of them stand in one chain of one server and
//! are used one after another, each with its exact outcome. At the end the server has to hold no
//! more than at the beginning.

mod answers;
mod case;
mod floods;
mod handles;
mod keys;
mod memory;
mod time;
mod usage;

use std::time::{Duration, Instant};

use case::{Act, Case, Want};
use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Launch, Server, TempDir};
use usage::{BURST, BURST_AT, Usage, kinds, serve_honestly};

/// The distance between the triggers of two components, in bytes.
const STEP: u64 = 64 << 10;

fn cases() -> Vec<Case> {
    let all = [
        time::spinning(),
        memory::memory(),
        memory::allocators(),
        handles::handles(),
        keys::keys(),
        floods::floods(),
        time::locks(),
        answers::lies(),
    ];
    all.into_iter().flatten().collect()
}

fn content(block: u64) -> Vec<u8> {
    (0..4096u64).map(|n| (n.wrapping_mul(31) ^ block.wrapping_mul(17) ^ 0x55) as u8 | 1).collect()
}

/// A server with all cases in a chain, the first nearest to the client.
fn serve(cases: &[Case], dir: &TempDir) -> Server {
    let limits = ["--filter-limit", "cpu=100ms", "--filter-limit", "wall=2s"];
    // As an operator runs it. With a backtrace the unwinding at each error would touch 2 MiB of the
    // program and the stacks of all guests.
    let mut launch = Launch::new(limits).env("TMPDIR", dir.path()).env("RUST_BACKTRACE", "0");
    for (nth, case) in cases.iter().enumerate() {
        let component = case.guest.component(nth as u64 * STEP);
        launch = launch.arg("--wasm-filter").arg(dir.file(&format!("{}.wasm", case.guest.name), &component));
        for limit in case.limits {
            launch = launch.arg("--filter-limit").arg(format!("{}:{limit}", case.guest.name));
        }
    }
    launch.args(["memory", "64M"]).start()
}

fn act(client: &mut Client, case: &Case, at: u64) -> Result<Vec<u8>, u32> {
    match case.act {
        Act::Read(length) => client.read(at, length),
        Act::Write(length) => client.write(at, &content(at)[..length as usize]).map(|()| Vec::new()),
        Act::Extents(length) => client.call(cmd::BLOCK_STATUS, 0, at, length, &[]).result,
    }
}

/// What is wrong with the reply, if anything is.
fn judge(case: &Case, at: u64, result: &Result<Vec<u8>, u32>) -> Option<String> {
    let right = match (case.act, case.want, result) {
        (_, Want::Error(errno), Err(got)) => *got == errno,
        (Act::Read(length), Want::Right, Ok(bytes)) => bytes == &content(at)[..length as usize],
        (Act::Read(_), Want::Zeroes, Ok(bytes)) => bytes.iter().all(|byte| *byte == 0),
        (Act::Write(_) | Act::Extents(_), Want::Right, Ok(_)) => true,
        _ => false,
    };
    let got = result.as_ref().map(|bytes| bytes.iter().take(8).copied().collect::<Vec<u8>>());
    (!right).then(|| format!("{}: wanted {:?}, got {got:?}", case.guest.name, case.want))
}

/// What is wrong with the log, if anything is.
fn heard(server: &Server, case: &Case) -> Option<String> {
    let name = &case.guest.name;
    let of_it = format!("{name}: ");
    let said = |server: &Server| {
        let log = server.stderr();
        let lines: Vec<String> = log.lines().filter(|line| line.contains(&of_it)).map(str::to_owned).collect();
        lines
    };
    if case.log.is_empty() {
        return said(server).first().map(|line| format!("{name}: the log has: {line}"));
    }
    // The reply may arrive before the line is in the log.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if said(server).iter().any(|line| line.contains(case.log)) {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Some(format!("{name}: no '{}' in the log, but: {:?}", case.log, said(server).first()))
}

#[test]
fn every_hostile_component_costs_its_own_requests_and_nothing_is_left_of_it() {
    cost_their_own_requests(&cases());
}

/// In a server of their own, because a chain has at most 128 filters.
#[test]
fn a_list_that_a_component_does_not_have_costs_its_own_request_and_nothing_is_left_of_it() {
    cost_their_own_requests(&memory::huge_lists());
}

fn cost_their_own_requests(cases: &[Case]) {
    let dir = TempDir::new();
    let server = serve(cases, &dir);
    let mut bystander = server.client();
    for nth in 0..cases.len() as u64 {
        // Next to the trigger all guests behave well.
        bystander.write(nth * STEP + 4096, &content(nth)).expect("a write");
    }
    for (nth, case) in cases.iter().enumerate().filter(|(_, case)| matches!(case.act, Act::Read(_))) {
        let at = nth as u64 * STEP;
        bystander.write(at, &content(at)).unwrap_or_else(|error| panic!("{}: {error}", case.guest.name));
    }
    for nth in 0..cases.len() as u64 {
        assert_eq!(bystander.read(nth * STEP + 4096, 4096), Ok(content(nth)));
    }
    // The disk is in memory, so the burst's part of it is written before anything is measured.
    for nth in 0..u64::from(BURST) / STEP {
        bystander.write(BURST_AT + nth * STEP, &[7; STEP as usize]).expect("a write");
    }
    println!("one request at a time: {}", kinds(&server));
    serve_honestly(&mut bystander);
    // The server has now allocated what any client makes it allocate. Whatever comes on top has to
    // be gone in the end.
    let before = Usage::of(&server, &dir);
    println!("before: {}", kinds(&server));
    let mut wrong = Vec::new();
    for round in 0..4 {
        for (nth, case) in cases.iter().enumerate() {
            let at = nth as u64 * STEP;
            let mut client = server.client();
            let began = Instant::now();
            let result = act(&mut client, case, at);
            let took = began.elapsed();
            println!("{}: {took:?}", case.guest.name);
            wrong.extend(judge(case, at, &result));
            if took.as_secs() >= 5 {
                wrong.push(format!("{}: it took {took:?}", case.guest.name));
            }
            wrong.extend(heard(&server, case));
            // The same connection and another one are still served.
            for client in [&mut client, &mut bystander] {
                if client.read(at + 4096, 4096) != Ok(content(nth as u64)) {
                    wrong.push(format!("{}: afterwards others are not served", case.guest.name));
                }
            }
            client.disconnect();
        }
        assert!(wrong.is_empty(), "round {round}:\n{}", wrong.join("\n"));
        println!("round {round}: {}", kinds(&server));
    }
    before.is_back(&server, &dir);
    assert_eq!(bystander.read(4096, 4096), Ok(content(0)), "it still serves");
    drop(bystander);
    let log = server.stop();
    assert!(log.status.success(), "{}\n{}", log.status, log.stderr);
    assert!(!log.stderr.bytes().any(|byte| byte.is_ascii_control() && byte != b'\n'), "an escape in the log");
    let flood = log.stderr.lines().filter(|line| line.contains("I am the host")).count();
    assert!(flood < 400, "{flood} lines of the flood");
    assert!(log.stderr.contains("lines of this filter were dropped") || flood < 400);
}
