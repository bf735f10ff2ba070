//! Running the clients, and checking what they get against the model.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::host::{Extent, ZeroFlags};

use super::call::{Call, Trap};
use super::model::{Active, Effect, Looks, Value, data, zeroes};
use super::random::Rng;
use super::request::Request;
use super::settings::{Settings, SimError, Stats, Writes};
use super::shared::Shared;
use super::world::{Status, World};

/// The code under test: serves one request with the host.
pub trait Subject: Sync {
    fn serve(&self, host: &Call<'_>, request: Request) -> Result<Vec<Extent>, SimError>;
    /// Called after the last request.
    fn finalize(&self, _host: &Call<'_>) -> Result<(), SimError> {
        Ok(())
    }
}

/// Makes a client's next request.
type Choose = fn(&mut Rng, &Settings) -> Request;

/// The simulation.
pub struct Simulation {
    shared: Shared,
}

/// What a request does, for the model.
struct Expectation {
    from: usize,
    to: usize,
    writes: Option<Value>,
    must_be_durable: bool,
}

impl Expectation {
    fn of(request: Request, size: u64) -> Expectation {
        let expect = |offset: u64, length: u64, writes, must_be_durable| {
            let (from, to) = (offset as usize, (offset + length) as usize);
            Expectation { from, to, writes, must_be_durable }
        };
        match request {
            Request::Read { offset, length } => expect(offset, length.into(), None, false),
            Request::Write { offset, length, fua } => expect(offset, length.into(), Some(data), fua),
            Request::Zero { offset, length, flags } => expect(offset, length, Some(zeroes), flags.fua),
            Request::Trim { offset, length, .. } => expect(offset, length, Some(zeroes), false),
            // The answer may run on beyond the range.
            Request::Extents { offset, .. } => expect(offset, size - offset, None, false),
            Request::Cache { .. } => expect(0, 0, None, false),
            Request::Flush => expect(0, size, None, true),
        }
    }

    fn looks(&self) -> Looks {
        if self.must_be_durable { Looks::AtDurable } else { Looks::AtContent }
    }

    /// The payload before the request is served.
    fn payload(&self, request: Request, id: u64) -> Vec<u8> {
        match request {
            // A byte that the request leaves unfilled must not have the right value by chance.
            Request::Read { .. } => vec![0xee; self.to - self.from],
            Request::Write { .. } => (self.from..self.to).map(|position| data(id, position)).collect(),
            _ => Vec::new(),
        }
    }
}

impl Simulation {
    pub fn new(settings: Settings) -> Simulation {
        Simulation { shared: Shared::new(settings) }
    }

    /// Runs all clients to their end. `choose` makes their requests.
    ///
    /// # Panics
    /// If a client reads a wrong value, or if no client can continue. The message has the seed.
    pub fn run(&self, subject: &dyn Subject, choose: Choose) -> Stats {
        std::thread::scope(|scope| {
            for client in 0..self.shared.settings.clients {
                scope.spawn(move || self.client(client, subject, choose));
            }
        });
        let world = self.shared.world();
        if let Some(failure) = &world.failure {
            panic!("seed {}: {failure}", self.shared.settings.seed);
        }
        assert!(world.locks.is_empty());
        world.stats
    }

    fn client(&self, client: usize, subject: &dyn Subject, choose: Choose) {
        let mut rng = Rng::new(self.shared.settings.seed.wrapping_mul(1000) + client as u64 + 1);
        let call = Call::new(&self.shared, client);
        drop(self.shared.wait_for_turn(client, self.shared.world()));
        for _ in 0..self.shared.settings.requests {
            if self.shared.world().failure.is_some() {
                break;
            }
            self.request(&call, subject, choose(&mut rng, &self.shared.settings));
        }
        let mut world = self.shared.world();
        world.status[client] = Status::Done;
        self.shared.pass_turn(&mut world);
    }

