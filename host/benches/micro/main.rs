//! What the parts of a request's way cost, each on its own and without sockets: `make microbench`.
//!
//! Each benchmark is one thing that the datapath does once or a few times a request. On a machine
//! where other things run look at the column `fastest`: it is what the code costs when nobody is in
//! the way, and repeats within some percent. These figures explain those of `make bench`, and point
//! to what a change did; they do not replace them. `MICRO=` takes a part of a name, or divan's
//! options.
#![forbid(unsafe_code)]

mod codec;
mod gate;
mod guest;
mod pool;
mod stack;
mod state;

/// Calls in a sample: those of some nanoseconds are then long against the clock's 20 ns, and what
/// was cold at the first is warm.
const SAMPLE_SIZE: u32 = 256;
const SAMPLES: u32 = 200;

fn main() {
    divan::Divan::default().sample_size(SAMPLE_SIZE).sample_count(SAMPLES).config_with_args().main();
}
