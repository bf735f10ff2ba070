//! The events of the simulated server: alarms sound when the test moves the clock, and changes are
//! told when the test makes them.

use std::rc::{Rc, Weak};

use crate::Scope;

use super::call::{Call, ConnectionState, Phase};
use super::exported::Exported;
use super::host::Served;
use super::world::Owner;

/// The most alarms that sound while the clock moves once.
const MAX_ALARMS: u32 = 10_000;

/// The most bytes of a command and of its answer.
const MAX_COMMAND: usize = 4096;

impl<F: Exported> Served<F> {
    /// Lets this many nanoseconds pass. Alarms sound at their times, one after another.
    ///
    /// # Panics
    /// The filter sets alarms without end.
    pub fn pass_time(&self, ns: u64) {
        let end = self.world.borrow().time.saturating_add(ns);
        for _ in 0..MAX_ALARMS {
            if !self.sound_one(end) {
                self.world.borrow_mut().time = end;
                return;
            }
        }
        panic!("{MAX_ALARMS} alarms sounded, and the filter sets more in the past");
    }

    /// Calls the alarm that is due first, if one is due before this time.
    fn sound_one(&self, end: u64) -> bool {
        let next = {
            let world = self.world.borrow();
            let first = world.alarms.iter().min_by_key(|((_, id), at)| (**at, *id));
            first.map(|(key, at)| (*key, *at)).filter(|(_, at)| *at <= end)
        };
        let Some(((owner, id), at)) = next else { return false };
        {
            let mut world = self.world.borrow_mut();
            world.alarms.remove(&(owner, id));
            world.time = world.time.max(at);
        }
        match owner {
            Owner::Connection(connection) => {
                if let Some(connection) = self.connection(connection) {
                    let filter = self.instance(&connection);
                    let call = Call::new(&self.world, Phase::Data, Some(&connection)).payload(Vec::new());
                    let _ = call.serve(|| {
                        filter.alarm(Scope::Connection, id);
                        Ok::<(), ()>(())
                    });
                }
            }
            _ => drop(self.event_call(|filter| filter.alarm(Scope::Server, id))),
        }
        true
    }

    /// Closes the other end of the descriptor, or ends the process, that the `nth` value of a
    /// parameter names.
    pub fn end(&self, param: &str, nth: u32) {
        self.changing(|served| {
            served.world.borrow_mut().ended.insert((param.to_string(), nth));
        });
    }

    /// Makes a change and tells the filter what has changed.
    pub(super) fn changing(&self, change: impl FnOnce(&Self)) {
        let look = || self.world.borrow().watched();
        let before = look();
        change(self);
        for ((param, nth, now, holds), (.., then, _)) in look().into_iter().zip(before) {
            if now != then {
                self.event_call(|filter| filter.changed(&param, nth, holds));
            }
        }
    }

    /// A client of the control socket that the `nth` value of a parameter names sends `data`.
    /// Returns the filter's answer, or None if the filter does not export `on-control`.
    ///
    /// # Panics
    /// The host would not pass this on: `data` is empty or longer than 4096 bytes, or the answer is
    /// longer.
    pub fn send(&self, param: &str, nth: u32, data: &[u8]) -> Option<Vec<u8>> {
        assert!((1..=MAX_COMMAND).contains(&data.len()), "a command has 1 to {MAX_COMMAND} bytes");
        let answer = self.event_call(|filter| filter.received(param, nth, data))?;
        assert!(answer.len() <= MAX_COMMAND, "an answer of {} bytes (at most {MAX_COMMAND})", answer.len());
        Some(answer)
    }

    /// Whether the filter has closed its gate.
    pub fn gate_is_closed(&self) -> bool {
        self.world.borrow().gate_is_closed
    }

    /// Whether the filter has asked the server to end, and may.
    pub fn shutdown_asked(&self) -> bool {
        self.world.borrow().shutdown_asked
    }

    /// A call of the phase E.
    pub(super) fn event_call<R>(&self, export: impl FnOnce(&F) -> R) -> R {
        let filter = self.first_instance();
        Call::new(&self.world, Phase::Event, None).run(|| export(&filter)).0
    }

    /// The open connection with this number.
    fn connection(&self, id: u64) -> Option<Rc<ConnectionState>> {
        self.connections.borrow().iter().filter_map(Weak::upgrade).find(|connection| connection.id == id)
    }
}
