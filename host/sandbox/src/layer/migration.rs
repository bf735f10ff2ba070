//! Moves one pool of instances, and the connections that it serves, to another version of the
//! filter.
//!
//! * **Nothing is in an instance's memory** (a stateless filter, or one that runs on many
//!   instances): the next call of each connection finds an instance of the new version. Calls that
//!   run end on the old version.
//! * **The state can be replayed**: the pool's place is taken, so no call runs. The connections are
//!   replayed on an instance of the new version. If one refuses, the old instance goes on.
//! * **The state is lost with its instance**: the pool stays as long as it has a connection.
//!
//! A pool also stays if its clients were told what no longer holds: the versions export different
//! interfaces, or the new one answers another size, other block sizes or other capabilities. A
//! client learns these once, so it has to be served by code that keeps to them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rbdkit_plugin_api::lock;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::answers::{below, block_sizes, offered};
use super::filter::{Filter, replay_on, replays};
use super::pool::InstancePool;
use super::version::{Version, VersionInstance};
use crate::connection::conn::{Connection, Told};
use crate::guest::export_calls::{BlockSizeCall, CanCall, ExportCall, GetSizeCall};
use crate::guest::fault::{Fault, FaultKind};
use crate::guest::instance::Instance;

/// How long a pool may take to come to rest: calls that run on its only instance, and connections
/// that are being opened or closed. After that its connections stay with the old version.
const REST: Duration = Duration::from_secs(2);

/// How long the questions to the new version, or the replay of all connections of a pool, may take.
/// Calls of these connections wait meanwhile.
const REPLAY: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

/// How often to check whether a pool has come to rest.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How often a pool is tried again, because clients left or came in the meantime.
const ATTEMPTS: usize = 40;

/// Why a pool does not move.
pub(super) enum Kept {
    /// Its connections have to stay with the old version.
    Stays(String),
    /// The new version does not work.
    Faulty(String),
}

/// Why an attempt to move a pool failed.
enum Obstacle {
    Kept(Kept),
    /// A client has left or come: try again.
    Changed,
}

fn stays(why: impl Into<String>) -> Obstacle {
    Obstacle::Kept(Kept::Stays(why.into()))
}

/// A fault in a function of the new version.
fn faulty(function: &str, fault: &Fault) -> Obstacle {
    match fault.kind {
        FaultKind::Gone => Obstacle::Changed,
        FaultKind::Guest | FaultKind::NoBuffers => {
            Obstacle::Kept(Kept::Faulty(format!("{function} for a live connection: {}", fault.cause)))
        }
    }
}

/// What the connections were told when the new version was asked.
type SeenByAll = Vec<(Arc<Connection>, Told)>;

impl Filter {
    /// Moves a pool to another version. Returns how many live connections it has.
    pub(super) async fn move_pool(
        &self,
        pool: &Arc<InstancePool>,
        old: &Arc<Version>,
        version: &Arc<Version>,
        ready: &mut Option<Box<VersionInstance>>,
    ) -> Result<usize, Kept> {
        if pool.version().is_some_and(|now| Arc::ptr_eq(&now, version)) {
            return Ok(pool.tenants().len());
        }
        if let Some(why) = difference(old, version) {
            return Err(Kept::Stays(why.into()));
        }
        for _ in 0..ATTEMPTS {
            let attempt = async {
                if !pool.is_single() || version.traits.is_stateless() {
                    return self.move_without_state(pool, version, ready).await;
                }
                if version.traits.loses_state_with_instance() {
                    // Under the pool's lock: a connection that begins to open is a tenant already.
                    let nothing_to_lose = || pool.all_tenants().iter().all(|conn| conn.is_lost());
                    return match pool.switch(version, nothing_to_lose) {
                        true => Ok(0),
                        false => Err(stays("their state is in an instance's memory (recovery: lost)")),
                    };
                }
                self.move_with_state(pool, version, ready).await
            };
            match attempt.await {
                Ok(moved) => return Ok(moved),
                Err(Obstacle::Kept(kept)) => return Err(kept),
                Err(Obstacle::Changed) => sleep(POLL_INTERVAL).await,
            }
        }
        Err(Kept::Stays("clients came and went all the time".into()))
    }

    /// Moves a pool whose instances hold no state.
    async fn move_without_state(
        &self,
        pool: &Arc<InstancePool>,
        version: &Arc<Version>,
        ready: &mut Option<Box<VersionInstance>>,
    ) -> Result<usize, Obstacle> {
        let mut fresh = self.fresh(version, ready).await.map_err(|why| Obstacle::Kept(Kept::Faulty(why)))?;
        let conns = pool.tenants();
        let asked = timeout(REPLAY, seen(version, &conns, &mut fresh.instance)).await;
        let seen = asked.map_err(|_| stays(LATE))??;
        if !pool.switch(version, || nothing_new_was_told(pool, &seen)) {
            return Err(Obstacle::Changed);
        }
        pool.add(fresh);
        Ok(conns.len())
    }

