//! What a layer costs. Run by hand: `cargo test --release -p rbdkit-sandbox --lib tests::speed
//! -- --ignored --nocapture`.
//!
//! Times vary on a shared machine, but instruction counts do not. Run `one_configuration` under
//! `valgrind --tool=callgrind` with `LAYERS` and `ROUNDS`, and again with twice the `ROUNDS`. The
//! difference of the two counts divided by `ROUNDS` is the number of instructions of a request.

use std::task::{Context, Waker};

use rbdkit_plugin_api::{Buffer, Flags, Op, Span};

use super::support::{Disk, Guest, READS, Stack, host};
use crate::FilterLimits;

const ROUNDS: u32 = 200_000;

/// Nanoseconds that this thread has run. Other threads do not count.
fn cpu() -> f64 {
    // This reads the kernel's account, because rustix cannot read the clock under valgrind.
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    account.split(' ').next().unwrap().parse().unwrap()
}

async fn measure(layers: usize, length: u32) -> f64 {
    measure_rounds(layers, length, ROUNDS).await
}

async fn measure_rounds(layers: usize, length: u32, rounds: u32) -> f64 {
    let guests: Vec<Guest> = (0..layers).map(|_| Guest::new(&["reads"], READS)).collect();
    let stack = Stack::over(&guests, Disk { silent: true, ..Disk::default() }, FilterLimits::default()).await;
    requests(&stack, length, rounds, false).await
}

/// Nanoseconds of CPU for a request. The requests go over the first 400 KiB in steps of 4 KiB.
async fn requests(stack: &Stack, length: u32, rounds: u32, write: bool) -> f64 {
    let top = stack.open().await;
    let mut buffer = Some(Buffer::new(length));
    let mut cx = Context::from_waker(Waker::noop());
    let mut later = 0u32;
    let start = cpu();
    for n in 0..rounds {
        let (payload, span, offset) = (buffer.take().unwrap(), Span::new(0, length), u64::from(n % 100) * 4096);
        let op = match write {
            false => top.pread(payload, span, offset),
            true => top.pwrite(payload, span, offset, Flags::NONE),
        };
        let (back, result) = match op.poll_now(&mut cx) {
            Op::Ready(done) => done,
            pending => {
                later += 1;
                pending.await
            }
        };
        result.unwrap();
        buffer = Some(back);
    }
    let each = (cpu() - start) / f64::from(rounds);
    assert!(later <= rounds / 100, "{later} requests did not complete in the first poll");
    each
}

#[tokio::test]
#[ignore = "a measurement"]
async fn what_a_layer_costs() {
    measure(1, 512).await;
    for length in [512, 4096, 262_144] {
        let bare = measure(0, length).await;
        let one = measure(1, length).await;
        let three = measure(3, length).await;
        println!(
            "{length}: bare {bare:.0} ns, one layer +{:.0} ns, three layers +{:.0} ns each",
            one - bare,
            (three - bare) / 3.0
        );
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn one_configuration() {
    let number = |name: &str, default: u32| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (layers, rounds) = (number("LAYERS", 1), number("ROUNDS", ROUNDS));
    let each = measure_rounds(layers as usize, 4096, rounds).await;
    println!("{layers} layers, {rounds} rounds: {each:.0} ns each");
}

/// `FILTER` is a component's file. Everything is written once first, so that the reads find the
/// filter's own state.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_built_filter() {
    let path = std::env::var("FILTER").unwrap();
    let rounds = std::env::var("ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let host = host();
    let module = host.load(&path, &std::fs::read(&path).unwrap()).unwrap();
    let layer = module.configure(vec![], FilterLimits::default()).unwrap();
    let stack = Stack::of(host, vec![layer], Disk { silent: true, ..Disk::default() }).await;
    requests(&stack, 4096, 1000, true).await;
    let write = requests(&stack, 4096, rounds, true).await;
    let read = requests(&stack, 4096, rounds, false).await;
    println!("{path}: read {read:.0} ns, write {write:.0} ns");
}
