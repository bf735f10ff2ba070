//! Layers below that a filter's connections share: `next-open.open-shared`, and the disks of
//! parameters ([`GivenDisks`](super::disks::GivenDisks)).
//!
//! Each is opened for a client of its own, which stands for all that use it. It stays open after
//! its last user has gone, until the server ends or its place is needed.
//!
//! A name is opened by one connection at a time. Other names do not wait for it: an open that hangs
//! keeps only those waiting that ask for the same name.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rbdkit_chain::NextLayer;
use rbdkit_plugin_api::{Client, DiskId, Errno, Error, Result, ThreadModel, lock};

use super::next::Next;

/// The shared layers below of one filter.
#[derive(Default)]
pub(crate) struct SharedNexts {
    /// The names that are being opened, and who does so.
    turns: Mutex<Vec<(Wanted, NameTurn)>>,
    disks: Mutex<Disks>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Disks {
    open: Vec<SharedNext>,
    /// How many are being opened.
    opening: usize,
}

impl Disks {
    /// One that is open. What a fault below has ended is left out, and closed when it is not used
    /// any more.
    fn find(&self, is_it: impl Fn(&SharedNext) -> bool) -> Option<Arc<Next>> {
        let usable = |known: &&SharedNext| !known.client.is_disconnect_requested() && is_it(known);
        self.open.iter().find(usable).map(|known| Arc::clone(&known.next))
    }
}

/// A name, and whether it is to be opened for reading only. None stands for all.
type Wanted = Option<(String, bool)>;

/// Held while a name is looked up or opened, so that it is not opened twice.
type NameTurn = Arc<tokio::sync::Mutex<()>>;

struct SharedNext {
    /// The name that it was opened with. Other names may mean the same disk.
    name: String,
    disk: DiskId,
    readonly: bool,
    client: Arc<Client>,
    next: Arc<Next>,
}

impl SharedNext {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.next) > 1
    }
}

/// The place of one that is being opened.
struct NextPlace<'a> {
    nexts: &'a SharedNexts,
    is_free: bool,
}

impl NextPlace<'_> {
    /// One that was opened takes the place.
    fn fill(mut self, disks: &mut Disks, next: SharedNext) {
        self.is_free = false;
        disks.opening -= 1;
        disks.open.push(next);
    }
}

impl Drop for NextPlace<'_> {
    fn drop(&mut self) {
        if self.is_free {
            lock(&self.nexts.disks).opening -= 1;
        }
    }
}

impl SharedNexts {
    /// The shared layer below for this name, if it is open.
    pub(super) fn find(&self, readonly: bool, name: &str) -> Option<Arc<Next>> {
        lock(&self.disks).find(|known| known.readonly == readonly && known.name == name)
    }

    /// The shared layer below for this name. It is opened if there is none yet. `below` is that of
    /// a connection, and `most` how many disks may be open, besides one.
    ///
    /// # Errors
    /// Those of opening. ENOSPC if as many are open as are allowed, and all of them are used.
    /// ESHUTDOWN if the connection's client leaves while it waits, or the server stops.
    pub(super) async fn get(&self, below: &NextLayer, readonly: bool, name: &str, most: u32) -> Result<Arc<Next>> {
        if let Some(next) = self.find(readonly, name) {
            return Ok(next);
        }
        // A layer that serves one connection at a time has this client's turn now, so nobody else
        // uses what is open.
        let is_alone = below.thread_model() == ThreadModel::SerializeConnections;
        let most = if is_alone { 1 } else { most as usize + 1 };
        let turn = self.turn(if is_alone { None } else { Some((name.into(), readonly)) });
        let asker = Arc::clone(below.client());
        let _turn = tokio::select! {
            turn = turn.lock() => turn,
            () = asker.until_gone() => return Err(Errno::Eshutdown.into()),
        };
        if let Some(next) = self.find(readonly, name) {
            return Ok(next);
        }
        let place = self.make_room(most).await?;
        let client = Arc::new(Client::for_many());
        let layer = below.for_many(Arc::clone(&client));
        let open = layer.open(readonly, name);
        tokio::pin!(open);
        let hop = tokio::select! {
            hop = &mut open => hop,
            () = asker.until_gone() => {
                // The layers below give up an open that takes long without its client.
                client.set_gone();
                open.await
            }
        }?;
        let next = Next::shared(hop);
        if client.is_gone() {
            next.end_shared("next").await;
            return Err(Errno::Eshutdown.into());
        }
        // A name that the layers below do not list counts as a disk of its own.
        let disk = next.hop.disk().await.unwrap_or_else(|_| DiskId::named(name));
        let known = {
            let mut disks = lock(&self.disks);
            let known = disks.find(|known| known.readonly == readonly && known.disk == disk);
            if known.is_none() {
                let opened = SharedNext { name: name.into(), disk, readonly, client, next: Arc::clone(&next) };
                place.fill(&mut disks, opened);
            }
            known
        };
        let Some(known) = known else { return Ok(next) };
        next.end_shared("next").await;
        Ok(known)
    }

    /// The turn for a name.
    fn turn(&self, wanted: Wanted) -> NameTurn {
        let mut turns = lock(&self.turns);
        // Only what somebody has or waits for. So there are no more than connections.
        turns.retain(|(_, turn)| Arc::strong_count(turn) > 1);
        if let Some((_, turn)) = turns.iter().find(|(known, _)| *known == wanted) {
            return Arc::clone(turn);
        }
        let turn = NameTurn::default();
        turns.push((wanted, Arc::clone(&turn)));
        turn
    }

    /// Closes what no connection uses, until fewer than `most` are open or being opened. The answer
    /// is a place for one more.
    async fn make_room(&self, most: usize) -> Result<NextPlace<'_>> {
        loop {
            if self.stopped.load(Relaxed) {
                return Err(Errno::Eshutdown.into());
            }
            let unused = {
                let mut disks = lock(&self.disks);
                let broken = |known: &SharedNext| known.client.is_disconnect_requested() && !known.is_used();
                let first = disks.open.iter().position(broken);
                if first.is_none() && disks.open.len() + disks.opening < most {
                    disks.opening += 1;
                    return Ok(NextPlace { nexts: self, is_free: true });
                }
                let unused = first.or_else(|| disks.open.iter().position(|known| !known.is_used()));
                unused.map(|index| disks.open.remove(index))
            };
            let Some(unused) = unused else {
                let context = format!("{most} shared disks are open and used, and no more are allowed");
                return Err(Error::new(Errno::Enospc, context));
            };
            unused.next.end_shared("next").await;
        }
    }

    /// The server stops: nothing is opened any more, and reads that hang end as those of a client
    /// that has gone.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Relaxed);
        for known in &lock(&self.disks).open {
            known.client.set_gone();
        }
    }

    /// Closes all. `name` is the filter's, for messages.
    pub(crate) async fn end(&self, name: &str) {
        self.stop();
        // What is being opened is closed or in the list when its turn is over. Nothing else is
        // opened.
        let turns: Vec<NameTurn> = lock(&self.turns).iter().map(|(_, turn)| Arc::clone(turn)).collect();
        for turn in turns {
            drop(turn.lock().await);
        }
        let open = std::mem::take(&mut lock(&self.disks).open);
        for known in open {
            known.next.end_shared(name).await;
        }
    }
}
