//! Who may use an instance, and who waits for one.
//!
//! An [`Instances`] holds up to so many instances: one for a serialized filter, one for a connection of a serialize-requests one, many for a
//! parallel one. Free ones are handed out last in, first out, so that the same few stay warm, and those that were not needed for a while are dropped
//! ([`Instances::free_spare`]).
//!
//! **Shares.** A connection gets a further instance while it holds less than are left, or none at all. So one alone has at most half of them, and what it
//! leaves is there for the next, at once, whatever the first does with its own. As instances come back the shares level out: two connections that want
//! all they can get have a third each, and the last third is left; n have n parts of n + 1. No number has to be chosen, and asking costs a comparison.
//!
//! **The line.** Who may not have one waits. Who holds none comes before all others: they hold more than what is left. Connections take turns, so that one with many requests in line delays another's by one of them.
//! What opens, ends or closes a connection goes in front of all and is not counted as anybody's. A freed instance goes straight to who is in turn:
//! nobody who comes later can take it. Nobody who might have one is ever left in line.
//!
//! A [`Lease`] is a place among the so many, with or without an instance in it. Dropping it gives the place back without the instance: that is
//! what a fault, and a call that is dropped half way, do.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rbdkit_plugin_api::shelf::Shelf;
use rbdkit_plugin_api::{Errno, Error, Result};
use tokio::sync::oneshot;

use crate::guest::instance::Instance;

pub(crate) struct Instances {
    most: u32,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// Boxed, as one goes in and out with every request: a pointer, not 500 bytes.
    free: Shelf<Box<Instance>>,
    /// Places that are leased.
    leased: u32,
    /// In front of the line.
    front: VecDeque<Waiter>,
    line: Line,
}

type Waiter = oneshot::Sender<Handover>;

/// Connections that wait, in turn, each with its requests in the order of asking.
#[derive(Default)]
struct Line {
    turns: VecDeque<u64>,
    requests: HashMap<u64, (Arc<Holder>, VecDeque<Waiter>)>,
}

impl Line {
    fn push(&mut self, holder: &Arc<Holder>, waiter: Waiter) {
        let (_, waiters) = self.requests.entry(holder.id).or_insert_with(|| {
            self.turns.push_back(holder.id);
            (Arc::clone(holder), VecDeque::new())
        });
        waiters.push_back(waiter);
    }

    /// The first request of the first connection in turn that `may` have a place, which is the last in turn then.
    fn pop(&mut self, may: impl Fn(&Holder) -> bool) -> Option<(Arc<Holder>, Waiter)> {
        // Who holds none may, and those that hold some are not more than there are places.
        let holds = |id: &u64| self.requests.get(id).is_some_and(|(holder, _)| may(holder));
        let turn = self.turns.iter().position(holds)?;
        let id = self.turns.remove(turn)?;
        let (holder, waiters) = self.requests.get_mut(&id)?;
        let (holder, waiter) = (Arc::clone(holder), waiters.pop_front());
        if waiters.is_empty() {
            self.requests.remove(&id);
        } else {
            self.turns.push_back(id);
        }
        Some((holder, waiter?))
    }
}

/// What a connection holds of one [`Instances`].
pub(crate) struct Holder {
    /// The connection's. Nobody waits in line under an id that another one has.
    id: u64,
    /// Only changed with the places locked.
    held: AtomicU32,
}

impl Holder {
    pub(crate) fn new(id: u64) -> Arc<Holder> {
        Arc::new(Holder { id, held: AtomicU32::new(0) })
    }

    fn add(&self) {
        self.held.store(self.held.load(Relaxed) + 1, Relaxed);
    }

    fn remove(&self) {
        self.held.store(self.held.load(Relaxed) - 1, Relaxed);
    }
}

/// A place for an instance. It borrows the pool: counting its users would be two atomic operations a request.
pub(crate) struct Lease<'a> {
    instances: &'a Arc<Instances>,
    /// None for what is not counted as a connection's.
    holder: Option<&'a Arc<Holder>>,
    instance: Option<Box<Instance>>,
    keep: bool,
}

/// A place on its way to who is in turn. It goes on to the next if nobody takes it out.
struct Handover {
    instances: Arc<Instances>,
    holder: Option<Arc<Holder>>,
    /// None once it was taken out.
    place: Option<Option<Box<Instance>>>,
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Some(instance) = self.place.take() {
            give(&self.instances, self.holder.as_deref(), instance);
        }
    }
}

