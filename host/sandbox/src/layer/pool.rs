//! The pool of a filter's instances, with its wait queue.
//!
//! An [`InstancePool`] holds a limited number of instances: one for a serialized filter, one for
//! each connection of a serialize-requests filter, many for a parallel one. The instance that came
//! back last is handed out first, so that the same few stay in the processor's caches. Instances
//! that were not needed for a while are dropped ([`InstancePool::free_spare`]).
//!
//! **Shares.** A connection gets another instance if it holds none, or if it holds fewer than are
//! left. So one connection gets at most half of the instances, and the next connection finds the
//! other half free. As instances come back, the shares become equal: two busy connections get a
//! third each, and a third stays free; each of n connections gets one part in n + 1. This needs no
//! configured number and costs one comparison.
//!
//! **The wait queue.** A caller over its share waits. Connections that hold no instance are served
//! first, because they hold fewer than what is left. Connections take turns, so a connection with
//! many waiting requests delays another connection by only one of them. Calls that open, end or
//! close a connection come before all requests and are not counted for any connection. A freed
//! instance goes straight to the waiter whose turn it is, so a later caller cannot take it. The
//! queue never holds a waiter that could have an instance.
//!
//! **Versions.** A pool makes its instances of one version of the filter's code
//! ([`InstancePool::switch`] changes it). An instance of an earlier version ends its call, and is
//! discarded when it comes back. That costs a request one comparison.
//!
//! A [`Lease`] is a place in the pool, with or without an instance in it. Dropping it gives the
//! place back without the instance. This happens after a fault, and when a call is dropped before
//! its end.
//!
//! The pool also knows its tenants: the open connections whose calls its instances serve. If the
//! pool has only one instance, their state may be in that instance.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rbdkit_plugin_api::idle::IdlePool;
use rbdkit_plugin_api::{Errno, Error, Result, lock};
use tokio::sync::oneshot;

use super::turns::{Turn, Turns};
use super::version::{User, Version, VersionInstance};
use crate::connection::conn::Connection;
use crate::guest::instance::Instance;

/// The instances of a filter, or of one connection of it.
pub(super) struct InstancePool {
    /// How many instances it may have.
    capacity: u32,
    places: Mutex<Places>,
    tenants: Mutex<Vec<Weak<Connection>>>,
}

#[derive(Default)]
struct Places {
    /// The version that instances are made of. None until the first one is known.
    version: Option<Arc<Version>>,
    /// Instances of that version. Boxed, because every request takes one out and puts it back: that
    /// moves a pointer and not 500 bytes.
    free: IdlePool<Box<VersionInstance>>,
    /// Places that are leased.
    leased: u32,
    /// Waiters that come before all requests.
    first: VecDeque<Waiter>,
    requests: WaitQueue,
    /// The other pool that its calls take turns with, if there is one.
    turns: Turns,
}

type Waiter = oneshot::Sender<Handover>;

/// The connections that wait, in the order of their turns, each with its requests in the order in
/// which they came.
#[derive(Default)]
struct WaitQueue {
    turns: VecDeque<u64>,
    waiters: HashMap<u64, (Arc<Holder>, VecDeque<Waiter>)>,
}

impl WaitQueue {
    fn push(&mut self, holder: &Arc<Holder>, waiter: Waiter) {
        let (_, waiters) = self.waiters.entry(holder.id).or_insert_with(|| {
            self.turns.push_back(holder.id);
            (Arc::clone(holder), VecDeque::new())
        });
        waiters.push_back(waiter);
    }

    /// Takes the first request of the first connection that `may` have a place. That connection
    /// then goes to the end of the queue.
    fn pop(&mut self, may: impl Fn(&Holder) -> bool) -> Option<(Arc<Holder>, Waiter)> {
        // This checks few connections: one that holds no place may have one, and there are no more
        // connections with places than places.
        let may_have = |id: &u64| self.waiters.get(id).is_some_and(|(holder, _)| may(holder));
        let turn = self.turns.iter().position(may_have)?;
        let id = self.turns.remove(turn)?;
        let (holder, waiters) = self.waiters.get_mut(&id)?;
        let (holder, waiter) = (Arc::clone(holder), waiters.pop_front());
        if waiters.is_empty() {
            self.waiters.remove(&id);
        } else {
            self.turns.push_back(id);
        }
        Some((holder, waiter?))
    }
}

