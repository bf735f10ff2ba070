//! Measures the cost of each step of a request separately, without sockets: `make microbench`.
//!
//! Each benchmark is one step that the datapath does once or a few times in a request. If other
//! programs run on the machine, use the column `fastest`: it is the cost without interruptions, and
//! repeats within some percent. These figures explain those of `make bench` and show the effect of
//! a change; they do not replace them. `MICRO=` takes a part of a name, or divan's options.
#![forbid(unsafe_code)]

mod codec;
mod gate;
mod guest;
mod pool;
mod stack;
mod state;

/// Calls in a sample. With this number even calls of some nanoseconds take long compared with the
/// clock's 20 ns, and caches are warm after the first calls.
const SAMPLE_SIZE: u32 = 256;
const SAMPLES: u32 = 200;

fn main() {
    divan::Divan::default().sample_size(SAMPLE_SIZE).sample_count(SAMPLES).config_with_args().main();
}
