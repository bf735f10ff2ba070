//! Runs a record against a filter.

use std::collections::HashMap;

use crate::Errno;
use crate::testing::client::Client;
use crate::testing::connecting::Connecting;
use crate::testing::exported::Exported;
use crate::testing::host::{Host, Served};
use crate::testing::parameters;

use super::entry::{Answer, EntryCall, Event, Gate, Outcome, Record, RecordedCall};

/// The most differences that are kept. All are counted.
const KEPT: usize = 100;

/// What running a record has shown.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Calls that were made.
    pub calls: u64,
    /// Those among them whose answers were compared.
    pub compared: u64,
    /// One line for each call whose answer differs, and for what is left below. At most 100.
    pub differences: Vec<String>,
    /// How many there are.
    pub differing: u64,
    /// How often the filter got an answer from below that the record does not have, for example
    /// because it read bytes that nobody has read before. Such calls are not compared.
    pub guesses: u64,
    /// What the filter has logged.
    pub log: Vec<String>,
}

impl Replayed {
    /// Panics with the differences, if there are any, or if nothing was compared.
    pub fn assert_same(&self) {
        let lines = self.differences.join("\n");
        assert!(self.differing == 0, "{} of {} calls differ from the record:\n{lines}", self.differing, self.compared);
        assert!(self.compared > 0, "nothing could be compared: {self:?}");
    }

    fn add(&mut self, line: String) {
        self.differing += 1;
        if self.differences.len() < KEPT {
            self.differences.push(line);
        }
    }
}

impl Host {
    /// Runs the record, from which this host was made, against the filter `F`, and compares each
    /// answer, and what is left below, with the record. The filter gets the parameters of the
    /// record. `words` are added, or replace those with the same key. Give those that are secret or
    /// name a file: a record has no values of them.
    ///
    /// # Errors
    /// The line that the user would see: a parameter is wrong, or the filter refuses to start.
    pub fn replay<F: Exported>(self, record: &Record, words: &[&str]) -> Result<Replayed, String> {
        if self.world.recorded.is_none() {
            return Err("make the host with Host::from_record".into());
        }
        let world = std::rc::Rc::new(std::cell::RefCell::new(self.world));
        let given = record.session.parameters.iter();
        let given: Vec<_> = given.filter_map(|p| Some((&*p.key, &*p.kind, p.value.as_deref()?))).collect();
        let served = Served::<F>::start(world, |declared| {
            parameters::assign_over(&F::describe().into_contract(Vec::new()).name, declared, &given, words)
        })?;
        let mut replay = Replay {
            record,
            served: &served,
            arriving: HashMap::new(),
            clients: HashMap::new(),
            replayed: Replayed::default(),
        };
        for event in &record.events {
            let (Event::Begins(index) | Event::Ends(index)) = *event;
            let call = &record.calls[index];
            if call.gate == Gate::Above && matches!(event, Event::Begins(_)) {
                replay.make(call);
            }
        }
        replay.clients.clear();
        let mut replayed = replay.replayed;
        if record.is_whole {
            compare_below(record, &served, &mut replayed)?;
        }
        replayed.log = served.take_log();
        Ok(replayed)
    }
}

/// A record that runs.
struct Replay<'s, F: Exported> {
    record: &'s Record,
    served: &'s Served<F>,
    /// The clients by their numbers.
    arriving: HashMap<u64, Connecting<'s, F>>,
    /// What is open, by handle.
    clients: HashMap<u32, Client<'s, F>>,
    replayed: Replayed,
}

/// What a call gave: None if it matches what it is compared with, or what differs.
type Verdict = Result<Option<(String, String)>, Errno>;

impl<'s, F: Exported> Replay<'s, F> {
    fn make(&mut self, call: &'s RecordedCall) {
        let guessed = self.guesses();
        let Some(verdict) = self.carry_out(call) else { return };
        self.replayed.calls += 1;
        let guesses = self.guesses() - guessed;
        self.replayed.guesses += guesses;
        let difference = match (&call.outcome, verdict) {
            // The client had left, so the answer depended on when it did.
            (None | Some(Outcome::Dropped | Outcome::Failed(Errno::Eshutdown)), _) => return,
            _ if call.is_racy || guesses > 0 => return,
            (Some(Outcome::Failed(expected)), Err(got)) if *expected == got => None,
            (Some(Outcome::Failed(expected)), Err(got)) => Some((expected.to_string(), got.to_string())),
            (Some(Outcome::Failed(expected)), Ok(_)) => Some((expected.to_string(), "success".into())),
            (Some(Outcome::Answered(_)), Err(got)) => Some(("success".into(), got.to_string())),
            (Some(Outcome::Answered(_)), Ok(difference)) => difference,
        };
        self.replayed.compared += 1;
        if let Some((expected, got)) = difference {
            self.replayed.add(format!("{}: expected {expected}, got {got}", call.describe()));
        }
    }

    fn guesses(&self) -> u64 {
        self.served.world.borrow().recorded.as_ref().map_or(0, |below| below.guesses)
    }