/// How many places of one pool a connection holds.
pub(super) struct Holder {
    /// The connection's id, which is unique.
    id: u64,
    /// Changed only while the places are locked.
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

/// A place for an instance. It borrows the pool, because a reference count would cost two atomic
/// operations for each request.
pub(super) struct Lease<'a> {
    pool: &'a Arc<InstancePool>,
    /// None if the place is not counted for a connection.
    holder: Option<&'a Arc<Holder>>,
    instance: Option<Box<VersionInstance>>,
    keep: bool,
    /// Ends after the place was given back.
    turn: Turn,
}

/// A place on its way to a waiter. If the waiter does not take it, it goes to the next waiter.
struct Handover {
    pool: Arc<InstancePool>,
    holder: Option<Arc<Holder>>,
    /// None once the waiter has taken it.
    place: Option<Option<Box<VersionInstance>>>,
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Some(instance) = self.place.take() {
            give(&self.pool, self.holder.as_deref(), instance);
        }
    }
}

/// Gives a place back, with the instance in it if there is one, and hands free places to waiters.
fn give(pool: &Arc<InstancePool>, holder: Option<&Holder>, instance: Option<Box<VersionInstance>>) {
    let mut places = pool.places();
    let outdated = places.take_back(holder, instance);
    if let Some(outdated) = outdated {
        drop(places);
        outdated.discard();
        places = pool.places();
    }
    while places.has_waiters() {
        let Some((holder, waiter, instance)) = places.hand_on(pool.capacity) else { return };
        drop(places);
        let handover = Handover { pool: Arc::clone(pool), holder, place: Some(instance) };
        let refused = waiter.send(handover).err();
        places = pool.places();
        // The waiter has given up.
        if let Some(mut handover) = refused {
            let instance = handover.place.take().flatten();
            let outdated = places.take_back(handover.holder.as_deref(), instance);
            drop(places);
            drop(outdated);
            places = pool.places();
        }
    }
}

impl Places {
    /// Takes a place back. Returns an instance of an earlier version, which the caller discards
    /// after it has released the lock.
    fn take_back(
        &mut self,
        holder: Option<&Holder>,
        instance: Option<Box<VersionInstance>>,
    ) -> Option<Box<VersionInstance>> {
        self.leased -= 1;
        if let Some(holder) = holder {
            holder.remove();
        }
        let instance = instance?;
        if self.version.as_ref().is_some_and(|version| instance.is_of(version)) {
            self.free.put(instance);
            return None;
        }
        Some(instance)
    }

    /// Leases a place. None if there is no instance in it.
    fn lease(&mut self, holder: Option<&Holder>) -> Option<Box<VersionInstance>> {
        self.leased += 1;
        if let Some(holder) = holder {
            holder.add();
        }
        self.free.take()
    }

    /// Whether there is a place for this holder.
    fn has_room(&self, capacity: u32, holder: Option<&Holder>) -> bool {
        let left = capacity - self.leased;
        let held = holder.map_or(0, |holder| holder.held.load(Relaxed));
        left > 0 && (held == 0 || held < left)
    }

    fn has_waiters(&self) -> bool {
        !self.first.is_empty() || !self.requests.turns.is_empty()
    }

    /// Leases a place to the waiter whose turn it is, if one may have it.
    #[expect(clippy::type_complexity, reason = "taken apart where it is called")]
    fn hand_on(&mut self, capacity: u32) -> Option<(Option<Arc<Holder>>, Waiter, Option<Box<VersionInstance>>)> {
        if self.leased >= capacity {
            return None;
        }
        let (holder, waiter) = match self.first.pop_front() {
            Some(waiter) => (None, waiter),
            None => {
                let mut requests = std::mem::take(&mut self.requests);
                let next = requests.pop(|holder| self.has_room(capacity, Some(holder)));
                self.requests = requests;
                let (holder, waiter) = next?;
                (Some(holder), waiter)
            }
        };
        let instance = self.lease(holder.as_deref());
        Some((holder, waiter, instance))
    }
}

