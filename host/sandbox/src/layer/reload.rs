//! Replaces a filter's code while it serves.
//!
//! The new version is made and configured, and its `get-ready` runs, before anything changes. Then
//! each pool of instances moves to the new version or stays with the old one, and its connections
//! with it
//! ([`migration`](super::migration)).
//!
//! New connections get the new version in all cases. At most two versions exist: while one drains,
//! there is no further reload ([`Filter::replaced`]). Meanwhile the calls of a
//! serialize-all-requests filter take turns across both versions ([`turns`](super::turns)).

use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, Flag, ThreadModel, lock};
use tokio::time::timeout;

use super::filter::Filter;
use super::migration::Kept;
use super::pool::{InstancePool, Lease};
use super::turns::Turns;
use super::version::{FilterTraits, Replacement, Users, Version, VersionInstance, configured, refused};
use crate::guest::export_calls::{AfterForkCall, CleanupCall, ExportCall, GetReadyCall};
use crate::guest::instance::{Instance, Recipe};

/// How long a reload waits for a call until the log says so.
const QUIET_WAIT: Duration = Duration::from_secs(1);

/// What a reload did with the live connections.
#[derive(Debug, Default)]
pub struct Replaced {
    /// Connections that the new version serves from now on.
    pub moved: usize,
    /// Connections that the old version serves until they close.
    pub draining: usize,
    /// Why they do.
    pub why: Option<String>,
}

impl Filter {
    /// Set once nothing runs the version any more that the last reload replaced. None if that is so
    /// already.
    pub(crate) fn replaced(&self) -> Option<Arc<Flag>> {
        let replaced = lock(&self.replaced);
        replaced.as_ref().map(|replaced| Arc::clone(&replaced.gone)).filter(|gone| !gone.is_set())
    }