    /// The client with this number.
    fn arriving(&mut self, client: u64, readonly: bool) -> Connecting<'s, F> {
        let served = self.served;
        let known = self.arriving.entry(client).or_insert_with(|| served.client()).clone();
        if readonly { known.read_only() } else { known }
    }

    /// Makes a call. None if there is nothing to make.
    fn carry_out(&mut self, call: &'s RecordedCall) -> Option<Verdict> {
        Some(match &call.call {
            EntryCall::Preconnect { client, readonly, facts } => {
                let mut arriving = self.served.client();
                arriving.facts = facts.clone();
                self.arriving.insert(*client, arriving);
                self.arriving(*client, *readonly).preconnect().map(|()| None)
            }
            EntryCall::ListExports { client, readonly } => {
                self.arriving(*client, *readonly).list_exports().map(|got| {
                    let Some(Answer::Exports(expected)) = call.answer() else { return None };
                    let shown = |list: &[crate::ExportEntry]| format!("{list:?}");
                    other(shown(expected), shown(&got))
                })
            }
            EntryCall::DefaultExport { client, readonly } => {
                self.arriving(*client, *readonly).default_export().map(|got| {
                    let Some(Answer::DefaultExport(expected)) = call.answer() else { return None };
                    other(format!("{expected:?}"), format!("{got:?}"))
                })
            }
            EntryCall::Open { client, readonly, name } => {
                let arriving = self.arriving(*client, *readonly).export(name);
                let opened = if self.record.version == 1 { arriving.connect() } else { arriving.open() };
                opened.map(|opened| {
                    let (size, can) = (opened.size(), opened.can());
                    self.clients.insert(call.handle, opened);
                    match call.answer() {
                        Some(Answer::Opened { size: expected, .. }) if *expected != size => {
                            Some((format!("a size of {expected} bytes"), format!("{size} bytes")))
                        }
                        Some(Answer::Opened { can: expected, .. }) => {
                            other(format!("{expected:?}"), format!("{can:?}"))
                        }
                        _ => None,
                    }
                })
            }
            EntryCall::Disk => return None,
            EntryCall::Close => {
                self.clients.remove(&call.handle)?.end();
                Ok(None)
            }
            // An open that failed here was reported.
            _ => self.request(call, self.clients.get(&call.handle)?),
        })
    }

    /// A call of what is open.
    fn request(&self, call: &RecordedCall, client: &Client<'_, F>) -> Verdict {
        match &call.call {
            EntryCall::Pread { offset, length } => {
                let got = client.pread(*offset, *length)?;
                let Some(Answer::Data(payload)) = call.answer() else { return Ok(None) };
                let Some(expected) = self.record.bytes(payload, got.len()) else { return Ok(None) };
                Ok(first_difference(&expected, &got).map(|at| {
                    let shown = |bytes: &[u8]| {
                        let part: Vec<String> = bytes[at..].iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                        format!("{} at byte {}", part.join(" "), offset + at as u64)
                    };
                    (shown(&expected), shown(&got))
                }))
            }
            EntryCall::Pwrite { offset, length, flags, payload } => {
                let bytes = self.record.bytes(payload, *length as usize).unwrap_or_default();
                client.pwrite(*offset, &bytes, *flags).map(|()| None)
            }
            EntryCall::Flush => client.flush().map(|()| None),
            EntryCall::Trim { offset, length, flags } => client.trim(*offset, *length, *flags).map(|()| None),
            EntryCall::Zero { offset, length, flags } => client.zero(*offset, *length, *flags).map(|()| None),
            EntryCall::Cache { offset, length } => client.cache(*offset, *length).map(|()| None),
            EntryCall::Extents { offset, length, flags } => {
                let got = client.extents(*offset, *length, *flags)?;
                let Some(Answer::Extents(expected)) = call.answer() else { return Ok(None) };
                Ok(other(format!("{expected:?}"), format!("{got:?}")))
            }
            EntryCall::BlockSizes => {
                let got = client.block_size().ok();
                let Some(Answer::BlockSizes(expected)) = call.answer() else { return Ok(None) };
                Ok(other(format!("{expected:?}"), format!("{got:?}")))
            }
            EntryCall::Description => {
                let got = client.export_description();
                let Some(Answer::Description(expected)) = call.answer() else { return Ok(None) };
                Ok(other(format!("{expected:?}"), format!("{got:?}")))
            }
            EntryCall::Finalize => client.finalize().map(|()| None),
            _ => Ok(None),
        }
    }
}

/// The two texts, if they differ.
fn other(expected: String, got: String) -> Option<(String, String)> {
    (expected != got).then_some((expected, got))
}

fn first_difference(expected: &[u8], got: &[u8]) -> Option<usize> {
    expected.iter().zip(got).position(|(one, other)| one != other)
}

/// Compares what the filter left below with what the recorded one left there.
fn compare_below<F: Exported>(record: &Record, served: &Served<F>, replayed: &mut Replayed) -> Result<(), String> {
    let (expected, certain) = record.left_below()?;
    let world = served.world.borrow();
    let (expected, got) = (expected.bytes(), world.disk.bytes());
    for (at, length) in certain.iter() {
        let range = at as usize..(at + length) as usize;
        if let Some(n) = first_difference(&expected[range.clone()], &got[range]) {
            let at = at as usize + n;
            replayed.add(format!("the disk below, byte {at}: expected {:02x}, got {:02x}", expected[at], got[at]));
            return Ok(());
        }
    }
    Ok(())
}
