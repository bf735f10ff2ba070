//! What a layer costs: the microseconds of processor time that each nofilter of a chain adds to a
//! request, with all limits on ([`pinned`](crate::pinned) says how it is measured).
//!
//! The disk is one hole, which goes over the socket without data: sending 1 MiB costs the server a
//! hundred times what is measured here, and varies by more than that. A layer that copied or
//! touched payloads would still show.

use std::path::Path;

use crate::pinned::{self, Answers, Chain, Requests};
use crate::results::{Spread, slope};

/// The number of nofilters in each chain.
pub const CHAINS: [u8; 4] = [0, 1, 5, 10];

/// The sizes of requests in bytes, each with how many are sent at once. What a layer costs must not
/// depend on the size.
pub const BLOCKS: [(u32, u32); 2] = [(4 << 10, 32), (1 << 20, 32)];

const DISK: u32 = 64 << 20;

/// The costs at one size of a request.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The size of a request in bytes.
    pub block: u32,
    /// Microseconds of processor time for a request, for each of [`CHAINS`]. Medians.
    pub cpu: [f64; CHAINS.len()],
    /// What each further layer costs, turn by turn.
    pub slopes: Vec<f64>,
}

/// Measures all chains this many times in turn.
///
/// # Errors
/// What failed.
pub fn measure(program: &Path, turns: u64) -> Result<Vec<Layers>, String> {
    let arguments = CHAINS.map(|count| {
        let mut words = vec!["--filter=nofilter".to_owned(); count.into()];
        words.extend(["memory".to_owned(), DISK.to_string()]);
        words
    });
    let mut chains = pinned::start(program, &arguments)?;
    let _pinned = pinned::as_client()?;
    let at =
        |&(block, depth)| at_block(&mut chains, Requests { block, depth, disk: DISK, answers: Answers::Holes }, turns);
    BLOCKS.iter().map(at).collect()
}

fn at_block(chains: &mut [Chain], requests: Requests, turns: u64) -> Result<Layers, String> {
    let rows = pinned::in_turns(chains, requests, turns)?;
    let points =
        |row: &Vec<f64>| CHAINS.iter().map(|&count| f64::from(count)).zip(row.iter().copied()).collect::<Vec<_>>();
    let slopes = rows.iter().filter_map(|row| slope(&points(row))).collect();
    let median = |nth: usize| Spread::of(rows.iter().map(|row| row[nth])).map_or(f64::NAN, |spread| spread.median);
    Ok(Layers { block: requests.block, cpu: std::array::from_fn(median), slopes })
}