    /// Who still uses the version that the last reload replaced: connections that stay with it, and
    /// calls that run on it. None if that is nobody.
    pub(crate) fn users_of_replaced(&self) -> Option<String> {
        let end = lock(&self.replaced).as_ref().and_then(|replaced| replaced.end.upgrade())?;
        let mut users = end.users();
        let (_, now) = self.current().ok()?;
        let stay = {
            let pools = lock(&self.pools);
            pools.earlier.iter().chain(&pools.own).filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        let is_earlier = |pool: &&Arc<InstancePool>| pool.version().is_some_and(|of| !Arc::ptr_eq(&of, &now));
        for pool in stay.iter().filter(is_earlier) {
            users.connections.extend(pool.all_tenants().iter().map(|conn| conn.id()));
        }
        (users != Users::default()).then(|| users.to_string())
    }

    /// Replaces the filter's code. The caller has waited for [`Filter::replaced`].
    ///
    /// # Errors
    /// One line: the new version does not work, or has another thread model. The old one serves on.
    pub(crate) async fn replace(
        self: &Arc<Self>,
        recipe: Recipe,
        traits: FilterTraits,
    ) -> Result<Replaced, ConfigError> {
        let (version, mut first) = Version::first(&self.shared, Arc::new(recipe), traits, &self.params).await?;
        let (now, new) = (self.model(), version.traits.model);
        if now != new {
            let why = format!("its thread model is {new}, and that of the running version is {now}");
            return Err(refused(self.name(), &why));
        }
        self.make_ready(&mut first).await?;
        let mut ready = Some(first);
        let replaced = self.move_all(&version, &mut ready).await;
        if replaced.is_err()
            && let Some(first) = ready
            && first.traits().exported.lifecycle
        {
            self.clean_up(first.instance).await;
        }
        replaced
    }

    /// The calls that a filter gets before the server listens.
    async fn make_ready(&self, first: &mut VersionInstance) -> Result<(), ConfigError> {
        if !first.traits().exported.lifecycle {
            return Ok(());
        }
        self.run_ready(first, GetReadyCall).await?;
        self.run_ready(first, AfterForkCall).await
    }

    async fn run_ready<E>(&self, first: &mut VersionInstance, call: E) -> Result<(), ConfigError>
    where
        E: ExportCall<Answer = Result<(), String>>,
    {
        match first.instance.serve(call.setup(), None, &call).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(line))) => Err(refused(self.name(), &line)),
            Ok(Err(error)) => Err(refused(self.name(), &format!("{}: {error}", E::NAME))),
            Err(fault) => Err(refused(self.name(), &format!("{}: {}", E::NAME, fault.cause))),
        }
    }

    /// Moves the pools, or makes a new one for new connections.
    async fn move_all(
        self: &Arc<Self>,
        version: &Arc<Version>,
        ready: &mut Option<Box<VersionInstance>>,
    ) -> Result<Replaced, ConfigError> {
        let mut replaced = Replaced::default();
        let (pool, old) = self.current().map_err(|error| refused(self.name(), &error.to_string()))?;
        match self.move_pool(&pool, &old, version, ready).await {
            Ok(moved) => replaced.moved += moved,
            Err(Kept::Faulty(why)) => return Err(refused(self.name(), &why)),
            Err(Kept::Stays(why)) => {
                let draining = pool.all_tenants().len();
                let first = self.fresh(version, ready).await.map_err(|why| refused(self.name(), &why))?;
                let new = InstancePool::with_first(pool.capacity(), version, first);
                // Until the old version is gone, the calls of both take turns, as the thread model
                // promises. No call may run when that begins.
                let rest = match self.model() == ThreadModel::SerializeAllRequests && draining > 0 {
                    true => Some(self.rest(&pool, &old).await?),
                    false => None,
                };
                if rest.is_some() {
                    let turns = Turns::shared();
                    pool.take_turns(&turns);
                    new.take_turns(&turns);
                }
                let mut pools = lock(&self.pools);
                pools.earlier.retain(|known| known.strong_count() > 0);
                pools.earlier.push(Arc::downgrade(&pool));
                pools.current = new;
                drop(pools);
                if let Some(place) = rest {
                    place.give_back();
                }
                replaced.draining += draining;
                replaced.why = (draining > 0).then_some(why);
            }
        }
        drop(pool);
        let own: Vec<Arc<InstancePool>> = lock(&self.pools).own.iter().filter_map(Weak::upgrade).collect();
        for pool in own {
            match self.move_pool(&pool, &old, version, ready).await {
                Ok(moved) => replaced.moved += moved,
                Err(Kept::Stays(why) | Kept::Faulty(why)) => {
                    replaced.draining += pool.all_tenants().len();
                    replaced.why = Some(why);
                }
            }
        }
        self.reloads.fetch_add(1, Relaxed);
        self.start_events();
        self.retire(old);
        Ok(replaced)
    }

    /// Takes the only place of a pool, once the call has ended that runs on it.
    async fn rest<'a>(&self, pool: &'a Arc<InstancePool>, of: &Version) -> Result<Lease<'a>, ConfigError> {
        let mut place = pin!(pool.take(None));
        let taken = match timeout(QUIET_WAIT, &mut place).await {
            Ok(taken) => taken,
            Err(_) => {
                let users = of.end.users();
                tracing::info!("reload: {}: waits until the call of {users} ends, to take turns with it", self.name());
                place.await
            }
        };
        taken.map_err(|error| refused(self.name(), &error.to_string()))
    }

    /// The instance that was made ready, or another one once that is in a pool.
    pub(super) async fn fresh(
        &self,
        version: &Arc<Version>,
        ready: &mut Option<Box<VersionInstance>>,
    ) -> Result<Box<VersionInstance>, String> {
        match ready.take() {
            Some(first) => Ok(first),
            None => version.instance(&self.shared, &self.params).await,
        }
    }

    /// Waits in the background until nothing runs a version any more, and calls its `cleanup`.
    fn retire(self: &Arc<Self>, old: Arc<Version>) {
        let gone = Arc::new(Flag::default());
        *lock(&self.replaced) = Some(Replacement { gone: Arc::clone(&gone), end: Arc::downgrade(&old.end) });
        let (filter, recipe, end) = (Arc::clone(self), Arc::clone(&old.recipe), Arc::clone(&old.end));
        let has_cleanup = old.traits.exported.lifecycle;
        drop(old);
        self.shared.detached_tasks.spawn(async move {
            end.unused.wait().await;
            if has_cleanup {
                let last = match end.take_last() {
                    Some(last) => Ok(last),
                    None => configured(&recipe, &filter.shared, &filter.params).await,
                };
                match last {
                    Ok(last) => filter.clean_up(last).await,
                    Err(why) => tracing::error!("{}: no cleanup of the replaced version: {why}", filter.name()),
                }
            }
            tracing::debug!("{}: nothing runs the replaced version any more", filter.name());
            drop((end, recipe));
            if let Ok((pool, _)) = filter.current() {
                pool.take_turns(&Turns::default());
            }
            gone.set();
        });
    }

    /// Calls `cleanup` of a version that has ended, on its last instance.
    async fn clean_up(&self, mut last: Instance) {
        if let Err(fault) = last.serve(CleanupCall.setup(), None, &CleanupCall).await {
            tracing::error!("{}: cleanup of the replaced version: {}", self.name(), fault.cause);
        }
    }
}