    /// Moves a pool whose only instance holds state that can be replayed.
    async fn move_with_state(
        &self,
        pool: &Arc<InstancePool>,
        version: &Arc<Version>,
        ready: &mut Option<Box<VersionInstance>>,
    ) -> Result<usize, Obstacle> {
        let mut fresh = self.fresh(version, ready).await.map_err(|why| Obstacle::Kept(Kept::Faulty(why)))?;
        let deadline = Instant::now() + REST;
        while pool.is_unsettled() {
            if Instant::now() >= deadline {
                return Err(stays("connections are being opened or closed"));
            }
            sleep(POLL_INTERVAL).await;
        }
        let mut lease = match timeout_at(deadline, pool.take(None)).await {
            Ok(Ok(lease)) => lease,
            _ => return Err(stays("a call runs for a long time")),
        };
        let earlier = lease.take();
        let conns = pool.tenants();
        let handles: Vec<u64> = conns.iter().map(|conn| conn.handle.load(Relaxed)).collect();
        let move_all = async {
            if replays(version, pool) {
                for conn in conns.iter().filter(|conn| !conn.is_lost()) {
                    match replay_on(conn, &mut fresh.instance).await {
                        Ok(None) => {}
                        // It closes: its layer below may be gone already.
                        Ok(Some(_)) if is_ending(conn) => return Err(Obstacle::Changed),
                        Ok(Some(function)) => {
                            return Err(stays(format!("{function} of a live connection was refused")));
                        }
                        Err(fault) => return Err(faulty("replaying an open", &fault)),
                    }
                }
            }
            seen(version, &conns, &mut fresh.instance).await
        };
        let moved = timeout(REPLAY, move_all).await.unwrap_or_else(|_| Err(stays(LATE)));
        let moved = moved.and_then(|seen| {
            let at_rest = || !pool.is_unsettled() && nothing_new_was_told(pool, &seen);
            if pool.switch(version, at_rest) { Ok(conns.len()) } else { Err(Obstacle::Changed) }
        });
        if moved.is_ok() {
            lease.put(fresh);
        } else {
            for (conn, handle) in conns.iter().zip(handles) {
                conn.handle.store(handle, Relaxed);
            }
            if let Some(earlier) = earlier {
                lease.put(earlier);
                lease.give_back();
                return moved;
            }
        }
        if let Some(earlier) = earlier {
            earlier.discard();
        }
        lease.give_back();
        moved
    }
}

const LATE: &str = "the new version does not answer in time";

/// What keeps connections of one version from being served by the other.
fn difference(old: &Version, new: &Version) -> Option<&'static str> {
    let (old, new) = (&old.traits, &new.traits);
    if old.exported != new.exported {
        return Some("the new version exports other interfaces");
    }
    if old.recovery != new.recovery {
        return Some("the new version has another recovery");
    }
    (old != new).then_some("the new version keeps other state, or opens the layer below in another way")
}

/// Whether nobody relies any more on what a connection was told: its client has gone, it closes, or
/// all its requests fail because its state was lost.
fn is_ending(conn: &Connection) -> bool {
    !conn.is_live() || conn.is_lost() || conn.client().is_gone()
}

/// Asks the new version what these connections were told.
async fn seen(version: &Version, conns: &[Arc<Connection>], instance: &mut Instance) -> Result<SeenByAll, Obstacle> {
    let mut seen = SeenByAll::new();
    for conn in conns {
        let told = *lock(&conn.told);
        if let Some(why) = contradiction(version, conn, told, instance).await?
            && !is_ending(conn)
        {
            return Err(stays(why));
        }
        seen.push((Arc::clone(conn), told));
    }
    Ok(seen)
}

/// How the new version contradicts what a connection was told.
async fn contradiction(
    version: &Version,
    conn: &Arc<Connection>,
    told: Told,
    instance: &mut Instance,
) -> Result<Option<&'static str>, Obstacle> {
    if told.size.is_some() {
        let size = instance.serve(GetSizeCall.setup(), Some(conn), &GetSizeCall).await;
        if size.map_err(|fault| faulty(GetSizeCall::NAME, &fault))?.ok() != told.size {
            return Ok(Some("the new version answers another size"));
        }
    }
    if let Some(known) = told.block_sizes {
        let sizes = instance.serve(BlockSizeCall.setup(), Some(conn), &BlockSizeCall).await;
        let sizes = block_sizes(sizes.map_err(|fault| faulty(BlockSizeCall::NAME, &fault))?);
        if sizes.ok() != Some(known) {
            return Ok(Some("the new version answers other block sizes"));
        }
    }
    if let Some(known) = told.can {
        let call = CanCall { below: below(conn).into() };
        let claimed = instance.serve(call.setup(), Some(conn), &call).await;
        let claimed = claimed.map_err(|fault| faulty(CanCall::NAME, &fault))?.ok();
        let can = claimed.map(|claimed| offered(&version.traits.exported, conn, Some(claimed.into())).0);
        if can != Some(known) {
            return Ok(Some("the new version can do other operations"));
        }
    }
    Ok(None)
}

/// Whether no connection was told anything since the new version was asked.
fn nothing_new_was_told(pool: &InstancePool, seen: &SeenByAll) -> bool {
    pool.all_tenants().iter().all(|conn| {
        let told = *lock(&conn.told);
        told == Told::default() || seen.iter().any(|(known, when)| Arc::ptr_eq(known, conn) && *when == told)
    })
}