impl InstancePool {
    pub(crate) fn new(capacity: u32) -> Arc<InstancePool> {
        Arc::new(InstancePool { capacity, places: Mutex::default(), tenants: Mutex::default() })
    }

    /// A pool for instances of this version, with the first of them.
    pub(super) fn with_first(capacity: u32, version: &Arc<Version>, first: Box<VersionInstance>) -> Arc<InstancePool> {
        let pool = InstancePool::new(capacity);
        pool.switch(version, || true);
        pool.add(first);
        pool
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }

    /// The version that instances are made of. None only before the first one is known.
    pub(super) fn version(&self) -> Option<Arc<Version>> {
        self.places().version.clone()
    }

    /// Makes instances of another version from now on, and discards the free ones of the earlier
    /// version. Does nothing if `may` answers false, which is asked while no call can begin or end.
    pub(super) fn switch(&self, version: &Arc<Version>, may: impl FnOnce() -> bool) -> bool {
        let mut places = self.places();
        if !may() {
            return false;
        }
        let earlier = places.version.replace(Arc::clone(version));
        let mut outdated = std::mem::take(&mut places.free);
        drop(places);
        while let Some(instance) = outdated.take() {
            instance.discard();
        }
        drop(earlier);
        true
    }

    /// Makes its calls take turns from now on, or no longer. No call may run on the other pool that
    /// has no turn.
    pub(super) fn take_turns(&self, turns: &Turns) {
        self.places().turns = turns.clone();
    }

    /// Runs `act`, unless the pool has another version by now.
    pub(super) fn if_still_of(&self, version: &Arc<Version>, act: impl FnOnce()) -> bool {
        let places = self.places();
        let same = places.version.as_ref().is_some_and(|now| Arc::ptr_eq(now, version));
        if same {
            act();
        }
        same
    }

    /// Adds an instance that is free. The pool drops it if it is not of the pool's version.
    pub(super) fn add(&self, instance: Box<VersionInstance>) {
        let mut places = self.places();
        if places.version.as_ref().is_some_and(|version| instance.is_of(version)) {
            instance.set_user(User::Nobody);
            places.free.put(instance);
        }
    }

    /// How many instances it may have.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether it has at most one instance.
    pub(super) fn is_single(&self) -> bool {
        self.capacity == 1
    }

    /// Drops the instances that were not needed since the last call, and frees their memory. It
    /// keeps one for the next client. It also keeps the only instance of a pool, which may hold
    /// state.
    pub(crate) fn free_spare(&self) {
        if !self.is_single() {
            let spare = self.places().free.take_spare(1);
            drop(spare);
        }
    }

    fn lock_tenants(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        lock(&self.tenants)
    }

    /// Whether connections are being opened or closed. Their state may already, or still, be in an
    /// instance.
    pub(super) fn is_unsettled(&self) -> bool {
        self.lock_tenants().iter().filter_map(Weak::upgrade).any(|conn| !conn.is_live())
    }

    /// Adds a connection whose calls this pool serves, before it opens.
    pub(super) fn add_tenant(&self, conn: &Arc<Connection>) {
        let mut tenants = self.lock_tenants();
        tenants.retain(|known| known.strong_count() > 0);
        tenants.push(Arc::downgrade(conn));
    }

    /// Removes a connection that closes.
    pub(super) fn remove_tenant(&self, conn: &Arc<Connection>) {
        self.lock_tenants().retain(|known| known.as_ptr() != Arc::as_ptr(conn));
    }

    /// The open connections whose calls this pool serves, oldest first.
    pub(super) fn tenants(&self) -> Vec<Arc<Connection>> {
        let mut all = self.all_tenants();
        all.retain(|conn| conn.is_live());
        all.sort_by_key(|conn| conn.id());
        all
    }

    /// The connections of [`InstancePool::tenants`], and those that are being opened or closed.
    pub(super) fn all_tenants(&self) -> Vec<Arc<Connection>> {
        self.lock_tenants().iter().filter_map(Weak::upgrade).collect()
    }