/// Gives a place back, with the instance in it if there is one, and passes on what is free now.
fn give(instances: &Arc<Instances>, holder: Option<&Holder>, instance: Option<Box<Instance>>) {
    let mut places = instances.places();
    places.take_back(holder, instance);
    while places.anybody_waits() {
        let Some((holder, waiter, instance)) = places.pass_on(instances.most) else { return };
        drop(places);
        let handover = Handover { instances: Arc::clone(instances), holder, place: Some(instance) };
        let refused = waiter.send(handover).err();
        places = instances.places();
        // Whoever it was has given up waiting.
        if let Some(mut handover) = refused {
            let instance = handover.place.take().flatten();
            places.take_back(handover.holder.as_deref(), instance);
        }
    }
}

impl Places {
    fn take_back(&mut self, holder: Option<&Holder>, instance: Option<Box<Instance>>) {
        self.leased -= 1;
        if let Some(instance) = instance {
            self.free.put(instance);
        }
        if let Some(holder) = holder {
            holder.remove();
        }
    }

    /// Leases a place. None if there is no instance in it.
    fn lease(&mut self, holder: Option<&Holder>) -> Option<Box<Instance>> {
        self.leased += 1;
        if let Some(holder) = holder {
            holder.add();
        }
        self.free.take()
    }

    /// Whether there is a place for this one.
    fn has_room(&self, most: u32, holder: Option<&Holder>) -> bool {
        let left = most - self.leased;
        let held = holder.map_or(0, |holder| holder.held.load(Relaxed));
        left > 0 && (held == 0 || held < left)
    }

    fn anybody_waits(&self) -> bool {
        !self.front.is_empty() || !self.line.turns.is_empty()
    }

    /// Leases a place to who is in turn and may have it.
    #[expect(clippy::type_complexity, reason = "taken apart where it is called")]
    fn pass_on(&mut self, most: u32) -> Option<(Option<Arc<Holder>>, Waiter, Option<Box<Instance>>)> {
        if self.leased >= most {
            return None;
        }
        let (holder, waiter) = match self.front.pop_front() {
            Some(waiter) => (None, waiter),
            None => {
                let mut line = std::mem::take(&mut self.line);
                let next = line.pop(|holder| self.has_room(most, Some(holder)));
                self.line = line;
                let (holder, waiter) = next?;
                (Some(holder), waiter)
            }
        };
        let instance = self.lease(holder.as_deref());
        Some((holder, waiter, instance))
    }
}

