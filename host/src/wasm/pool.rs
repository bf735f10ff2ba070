//! Who may use an instance, and who waits for one.
//!
//! An [`Instances`] holds up to so many instances: one for a serialized filter, one for a connection of a serialize-requests one, many for a
//! parallel one. Free ones are handed out last in, first out, so that the same few stay warm. Who finds none, when no more may be made,
//! waits in line; what ends or closes a connection goes in front. A freed instance goes straight to the first in line: nobody who
//! comes later can take it.
//!
//! A [`Lease`] is a place among the so many, with or without an instance in it. Dropping it gives the place back without the instance: that is
//! what a fault, and a call that is dropped half way, do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rbdkit_plugin_api::{Errno, Error, Result};
use tokio::sync::oneshot;

use super::instance::Instance;

pub(super) struct Instances {
    most: u32,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    #[expect(clippy::vec_box, reason = "an instance goes in and out with every request: a pointer, not 500 bytes")]
    free: Vec<Box<Instance>>,
    /// Leases, and instances in `free`.
    taken: u32,
    line: VecDeque<oneshot::Sender<Handover>>,
}

/// A place for an instance. It borrows the pool: counting its users would be two atomic operations a request.
pub(super) struct Lease<'a> {
    instances: &'a Arc<Instances>,
    instance: Option<Box<Instance>>,
    keep: bool,
}

/// A place on its way to the first in line. It goes on to the next if nobody takes it out.
struct Handover {
    instances: Arc<Instances>,
    /// None once it was taken out.
    place: Option<Option<Box<Instance>>>,
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Some(instance) = self.place.take() {
            give(&self.instances, instance);
        }
    }
}

/// Passes a place on, with the instance in it if there is one: to the first in line, otherwise back.
fn give(instances: &Arc<Instances>, mut instance: Option<Box<Instance>>) {
    loop {
        let mut places = instances.places();
        let Some(next) = places.line.pop_front() else {
            match instance {
                Some(instance) => places.free.push(instance),
                None => places.taken -= 1,
            }
            return;
        };
        drop(places);
        match next.send(Handover { instances: Arc::clone(instances), place: Some(instance) }) {
            Ok(()) => return,
            // Whoever it was has given up waiting.
            Err(mut handover) => instance = handover.place.take().flatten(),
        }
    }
}

impl Instances {
    pub(super) fn new(most: u32) -> Arc<Instances> {
        Arc::new(Instances { most, places: Mutex::default() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it holds one instance at most.
    pub(super) fn is_single(&self) -> bool {
        self.most == 1
    }

    /// A place now, if there is one.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Lease<'_>> {
        let mut places = self.places();
        if let Some(instance) = places.free.pop() {
            return Some(Lease::new(self, Some(instance)));
        }
        if places.taken >= self.most {
            return None;
        }
        places.taken += 1;
        Some(Lease::new(self, None))
    }

    /// A place with an instance in it now, if there is one.
    pub(super) fn try_take_ready(self: &Arc<Self>) -> Option<Lease<'_>> {
        let instance = self.places().free.pop()?;
        Some(Lease::new(self, Some(instance)))
    }

    /// A place, when there is one.
    pub(super) async fn take(self: &Arc<Self>, in_front: bool) -> Result<Lease<'_>> {
        let waiting = {
            let mut places = self.places();
            if let Some(instance) = places.free.pop() {
                return Ok(Lease::new(self, Some(instance)));
            }
            if places.taken < self.most {
                places.taken += 1;
                return Ok(Lease::new(self, None));
            }
            let (sender, receiver) = oneshot::channel();
            if in_front {
                places.line.push_front(sender);
            } else {
                places.line.push_back(sender);
            }
            receiver
        };
        // Senders are only dropped with the whole of it, which whoever waits keeps alive.
        let taken = waiting.await.ok().and_then(|mut handover| handover.place.take());
        match taken {
            Some(instance) => Ok(Lease::new(self, instance)),
            None => Err(Error::new(Errno::Eshutdown, "the filter is gone")),
        }
    }
}

impl<'a> Lease<'a> {
    fn new(instances: &'a Arc<Instances>, instance: Option<Box<Instance>>) -> Lease<'a> {
        Lease { instances, instance, keep: false }
    }

    /// The instance in this place.
    pub(super) fn instance(&mut self) -> Option<&mut Instance> {
        self.instance.as_deref_mut()
    }

    /// Puts an instance into this place.
    pub(super) fn put(&mut self, instance: Box<Instance>) -> &mut Instance {
        self.instance.insert(instance)
    }

    /// Gives the place back with the instance, for the next call.
    pub(super) fn give_back(mut self) {
        self.keep = true;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Taking down an instance takes microseconds: not under the lock.
        let instance = self.instance.take().filter(|_| self.keep);
        give(self.instances, instance);
    }
}
