//! Layers below that a filter's connections share (`next-open.open-shared`).
//!
//! Each is opened for a client of its own, which stands for all that use it. It stays open after
//! its last user has gone, until the server ends or its place is needed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rbdkit_chain::NextLayer;
use rbdkit_plugin_api::{Client, DiskId, Errno, Error, Result, ThreadModel, lock};

use super::next::Next;

/// The shared layers below of one filter.
#[derive(Default)]
pub(crate) struct SharedNexts {
    /// Held while one is looked up or opened, so that no disk is opened twice.
    opening: tokio::sync::Mutex<()>,
    open: Mutex<Vec<SharedNext>>,
    stopped: AtomicBool,
}

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

impl SharedNexts {
    /// The shared layer below for this name. It is opened if there is none yet. `below` is that of
    /// a connection, and `most` how many disks may be open, besides one.
    ///
    /// # Errors
    /// Those of opening. ENOSPC if as many are open as are allowed, and all of them are used.
    /// ESHUTDOWN if the connection's client leaves while it waits, or the server stops.
    pub(super) async fn get(&self, below: &NextLayer, readonly: bool, name: &str, most: u32) -> Result<Arc<Next>> {
        let asker = Arc::clone(below.client());
        let _turn = tokio::select! {
            turn = self.opening.lock() => turn,
            () = asker.until_gone() => return Err(Errno::Eshutdown.into()),
        };
        if let Some(next) = self.find(|known| known.readonly == readonly && known.name == name) {
            return Ok(next);
        }
        // A layer that serves one connection at a time has this client's turn now, so nobody else
        // uses what is open.
        let most = if below.thread_model() == ThreadModel::SerializeConnections { 1 } else { most as usize + 1 };
        self.make_room(most).await?;
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
        if let Some(known) = self.find(|known| known.readonly == readonly && known.disk == disk) {
            next.end_shared("next").await;
            return Ok(known);
        }
        lock(&self.open).push(SharedNext { name: name.into(), disk, readonly, client, next: Arc::clone(&next) });
        Ok(next)
    }

    /// One that is open. What a fault below has ended is left out, and closed when it is not used
    /// any more.
    fn find(&self, is_it: impl Fn(&SharedNext) -> bool) -> Option<Arc<Next>> {
        let open = lock(&self.open);
        let usable = |known: &&SharedNext| !known.client.is_disconnect_requested() && is_it(known);
        open.iter().find(usable).map(|known| Arc::clone(&known.next))
    }

    /// Closes what no connection uses, until fewer than `most` are open.
    async fn make_room(&self, most: usize) -> Result<()> {
        loop {
            if self.stopped.load(Relaxed) {
                return Err(Errno::Eshutdown.into());
            }
            let unused = {
                let mut open = lock(&self.open);
                let broken = |known: &SharedNext| known.client.is_disconnect_requested() && !known.is_used();
                let first = open.iter().position(broken);
                if first.is_none() && open.len() < most {
                    return Ok(());
                }
                let unused = first.or_else(|| open.iter().position(|known| !known.is_used()));
                unused.map(|index| open.remove(index))
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
        for known in lock(&self.open).iter() {
            known.client.set_gone();
        }
    }

    /// Closes all. `name` is the filter's, for messages.
    pub(crate) async fn end(&self, name: &str) {
        self.stop();
        let _turn = self.opening.lock().await;
        let open = std::mem::take(&mut *lock(&self.open));
        for known in open {
            known.next.end_shared(name).await;
        }
    }
}