impl Instances {
    pub(crate) fn new(most: u32) -> Arc<Instances> {
        Arc::new(Instances { most, places: Mutex::default() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it holds one instance at most.
    pub(crate) fn is_single(&self) -> bool {
        self.most == 1
    }

    /// Drops the instances that nobody has needed since this was last called, and gives their memory back: not the last one, so that the next client
    /// finds one, and not one that is the only one, which may hold state.
    pub(crate) fn free_spare(&self) {
        if !self.is_single() {
            let spare = self.places().free.spare(1);
            drop(spare);
        }
    }

    /// A place now, if there is one for a request of this connection, or for what is no connection's request.
    pub(crate) fn try_take<'a>(self: &'a Arc<Self>, holder: Option<&'a Arc<Holder>>) -> Option<Lease<'a>> {
        let mut places = self.places();
        let known = holder.map(Arc::as_ref);
        if !places.has_room(self.most, known) {
            return None;
        }
        let instance = places.lease(known);
        drop(places);
        Some(Lease::new(self, holder, instance))
    }

    /// The same with an instance in it.
    pub(crate) fn try_take_ready<'a>(self: &'a Arc<Self>, holder: &'a Arc<Holder>) -> Option<Lease<'a>> {
        let mut places = self.places();
        if places.free.is_empty() || !places.has_room(self.most, Some(holder)) {
            return None;
        }
        let instance = places.lease(Some(holder));
        drop(places);
        Some(Lease::new(self, Some(holder), instance))
    }

    /// A place, when there is one. What is no connection's request goes in front.
    pub(crate) async fn take<'a>(self: &'a Arc<Self>, holder: Option<&'a Arc<Holder>>) -> Result<Lease<'a>> {
        let waiting = {
            let mut places = self.places();
            let known = holder.map(Arc::as_ref);
            if places.has_room(self.most, known) {
                let instance = places.lease(known);
                return Ok(Lease::new(self, holder, instance));
            }
            let (sender, receiver) = oneshot::channel();
            match holder {
                Some(holder) => places.line.push(holder, sender),
                None => places.front.push_back(sender),
            }
            receiver
        };
        // Senders are only dropped with the whole of it, which whoever waits keeps alive.
        let taken = waiting.await.ok().and_then(|mut handover| handover.place.take());
        match taken {
            Some(instance) => Ok(Lease::new(self, holder, instance)),
            None => Err(Error::new(Errno::Eshutdown, "the filter is gone")),
        }
    }
}

impl<'a> Lease<'a> {
    fn new(
        instances: &'a Arc<Instances>,
        holder: Option<&'a Arc<Holder>>,
        instance: Option<Box<Instance>>,
    ) -> Lease<'a> {
        Lease { instances, holder, instance, keep: false }
    }

    /// The instance in this place.
    pub(crate) fn instance(&mut self) -> Option<&mut Instance> {
        self.instance.as_deref_mut()
    }

    /// Puts an instance into this place.
    pub(crate) fn put(&mut self, instance: Box<Instance>) -> &mut Instance {
        self.instance.insert(instance)
    }

    /// Gives the place back with the instance, for the next call.
    pub(crate) fn give_back(mut self) {
        self.keep = true;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Taking down an instance takes microseconds: not under the lock.
        let instance = self.instance.take().filter(|_| self.keep);
        give(self.instances, self.holder.map(Arc::as_ref), instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(holder: &Arc<Holder>, instances: &Arc<Instances>) -> u32 {
        let mut leases = Vec::new();
        while let Some(lease) = instances.try_take(Some(holder)) {
            leases.push(lease);
        }
        leases.into_iter().map(std::mem::forget).count() as u32
    }

    #[test]
    fn who_comes_with_none_finds_one_left_whatever_the_others_hold() {
        let instances = Instances::new(128);
        let holders: Vec<_> = (0..20).map(Holder::new).collect();
        let each: Vec<u32> = holders.iter().map(|holder| empty(holder, &instances)).collect();
        assert_eq!(each[..9], [64, 32, 16, 8, 4, 2, 1, 1, 0]);
    }

    #[test]
    fn an_instance_is_anybodys_where_there_is_one() {
        let instances = Instances::new(1);
        let (one, other) = (Holder::new(1), Holder::new(2));
        drop(instances.try_take(Some(&one)).unwrap());
        assert_eq!((empty(&other, &instances), empty(&one, &instances)), (1, 0));
        assert_eq!(instances.places().leased, 1);
    }

    #[test]
    fn shares_level_out_as_places_come_back() {
        let instances = Instances::new(30);
        let (one, other) = (Holder::new(1), Holder::new(2));
        let mut ones: Vec<_> = std::iter::from_fn(|| instances.try_take(Some(&one))).collect();
        let mut others: Vec<_> = std::iter::from_fn(|| instances.try_take(Some(&other))).collect();
        assert_eq!((ones.len(), others.len()), (15, 8));
        for _ in 0..100 {
            // Each ends a request and begins as many as it may.
            ones.pop();
            ones.extend(std::iter::from_fn(|| instances.try_take(Some(&one))));
            others.pop();
            others.extend(std::iter::from_fn(|| instances.try_take(Some(&other))));
        }
        assert!((9..=11).contains(&ones.len()) && (9..=11).contains(&others.len()), "{} {}", ones.len(), others.len());
        drop((ones, others));
        assert_eq!(instances.places().leased, 0);
    }

    /// Polls once.
    fn now<'a>(take: &mut std::pin::Pin<Box<impl Future<Output = Result<Lease<'a>>>>>) -> Option<Lease<'a>> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match take.as_mut().poll(&mut context) {
            std::task::Poll::Ready(lease) => Some(lease.unwrap()),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn connections_take_turns_and_who_has_none_is_first() {
        let instances = Instances::new(2);
        let (greedy, modest, late) = (Holder::new(1), Holder::new(2), Holder::new(3));
        let first = instances.try_take(Some(&greedy)).unwrap();
        let second = instances.try_take(Some(&modest)).unwrap();
        // Two requests of the first in line, then one each of others.
        let mut again: Vec<_> = (0..2).map(|_| Box::pin(instances.take(Some(&greedy)))).collect();
        let mut other = Box::pin(instances.take(Some(&late)));
        let mut service = Box::pin(instances.take(None));
        assert!(again.iter_mut().all(|take| now(take).is_none()));
        assert!(now(&mut other).is_none() && now(&mut service).is_none());
        drop(second);
        let service = now(&mut service).expect("in front of all");
        drop(service);
        let other = now(&mut other).expect("it has none");
        assert!(again.iter_mut().all(|take| now(take).is_none()));
        drop(first);
        let granted = again.iter_mut().filter_map(now).collect::<Vec<_>>();
        assert_eq!(granted.len(), 1, "in the order of asking");
        // Who gives up waiting leaves no place behind, also if it has it already.
        drop(other);
        drop(granted);
        drop(again);
        let places = instances.places();
        assert_eq!((places.leased, places.anybody_waits()), (0, false));
    }
}
