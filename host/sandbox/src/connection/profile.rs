//! Samples of where guests are, for the profiler of `rbdkit-filter bench`. A server takes none.
//!
//! A thread advances the epoch every millisecond. A guest that runs notices at its next loop or
//! call, and the host then looks at its stack. So a sample is at the beginning of a function or of
//! a loop's round. A guest that waits in the host is sampled when it goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::lock;
use wasmtime::Engine;

/// The most samples, which is more than four minutes of computing.
const MAX_SAMPLES: usize = 250_000;

/// The most places in the tree of calls. Further ones count as their caller.
const MAX_NODES: usize = 50_000;

/// A function, as called from one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileNode {
    /// The function's name.
    pub name: String,
    /// The index of its caller. None: the host calls it.
    pub caller: Option<usize>,
}

/// What was sampled.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The functions. A caller comes before those that it calls.
    pub nodes: Vec<ProfileNode>,
    /// When, counted from the beginning of the profile, and in which node.
    pub samples: Vec<(Duration, usize)>,
}

#[derive(Debug, Default)]
struct Collected {
    samples: Samples,
    /// The indices of nodes by caller and name.
    places: HashMap<(Option<usize>, String), usize>,
}

/// Collects samples.
#[derive(Debug)]
pub struct Profile {
    began: Instant,
    collected: Mutex<Collected>,
}

impl Profile {
    /// The time between two samples of a guest that runs.
    pub const INTERVAL: Duration = Duration::from_millis(1);

    /// Begins a profile. Guests are sampled from when a host is made with it.
    pub fn begin() -> Arc<Profile> {
        Arc::new(Profile { began: Instant::now(), collected: Mutex::default() })
    }

    /// What was sampled so far.
    pub fn samples(&self) -> Samples {
        lock(&self.collected).samples.clone()
    }

    /// Adds a sample. `functions` begins with the one that the host called.
    pub(crate) fn add(&self, functions: impl Iterator<Item = String>) {
        let mut collected = lock(&self.collected);
        let Collected { samples, places } = &mut *collected;
        if samples.samples.len() >= MAX_SAMPLES {
            return;
        }
        let mut at = None;
        for name in functions {
            let place = (at, name);
            at = match places.get(&place) {
                Some(known) => Some(*known),
                None if samples.nodes.len() >= MAX_NODES => break,
                None => {
                    let node = ProfileNode { name: place.1.clone(), caller: at };
                    samples.nodes.push(node);
                    places.insert(place, samples.nodes.len() - 1);
                    Some(samples.nodes.len() - 1)
                }
            };
        }
        if let Some(at) = at {
            samples.samples.push((self.began.elapsed(), at));
        }
    }

    /// Advances the engine's epoch until the engine is gone.
    ///
    /// # Errors
    /// There are too many threads.
    #[expect(clippy::disallowed_methods, reason = "this thread exists to tick")]
    pub(crate) fn tick(engine: &Engine) -> std::io::Result<()> {
        let engine = engine.weak();
        let thread = std::thread::Builder::new().name("rbdkit-profile".into()).stack_size(64 << 10);
        thread.spawn(move || {
            while let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(Profile::INTERVAL);
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_functions_share_their_nodes() {
        let profile = Profile::begin();
        let stack =
            |names: &[&str]| profile.add(names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>().into_iter());
        stack(&["pread", "sum"]);
        stack(&["pread", "copy"]);
        stack(&["pread", "sum"]);
        stack(&["pwrite", "sum"]);
        stack(&[]);
        let Samples { nodes, samples } = profile.samples();
        let places: Vec<usize> = samples.iter().map(|(_, at)| *at).collect();
        assert_eq!(places, [1, 2, 1, 4]);
        let node = |name: &str, caller| ProfileNode { name: name.into(), caller };
        assert_eq!(nodes[1..3], [node("sum", Some(0)), node("copy", Some(0))]);
        assert_eq!(nodes[3..], [node("pwrite", None), node("sum", Some(3))]);
    }
}