    /// A place, if one is free now. `holder` is the connection of a request; None for a call that
    /// is not counted for a connection.
    pub(super) fn try_take<'a>(self: &'a Arc<Self>, holder: Option<&'a Arc<Holder>>) -> Option<Lease<'a>> {
        let mut places = self.places();
        let known = holder.map(Arc::as_ref);
        if !places.has_room(self.capacity, known) {
            return None;
        }
        let turn = places.turns.now()?;
        let instance = places.lease(known);
        drop(places);
        Some(Lease::new(self, holder, instance, turn))
    }

    /// A place with an instance in it, if one is free now.
    pub(super) fn try_take_ready<'a>(self: &'a Arc<Self>, holder: &'a Arc<Holder>) -> Option<Lease<'a>> {
        let mut places = self.places();
        if places.free.is_empty() || !places.has_room(self.capacity, Some(holder)) {
            return None;
        }
        let turn = places.turns.now()?;
        let instance = places.lease(Some(holder));
        drop(places);
        Some(Lease::new(self, Some(holder), instance, turn))
    }

    /// Waits for a place. A call that is not counted for a connection comes before all requests.
    pub(crate) async fn take<'a>(self: &'a Arc<Self>, holder: Option<&'a Arc<Holder>>) -> Result<Lease<'a>> {
        let leased = {
            let mut places = self.places();
            let known = holder.map(Arc::as_ref);
            if places.has_room(self.capacity, known) {
                Ok(places.lease(known))
            } else {
                let (sender, receiver) = oneshot::channel();
                match holder {
                    Some(holder) => places.requests.push(holder, sender),
                    None => places.first.push_back(sender),
                }
                Err(receiver)
            }
        };
        let leased = match leased {
            Ok(instance) => Some(instance),
            // Senders are only dropped with the pool, which this waiter keeps alive.
            Err(waiting) => waiting.await.ok().and_then(|mut handover| handover.place.take()),
        };
        let instance = leased.ok_or_else(|| Error::new(Errno::Eshutdown, "the filter is gone"))?;
        let mut lease = Lease::new(self, holder, instance, Turn::default());
        // A caller that gives up meanwhile must not lose the instance, which nothing has run on.
        lease.keep = true;
        let turns = self.places().turns.clone();
        lease.turn = turns.next().await;
        lease.keep = false;
        Ok(lease)
    }
}

impl<'a> Lease<'a> {
    fn new(
        pool: &'a Arc<InstancePool>,
        holder: Option<&'a Arc<Holder>>,
        instance: Option<Box<VersionInstance>>,
        turn: Turn,
    ) -> Lease<'a> {
        let lease = Lease { pool, holder, instance, keep: false, turn };
        lease.note_user();
        lease
    }

    /// Notes in the instance whose call it serves.
    #[inline]
    fn note_user(&self) {
        if let Some(instance) = &self.instance {
            instance.set_user(self.holder.map_or(User::Other, |holder| User::Connection(holder.id)));
        }
    }

    /// The instance in this place.
    pub(crate) fn instance(&mut self) -> Option<&mut Instance> {
        self.instance.as_deref_mut().map(|made| &mut made.instance)
    }

    /// The instance in this place, with its version.
    #[inline]
    pub(super) fn made(&self) -> Option<&VersionInstance> {
        self.instance.as_deref()
    }

    /// Takes the instance out of this place.
    pub(super) fn take(&mut self) -> Option<Box<VersionInstance>> {
        self.instance.take()
    }

    /// Puts an instance into this place.
    pub(super) fn put(&mut self, instance: Box<VersionInstance>) {
        self.instance = Some(instance);
        self.note_user();
    }

    /// Gives the place back with the instance, for the next call.
    pub(crate) fn give_back(mut self) {
        self.keep = true;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // An instance that is not kept is dropped here and not under the lock: that takes
        // microseconds.
        let instance = self.instance.take().filter(|_| self.keep);
        if let Some(instance) = &instance {
            instance.set_user(User::Nobody);
        }
        give(self.pool, self.holder.map(Arc::as_ref), instance);
    }
}

impl Drop for InstancePool {
    fn drop(&mut self) {
        // Its last connection has closed. If the pool's version was replaced, this may be the
        // version's last instance.
        let places = self.places.get_mut().unwrap_or_else(PoisonError::into_inner);
        while let Some(instance) = places.free.take() {
            instance.discard();
        }
    }
}

#[cfg(test)]
mod tests;