    /// Serves one request and checks its answer.
    fn request(&self, call: &Call<'_>, subject: &dyn Subject, request: Request) {
        let expectation = Expectation::of(request, self.shared.settings.size);
        let mut world = self.shared.world();
        let (from, to) = (expectation.from, expectation.to);
        let id = world.model.begin(from, to, expectation.writes, expectation.looks());
        world.buffers[call.client()] = vec![Some(expectation.payload(request, id))];
        drop(world);

        let served = catch_unwind(AssertUnwindSafe(|| subject.serve(call, request)));
        let mut world = self.shared.world();
        let result = match served {
            Ok(result) => result,
            Err(payload) if payload.is::<Trap>() => Err(SimError::Trapped),
            Err(_) => {
                world.failure = Some(format!("{request:?} panicked"));
                Err(SimError::Trapped)
            }
        };
        world.release(call.client());
        // The answer may arrive late, when other clients have already continued.
        drop(world);
        let mut world = call.turn_without_faults();
        let done = result.is_ok() && !matches!(request, Request::Trim { .. });
        let active = world.model.end(id, if done { Effect::Done } else { Effect::Unknown });
        match result {
            Ok(extents) => {
                world.stats.served += 1;
                let payload = world.buffers[call.client()][0].take().unwrap_or_default();
                if let Err(failure) = self.check(&mut world, request, &expectation, &active, &payload, &extents) {
                    world.failure = Some(failure);
                }
            }
            Err(error) => count_failure(&mut world, request, error),
        }
    }

    /// Checks the answer to a request that succeeded.
    fn check(
        &self,
        world: &mut World,
        request: Request,
        expectation: &Expectation,
        active: &Active,
        payload: &[u8],
        extents: &[Extent],
    ) -> Result<(), String> {
        let (from, to) = (expectation.from, expectation.to);
        let wrong = |position: usize, value: u8, what: &str| {
            let allowed: Vec<u8> = (0..=255).filter(|v| active.seen[position - from].has(*v)).collect();
            Err(format!("{request:?}: byte {position} {what} {value}, but only {allowed:?} are possible"))
        };
        match request {
            Request::Read { .. } => {
                for (n, value) in payload.iter().enumerate() {
                    if !active.seen[n].has(*value) {
                        return wrong(from + n, *value, "was read as");
                    }
                    world.model.pin(active, from + n, *value);
                }
            }
            Request::Extents { length, one, .. } => {
                let mut at = from as u64;
                let end = at + length;
                for extent in extents {
                    if extent.offset != at || extent.length == 0 {
                        return Err(format!("{request:?}: {extents:?} has a gap, an overlap or an empty extent"));
                    }
                    at += extent.length;
                    for position in extent.offset as usize..(at as usize).min(to) {
                        if extent.zero && !active.seen[position - from].has(0) {
                            return wrong(position, 0, "was said to be");
                        }
                    }
                }
                let begins_late = extents.last().is_none_or(|last| last.offset >= end);
                if begins_late || at as usize > to || one && (extents.len() > 1 || at > end) {
                    return Err(format!("{request:?}: {extents:?} does not fit the request"));
                }
            }
            _ => {}
        }
        if expectation.must_be_durable && self.shared.settings.writes == Writes::Durable {
            for position in from..to {
                let value = world.durable[position];
                let mut allowed = active.seen[position - from];
                if let Some(writes) = active.writes {
                    allowed.add(writes(active.id, position));
                }
                if !allowed.has(value) {
                    return wrong(position, value, "is durable as");
                }
            }
        }
        Ok(())
    }

    /// Calls the subject's `finalize`. Afterwards next must hold what a client could read, if the
    /// writes are to be durable.
    ///
    /// # Errors
    /// Those of the subject.
    ///
    /// # Panics
    /// If next holds a wrong value. The message has the seed.
    pub fn finalize(&self, subject: &dyn Subject) -> Result<(), SimError> {
        {
            let mut world = self.shared.world();
            world.status[0] = Status::Ready;
            world.turn = 0;
            world.buffers[0] = vec![None];
        }
        let result = subject.finalize(&Call::new(&self.shared, 0));
        let mut world = self.shared.world();
        world.release(0);
        if result.is_ok() && self.shared.settings.writes == Writes::Durable {
            for (position, value) in world.next.iter().enumerate() {
                let seed = self.shared.settings.seed;
                assert!(
                    world.model.allows(position, *value),
                    "seed {seed}: at the end byte {position} of next is {value}"
                );
            }
        }
        result
    }
}

/// Counts a request that failed, and reports the errors that no request may fail with.
fn count_failure(world: &mut World, request: Request, error: SimError) {
    world.stats.failed += 1;
    match error {
        SimError::Deadlock => world.failure = Some(format!("{request:?}: a second lock in one call")),
        SimError::NotSupported => {
            world.stats.refused += 1;
            if !matches!(request, Request::Zero { flags: ZeroFlags { fast: true, .. }, .. }) {
                world.failure = Some(format!("{request:?}: not supported"));
            }
        }
        _ => {}
    }
}
